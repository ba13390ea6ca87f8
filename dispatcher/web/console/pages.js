// The page of a trip and the page of a driver: read from the server, and again when they change.

import { askAssign, askCancel, askEnd, askForceOffline, askOffer } from "./actions.js";
import { mayPass } from "./api.js";
import { h, setText } from "./dom.js";
import { lapse, metres, momentOf, seconds, shortId, since, span, timeOf } from "./format.js";
import { glyph } from "./glyphs.js";
import { faultText } from "./notices.js";
import { historyOf } from "./history.js";
import { Why } from "./why.js";
import { DRIVER_STATES, OBSTACLES, OUTCOMES, TRIP_STATES, scoreText } from "./words.js";

/** Offers reach Postgres some seconds late: after a change they are read once more. */
const OFFERS_LATE_MS = 4500;
/** What no frame tells of a driver, connections for instance, is looked up so often. */
const DRIVER_AGAIN_MS = 15_000;
const NOT_KNOWN = "not known while Redis is away";
/** Rest after a reading that failed; it doubles with each. */
const RETRY_MS = 1000;
const MAX_RETRY_MS = 15_000;

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

/**
 * A page that reads itself, and again when asked, without losing its place, while it can be seen. One
 * that could not be read stays as it was, says so, and is read again.
 */
class Page {
  #isReading = false;
  #isWanted = false;
  #isRead = false;
  #readAt = "";
  #failures = 0;
  /** Until then the server wants no further call. */
  #restUntil = 0;
  #timer = 0;
  #seen = () => { if (this.#isWanted && !document.hidden) this.refresh(); };

