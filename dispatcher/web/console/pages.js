// The page of a trip and the page of a driver: read from the server, and again when they change.

import { askAssign, askCancel, askEnd, askForceOffline, askOffer } from "./actions.js";
import { h } from "./dom.js";
import { lapse, metres, momentOf, seconds, shortId, since, span, timeOf } from "./format.js";
import { glyph } from "./glyphs.js";
import { faultText } from "./notices.js";
import { historyOf } from "./history.js";
import { Why } from "./why.js";
import { DRIVER_STATES, OBSTACLES, OUTCOMES, TRIP_STATES, scoreText } from "./words.js";

/** Offers reach Postgres some seconds late: after a change they are read once more. */
const OFFERS_LATE_MS = 4500;
const DRIVER_AGAIN_MS = 5000;
const MAX_OFFERS = 200;

export const tripLink = (id) => h("a", { class: "id", href: `#/trip/${encodeURIComponent(id)}`, title: id }, shortId(id));
export const driverLink = (id) => h("a", { class: "id", href: `#/driver/${encodeURIComponent(id)}`, title: id }, shortId(id));

/** Name and value, two and two; what is empty is left out. */
function facts(pairs) {
  return h("dl", { class: "facts" }, pairs.filter(([, value]) => value).map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))));
}

function section(title, ...content) {
  return h("section", {}, h("h3", {}, title), content);
}

function badge(style, theme) {
  return h("span", { class: "badge" }, glyph(style, theme), style.label);
}

/** A page that reads itself, and again when asked, without losing its place. */
class Page {
  #isReading = false;
  #isWanted = false;
  #timer = 0;

  constructor(context, id, title) {
    this.context = context;
    this.id = id;
    this.heading = h("h2", { tabindex: -1, title: id }, h("span", { class: "faint" }, title), " ", h("span", { class: "id" }, id));
    this.body = h("div", { class: "body", "aria-live": "off" }, h("p", { class: "faint" }, "Loading …"));
    this.element = h("article", { class: "page" },
      h("p", {}, h("a", { class: "back", href: this.listHref }, "← ", this.listName)), this.heading, this.body);
  }

  /** Reads the page; while it is being read, once more after that. */
  async refresh() {
    if (this.#isReading) {
      this.#isWanted = true;
      return;
    }
    this.#isReading = true;
    try {
      const content = await this.read();
      if (!this.isClosed) this.#put(content);
    } catch (error) {
      this.#put([h("p", { class: "fault", role: "alert" }, faultText(error))]);
    } finally {
      this.#isReading = false;
    }
    if (this.#isWanted && !this.isClosed) {
      this.#isWanted = false;
      this.refresh();
    }
  }

  /** Keeps the focus on the button of the same name, and the place of the panel. */
  #put(content) {
    const focused = this.body.contains(document.activeElement) ? document.activeElement.dataset.action : null;
    this.body.replaceChildren(...content.filter(Boolean));
    if (focused) this.body.querySelector(`[data-action="${focused}"]`)?.focus();
  }

  refreshIn(ms) {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.refresh(), ms);
  }

  close() {
    this.isClosed = true;
    clearTimeout(this.#timer);
  }
}

export class TripPage extends Page {
  constructor(context, id) {
    super(context, id, "Trip");
    this.why = new Why(context.api, id);
  }

  get listHref() {
    return "#/trips";
  }

  get listName() {
    return "Trips";
  }

  get selected() {
    return { tripId: this.id };
  }

  /** The city has changed: the page is read again where its trip has. */
  onChange({ trips, isFull }) {
    if (!trips.has(this.id) || isFull && this.version === this.context.city.trips.get(this.id)?.version) return;
    this.refresh();
    this.refreshIn(OFFERS_LATE_MS);
  }

  async read() {
    const { api } = this.context;
    const id = encodeURIComponent(this.id);
    const [{ trip }, { events }, { offers }] = await Promise.all([
      api.get(`ride/${id}`), api.get(`ride/${id}/timeline`), api.get(`ride/${id}/offers`, { limit: MAX_OFFERS }),
    ]);
    this.version = trip.version;
    return [this.#facts(trip), this.#actions(trip), section("History", historyOf(trip, events, offers)), this.#offers(offers), this.why.element];
  }

  #facts(trip) {
    return facts([
      ["State", badge(TRIP_STATES[trip.current_status], this.context.theme)],
      ["Driver", trip.driver_id && driverLink(trip.driver_id)],
      ["Customer", h("span", { class: "id" }, trip.customer_id)],
      ["Asked for", `${momentOf(trip.created_at)}, ${since(trip.created_at)} ago`],
      ["Vehicle", trip.vehicle_type],
      ["Zone", trip.zone],
      ["Version", String(trip.version)],
      ["Reason", trip.cancel_reason],
    ]);
  }

