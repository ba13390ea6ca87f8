// What the frames of a watched zone add up to.

const LIVE = new Set(["pending", "accepted", "arrived", "ongoing"]);
const MAX_ENDED = 200;

/** Latitude and longitude on the unit square of Web Mercator, which the map scales by its zoom. */
export function project(lat, lng) {
  const sine = Math.sin((lat * Math.PI) / 180);
  return [(lng + 180) / 360, 0.5 - Math.log((1 + sine) / (1 - sine)) / (4 * Math.PI)];
}

/** One driver: where they are shown moves from where they were to where they are. */
class Driver {
  constructor(id, row, now) {
    this.id = id;
    [this.state, this.lat, this.lng, this.tripId, this.vehicle] = row;
    [this.x, this.y] = project(this.lat, this.lng);
    this.fromX = this.x;
    this.fromY = this.y;
    this.movedAt = -Infinity; // as far as was seen
    this.seenAt = now; // by the first frame that had them
  }

  take(row, now, glideMs) {
    const [lat, lng] = [row[1], row[2]];
    if (lat !== this.lat || lng !== this.lng) {
      const done = glideMs ? Math.min(1, (now - this.movedAt) / glideMs) : 1;
      this.fromX += (this.x - this.fromX) * done;
      this.fromY += (this.y - this.fromY) * done;
      [this.x, this.y] = project(lat, lng);
      this.movedAt = now;
    }
    [this.state, this.lat, this.lng, this.tripId, this.vehicle] = row;
  }
}

/** The zone on screen. Fires `change` after each frame, and `news` for each event of a trip. */
export class City extends EventTarget {
  drivers = new Map();
  trips = new Map();
  offers = {};
  figures = null;
  zone = null;
  seenAt = 0;
  /** How old the picture was when it came, in ms (null: it was never sampled), and which engine decides. */
  ageMs = 0;
  decidedBy = "redis";
  glideMs = 1000;

  /** Forgets everything: another zone is watched. */
  clear(zone) {
    this.zone = zone;
    this.drivers.clear();
    this.trips.clear();
    this.offers = {};
    this.figures = null;
    this.seenAt = 0;
    this.#changed(new Set(), true);
  }

  take(frame) {
    const now = performance.now();
    if (frame.full) {
      for (const id of this.drivers.keys()) if (!(id in frame.drivers)) this.drivers.delete(id);
      const told = new Set(frame.trips.map((trip) => trip.id));
      for (const id of this.trips.keys()) if (!told.has(id)) this.trips.delete(id);
    }
    for (const [id, row] of Object.entries(frame.drivers)) {
      const driver = this.drivers.get(id);
      if (driver) driver.take(row, now, this.glideMs);
      else this.drivers.set(id, new Driver(id, row, now));
    }
    for (const id of frame.drivers_gone) this.drivers.delete(id);
    for (const trip of frame.trips) this.trips.set(trip.id, trip);
    for (const id of frame.trips_gone) this.trips.delete(id);
    this.offers = frame.offers;
    this.figures = frame.figures;
    this.seenAt = now;
    this.ageMs = frame.sampled_at_ms === null ? null : Math.max(0, frame.at_ms - frame.sampled_at_ms);
    this.decidedBy = frame.decided_by;
    this.#forgetEnded();
    this.#changed(new Set(frame.trips.map((trip) => trip.id)), frame.full);
    for (const event of frame.events) this.dispatchEvent(new CustomEvent("news", { detail: event }));
  }

  /** Live trips: who waits longest first, then those under way by their last change. */
  liveTrips() {
    const live = [...this.trips.values()].filter((trip) => LIVE.has(trip.current_status));
    const rank = (trip) => (trip.current_status === "pending" ? 0 : 1);
    return live.sort((a, b) => rank(a) - rank(b)
      || (rank(a) ? b.updated_at.localeCompare(a.updated_at) : a.created_at.localeCompare(b.created_at)));
  }

  /** Trips that have just ended, the latest first. */
  endedTrips() {
    return [...this.trips.values()]
      .filter((trip) => !LIVE.has(trip.current_status))
      .sort((a, b) => b.updated_at.localeCompare(a.updated_at));
  }

  #forgetEnded() {
    for (const trip of this.endedTrips().slice(MAX_ENDED)) this.trips.delete(trip.id);
  }

  #changed(trips, isFull) {
    this.dispatchEvent(new CustomEvent("change", { detail: { trips, isFull } }));
  }
}