  constructor(context, id, title) {
    this.context = context;
    this.id = id;
    this.heading = h("h2", { tabindex: -1, title: id }, h("span", { class: "faint" }, title), " ", h("span", { class: "id" }, id));
    this.fault = h("p", { class: "fault", role: "alert", hidden: true });
    this.body = h("div", { class: "body", "aria-live": "off" }, h("p", { class: "faint" }, "Loading …"));
    addEventListener("visibilitychange", this.#seen);
    this.element = h("article", { class: "page" },
      h("p", {}, h("a", { class: "back", href: this.listHref }, "← ", this.listName)), this.heading, this.fault, this.body);
  }

  /** How long until the page is read again without news; 0: until there are some. */
  get againMs() {
    return 0;
  }

  /** Reads the page; while it is being read, once more after that; while it is hidden, when it is seen. */
  async refresh() {
    if (this.isClosed) return;
    if (this.#isReading || document.hidden) {
      this.#isWanted = true;
      return;
    }
    const restMs = this.#restUntil - performance.now();
    if (restMs > 0) {
      this.refreshIn(restMs);
      return;
    }
    [this.#isReading, this.#isWanted] = [true, false];
    try {
      const content = await this.read();
      if (!this.isClosed) this.#took(content);
    } catch (error) {
      if (!this.isClosed) this.#failed(error);
    } finally {
      this.#isReading = false;
    }
    if (this.#isWanted) this.refresh();
  }

  #took(content) {
    [this.#isRead, this.#failures] = [true, 0];
    this.#readAt = timeOf(new Date().toISOString());
    this.fault.hidden = true;
    this.#put(content);
    if (this.againMs) this.refreshIn(this.againMs);
  }

  /** What is shown stays beside the fault, unless the server says that there is nothing to show. */
  #failed(error) {
    const text = faultText(error);
    this.fault.hidden = false;
    if (!mayPass(error)) {
      setText(this.fault, text);
      this.#put([]);
      this.#isRead = false;
      return;
    }
    const restMs = 1000 * (error.retryAfterS ?? 0);
    this.#restUntil = performance.now() + restMs;
    const backoffMs = Math.min(MAX_RETRY_MS, RETRY_MS * 2 ** this.#failures);
    this.#failures += 1;
    if (!this.#isRead) this.#put([]);
    setText(this.fault, this.#isRead ? `${text} This is as of ${this.#readAt}, and is read again by itself.` : `${text} It is asked again by itself.`);
    // Pages that lost one server do not all come back at once.
    this.refreshIn(Math.max(restMs, backoffMs * (0.5 + Math.random() / 2)));
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
    removeEventListener("visibilitychange", this.#seen);
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
    const { trip, events, offers, races } = await api.get(`ride/${id}/timeline`);
    this.version = trip.version;
    return [this.#facts(trip), this.#actions(trip), section("History", historyOf(trip, events, offers, races)), this.#offers(offers), this.why.element];
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

function placeOf({ lat, lng }) {
  return `${lat.toFixed(5)}, ${lng.toFixed(5)}`;
}

/** A score in seconds; where a queue decided, the driver's number in it. */
function scoreOf(score) {
  return score.queue ? `#${score.position}` : seconds(score.total_s);
}

export class DriverPage extends Page {
  constructor(context, id) {
    super(context, id, "Driver");
    this.fix = null;
    this.position = h("span");
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

  get againMs() {
    return DRIVER_AGAIN_MS;
  }

  /** The city has changed: the page is read again where its driver has; where they are, the city knows. */
  onChange() {
    setText(this.position, this.#positionText());
    if (this.seen !== this.#look()) this.refresh();
  }

  #look() {
    const { drivers, offers } = this.context.city;
    const driver = drivers.get(this.id);
    const offered = Object.keys(offers).filter((trip) => offers[trip].includes(this.id)).sort();
    return driver ? `${driver.state} ${driver.tripId} ${offered}` : "away";
  }

  /** The position that was read, or the city's where the driver has moved since. */
  #positionText() {
    if (!this.fix) return "none yet";
    const { readAt, age_s: ageS, ...fix } = this.fix;
    const driver = this.context.city.drivers.get(this.id);
    // Frames that have them for the first time tell where they are, and not since when.
    const hasMoved = driver && (driver.movedAt > readAt || driver.seenAt > readAt && placeOf(driver) !== placeOf(fix));
    const since = hasMoved ? Math.max(driver.movedAt, driver.seenAt) : readAt - 1000 * ageS;
    return `${placeOf(hasMoved ? driver : fix)}, ${span((performance.now() - since) / 1000)} old`;
  }

  async read() {
    const { api } = this.context;
    this.seen = this.#look();
    const now = await api.get(`driver/${encodeURIComponent(this.id)}`);
    this.fix = now.fix && { ...now.fix, readAt: performance.now() };
    const { last_trips: trips, last_offers: offers } = now;
    return [
      this.#facts(now), this.#actions(now), this.#obstacles(now), this.#openOffers(now), this.#connections(now),
      section("Last trips", trips.length ? h("ul", { class: "plain" }, trips.map((trip) => h("li", {}, tripLink(trip.id), ` ${TRIP_STATES[trip.current_status].label}, ${momentOf(trip.updated_at)}`))) : h("p", { class: "faint" }, "None.")),
      section("Last offers", offers.length ? h("ul", { class: "plain" }, offers.map((offer) => h("li", {}, `${momentOf(offer.offered_at)} `, tripLink(offer.trip_id), ` ${OUTCOMES[offer.outcome]}`))) : h("p", { class: "faint" }, "None.")),
    ];
  }

  #facts({ driver, presence, trip, queue }) {
    setText(this.position, this.#positionText());
    const known = this.context.city.drivers.get(this.id)?.state;
    const state = !driver.is_online ? "offline" : known ?? (driver.availability_status === "available" ? "stale" : "unavailable");
    return facts([
      ["State", badge(DRIVER_STATES[state], this.context.theme)],
      ["Trip", trip && tripLink(trip.id)],
      ["Position", this.position],
      ["Connected", !presence ? NOT_KNOWN : presence.connections.length ? `until ${timeOf(presence.until)} without a sign of life` : "no"],
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

  #obstacles({ obstacles, presence }) {
    return section("Why no offers", obstacles.length || !presence
      ? h("ul", { class: "obstacles" }, obstacles.map((code) => h("li", { data: { code } }, OBSTACLES[code] ?? code)), presence ? null : h("li", { class: "faint" }, `Whether their app is connected, and what else Redis knows: ${NOT_KNOWN}.`))
      : h("p", { class: "faint" }, "Nothing keeps offers away: the next trip near them may be theirs."));
  }

  #openOffers({ offers }) {
    if (!offers) return section("Open offers", h("p", { class: "faint" }, `${NOT_KNOWN[0].toUpperCase()}${NOT_KNOWN.slice(1)}.`));
    return offers.length > 0 && section("Open offers", h("ul", { class: "plain" }, offers.map((offer) => h("li", {}, tripLink(offer.trip_id), ` for ${span(offer.expires_in_ms / 1000)} more`))));
  }

  #connections({ presence }) {
    if (!presence?.connections.length) return null;
    return section("Connections", h("ul", { class: "plain" }, presence.connections.map((found) => h("li", {},
      found.id === "http" ? "Calls over HTTP" : "WebSocket", ` from ${found.ip ?? "somewhere"}, since ${momentOf(found.since)}`, h("br"), h("span", { class: "faint" }, found.user_agent || "no user agent")))));
  }
}