  #actions(trip) {
    const { api, city } = this.context;
    const again = () => this.refresh();
    const isPending = trip.current_status === "pending";
    const mayCancel = ["pending", "accepted", "arrived"].includes(trip.current_status);
    return h("div", { class: "buttons" },
      isPending && h("button", { class: "primary", type: "button", data: { action: "assign" }, click: () => askAssign(api, city, trip, again) }, "Assign to a driver …"),
      isPending && h("button", { type: "button", data: { action: "offer" }, click: () => askOffer(api, city, trip, again) }, "Offer to a driver …"),
      mayCancel && h("button", { class: "danger", type: "button", data: { action: "cancel" }, click: () => askCancel(api, trip, again) }, "Cancel the trip …"),
      trip.current_status === "ongoing" && h("button", { class: "danger", type: "button", data: { action: "end" }, click: () => askEnd(api, trip, again) }, "End the ride …"));
  }

  #offers(offers) {
    if (!offers.length) return section("Offers", h("p", { class: "faint" }, "None yet. Offers are written down within some seconds."));
    const isScored = offers.some((offer) => offer.score);
    const rows = offers.map((offer) => h("tr", { data: { offer: `${offer.wave} ${offer.driver_id} ${offer.outcome}` } },
      h("td", {}, String(offer.wave)), h("td", {}, driverLink(offer.driver_id)), h("td", { class: "number" }, metres(offer.distance_m)),
      isScored && h("td", { class: "number", title: scoreText(offer.score) }, offer.score ? scoreOf(offer.score) : ""),
      h("td", {}, offer.offered_by ? `${OUTCOMES[offer.outcome]}, by hand of ${offer.offered_by}` : OUTCOMES[offer.outcome]), h("td", { class: "number" }, offer.outcome_at ? `after ${lapse(offer.offered_at, offer.outcome_at)}` : "")));
    return section(`Offers (${offers.length})`, h("div", { class: "scroll" }, h("table", {},
      h("thead", {}, h("tr", {}, ["Wave", "Driver", "Away", ...(isScored ? ["Score"] : []), "Outcome", ""].map((name) => h("th", { scope: "col" }, name)))),
      h("tbody", {}, rows))));
  }
}

/** A score in seconds; where a queue decided, the driver's number in it. */
function scoreOf(score) {
  return score.queue ? `#${score.position}` : seconds(score.total_s);
}

export class DriverPage extends Page {
  constructor(context, id) {
    super(context, id, "Driver");
  }

  get listHref() {
    return "#/drivers";
  }

  get listName() {
    return "Drivers";
  }

  get selected() {
    return { driverId: this.id };
  }

  /** The city has changed: the page is read again where its driver has. */
  onChange() {
    if (this.seen !== this.#look()) this.refresh();
  }

  #look() {
    const driver = this.context.city.drivers.get(this.id);
    return driver ? `${driver.state} ${driver.tripId}` : "away";
  }

  async read() {
    const { api } = this.context;
    this.seen = this.#look();
    const id = encodeURIComponent(this.id);
    const [now, { trips }, { offers }] = await Promise.all([
      api.get(`driver/${id}`), api.get("rides", { search: this.id, limit: 10 }), api.get(`driver/${id}/offers`, { limit: 15 }),
    ]);
    this.refreshIn(DRIVER_AGAIN_MS);
    return [
      this.#facts(now), this.#actions(now), this.#obstacles(now), this.#openOffers(now), this.#connections(now),
      section("Last trips", trips.length ? h("ul", { class: "plain" }, trips.map((trip) => h("li", {}, tripLink(trip.id), ` ${TRIP_STATES[trip.current_status].label}, ${momentOf(trip.updated_at)}`))) : h("p", { class: "faint" }, "None.")),
      section("Last offers", offers.length ? h("ul", { class: "plain" }, offers.map((offer) => h("li", {}, `${momentOf(offer.offered_at)} `, tripLink(offer.trip_id), ` ${OUTCOMES[offer.outcome]}`))) : h("p", { class: "faint" }, "None.")),
    ];
  }

  #facts({ driver, fix, presence, trip, queue }) {
    const known = this.context.city.drivers.get(this.id)?.state;
    const state = !driver.is_online ? "offline" : known ?? (driver.availability_status === "available" ? "stale" : "unavailable");
    return facts([
      ["State", badge(DRIVER_STATES[state], this.context.theme)],
      ["Trip", trip && tripLink(trip.id)],
      ["Position", fix ? `${fix.lat.toFixed(5)}, ${fix.lng.toFixed(5)}, ${span(fix.age_s)} old` : "none yet"],
      ["Connected", presence.connections.length ? `until ${timeOf(presence.until)} without a sign of life` : "no"],
      ["Queue", queue && `number ${queue.position} in ${queue.queue}, since ${timeOf(queue.queued_at)}`],
      ["Vehicle", driver.vehicle_type],
      ["Zone", driver.zone],
      ["Changed", momentOf(driver.updated_at)],
    ]);
  }

  #actions({ driver }) {
    const { api } = this.context;
    return h("div", { class: "buttons" }, driver.is_online && h("button", {
      class: "danger", type: "button", data: { action: "offline" }, click: () => askForceOffline(api, driver, () => this.refresh()),
    }, "Force offline …"));
  }

  #obstacles({ obstacles }) {
    return section("Why no offers", obstacles.length
      ? h("ul", { class: "obstacles" }, obstacles.map((code) => h("li", { data: { code } }, OBSTACLES[code] ?? code)))
      : h("p", { class: "faint" }, "Nothing keeps offers away: the next trip near them may be theirs."));
  }

  #openOffers({ offers }) {
    return offers.length > 0 && section("Open offers", h("ul", { class: "plain" }, offers.map((offer) => h("li", {}, tripLink(offer.trip_id), ` for ${span(offer.expires_in_ms / 1000)} more`))));
  }

  #connections({ presence }) {
    if (!presence.connections.length) return null;
    return section("Connections", h("ul", { class: "plain" }, presence.connections.map((found) => h("li", {},
      found.id === "http" ? "Calls over HTTP" : "WebSocket", ` from ${found.ip ?? "somewhere"}, since ${momentOf(found.since)}`, h("br"), h("span", { class: "faint" }, found.user_agent || "no user agent")))));
  }
}
