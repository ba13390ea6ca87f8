// The lists of trips and drivers: what is live as it changes, and what a search finds.

import { h, reconcile, setText } from "./dom.js";
import { momentOf, shortId, since } from "./format.js";
import { glyph } from "./glyphs.js";
import { faultText } from "./notices.js";
import { DRIVER_STATES, TRIP_STATES } from "./words.js";

const MAX_ROWS = 100;
const PAGE = 50;
const SEARCH_AFTER_MS = 350;

/** A list with a search field and filters; `find` asks the server, `live` reads the city. */
class List {
  constructor(context, { label, placeholder, filters }) {
    this.context = context;
    this.filter = filters[0][0];
    this.search = h("input", {
      type: "search", placeholder, "aria-label": label, autocomplete: "off", spellcheck: "false",
      input: () => this.#onSearch(),
    });
    this.chips = filters.map(([name, text]) => h("button", {
      type: "button", class: "chip", data: { name }, "aria-pressed": String(name === this.filter),
      click: () => this.#onFilter(name),
    }, text));
    this.rows = h("ul", { class: "rows" });
    this.note = h("p", { class: "faint note", role: "status" });
    this.more = h("button", { type: "button", class: "quiet more", hidden: true, click: () => this.#ask(false) }, "Older");
    this.element = h("div", { class: "list" },
      h("div", { class: "finder" }, this.search, h("div", { class: "chips", role: "group", "aria-label": "Show" }, this.chips)),
      this.rows, this.note, this.more);
    this.found = null;
    this.next = null;
    this.asked = 0;
  }

  get text() {
    return this.search.value.trim();
  }

  #onFilter(name) {
    this.filter = name;
    for (const chip of this.chips) chip.setAttribute("aria-pressed", String(chip.dataset.name === name));
    this.#ask(true);
  }

  #onSearch() {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.#ask(true), SEARCH_AFTER_MS);
  }

  /** Asks the server for what the city does not hold; `isNew` begins anew. */
  async #ask(isNew) {
    const number = (this.asked += 1);
    if (isNew) [this.found, this.next] = [null, null];
    if (isNew && !this.needsServer()) {
      this.update();
      return;
    }
    setText(this.note, "Searching …");
    try {
      const { rows, next } = await this.find(isNew ? null : this.next);
      if (number !== this.asked) return;
      this.found = isNew ? rows : [...this.found, ...rows];
      this.next = next;
      this.update();
    } catch (error) {
      if (number === this.asked) setText(this.note, faultText(error));
    }
  }

  update() {
    if (!this.element.isConnected) return;
    const items = this.items();
    reconcile(this.rows, items.slice(0, this.found ? items.length : MAX_ROWS), (item) => item.key, (item) => this.make(item), (row, item) => this.fill(row, item));
    this.more.hidden = !this.next;
    const hidden = this.found ? 0 : Math.max(0, items.length - MAX_ROWS);
    setText(this.note, items.length === 0 ? this.emptyText() : hidden ? `${hidden} more; search to narrow them down.` : "");
  }

  make({ href }) {
    const link = h("a", { href }, h("span", { class: "sign" }), h("span", { class: "id" }), h("span", { class: "state" }), h("span", { class: "detail" }), h("span", { class: "when" }));
    return h("li", {}, link);
  }

  put(row, { id, style, detail, when }) {
    const [sign, name, state, about, time] = row.firstElementChild.children;
    const drawn = `${style.label} ${this.context.theme}`;
    if (sign.dataset.drawn !== drawn) {
      sign.dataset.drawn = drawn;
      sign.replaceChildren(glyph(style, this.context.theme));
    }
    setText(name, shortId(id));
    row.firstElementChild.title = id;
    setText(state, style.label);
    setText(about, detail);
    setText(time, when);
  }
}

export class TripList extends List {
  constructor(context) {
    super(context, {
      label: "Search trips by the id of a trip, customer or driver", placeholder: "Trip, customer or driver id",
      filters: [["live", "Live"], ["pending", "Waiting"], ["all", "All, latest first"]],
    });
  }

  needsServer() {
    return this.text !== "" || this.filter === "all";
  }

  async find(after) {
    const { city, api } = this.context;
    const status = this.filter === "pending" ? "pending" : null;
    const { trips, next } = await api.get("rides", { search: this.text, zone: this.text ? null : city.zone, status, after, limit: PAGE });
    return { rows: trips, next };
  }

  items() {
    const { city } = this.context;
    const trips = this.found
      ? this.found.map((trip) => { const known = city.trips.get(trip.id); return known && known.version > trip.version ? known : trip; })
      : [...city.liveTrips(), ...(this.filter === "live" ? city.endedTrips().slice(0, 20) : [])];
    const shown = this.filter === "pending" ? trips.filter((trip) => trip.current_status === "pending") : trips;
    return shown.map((trip) => ({ key: trip.id, href: `#/trip/${encodeURIComponent(trip.id)}`, trip }));
  }

  fill(row, { trip }) {
    const isWaiting = trip.current_status === "pending";
    const offers = this.context.city.offers[trip.id]?.length ?? 0;
    row.dataset.status = trip.current_status;
    this.put(row, {
      id: trip.id, style: TRIP_STATES[trip.current_status],
      detail: isWaiting ? (trip.wave ? `wave ${trip.wave}, ${offers} ${offers === 1 ? "offer" : "offers"} out` : "no wave yet") : trip.driver_id ?? trip.cancel_reason ?? "",
      when: isWaiting ? since(trip.created_at) : momentOf(trip.updated_at),
    });
  }

  emptyText() {
    return this.text ? "No trip, customer or driver has this id." : "No trips here now.";
  }
}

const ORDER = Object.keys(DRIVER_STATES);

export class DriverList extends List {
  constructor(context) {
    super(context, {
      label: "Search drivers by the beginning of their id", placeholder: "Beginning of a driver's id",
      filters: [["online", "On the map"], ["free", "Free"], ["all", "All, by id"]],
    });
  }

  needsServer() {
    return this.text !== "" || this.filter === "all";
  }

  async find(after) {
    const { city, api } = this.context;
    const { drivers, next } = await api.get("drivers", { search: this.text, zone: this.text ? null : city.zone, after, limit: PAGE });
    return { rows: drivers, next };
  }

  items() {
    const { city } = this.context;
    const rows = this.found
      ? this.found.map((saved) => city.drivers.get(saved.user_id) ?? { id: saved.user_id, state: stateOf(saved), tripId: saved.trip_id, vehicle: saved.vehicle_type })
      : [...city.drivers.values()].sort((a, b) => ORDER.indexOf(a.state) - ORDER.indexOf(b.state) || a.id.localeCompare(b.id));
    const shown = this.filter === "free" ? rows.filter((driver) => driver.state === "free" || driver.state === "offered") : rows;
    return shown.map((driver) => ({ key: driver.id, href: `#/driver/${encodeURIComponent(driver.id)}`, driver }));
  }

  fill(row, { driver }) {
    row.dataset.status = driver.state;
    this.put(row, { id: driver.id, style: DRIVER_STATES[driver.state], detail: driver.tripId ? shortId(driver.tripId) : "", when: driver.vehicle });
  }

  emptyText() {
    return this.text ? "No driver's id begins so." : "No drivers here now.";
  }
}

/** The state of a driver who is not on the map. */
function stateOf(driver) {
  if (!driver.is_online) return "offline";
  return driver.availability_status === "available" ? "stale" : "unavailable";
}
