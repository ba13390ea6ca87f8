// The map: Leaflet moves and zooms it and shows zones and tiles; drivers and trips are on one canvas.

import { project } from "./city.js";
import { makeStamps } from "./glyphs.js";
import { h, setText } from "./dom.js";
import { DRIVER_STATES, TRIP_STATES } from "./words.js";

/** Between two drawings: no shorter than eyes need, longer with many drivers, and one a glide at least. */
const FRAME_MS = 33;
const CROWD = 400;
const CROWD_FRAME_MS = 100;
const FLASH_MS = 1600;
const NEAR_PX = 14;
const LOOKS = {
  light: { grid: "rgba(30, 60, 90, .07)", text: "#1c2733", halo: "rgba(255, 255, 255, .9)", line: .55 },
  dark: { grid: "rgba(160, 190, 220, .06)", text: "#e6edf3", halo: "rgba(10, 14, 18, .85)", line: .6 },
};

export class CityMap {
  #map; #canvas; #context; #hint;
  #zonesLayer = null; #tiles = null;
  #stamps = null; #theme = "light"; #ratio = 1; #radius = 0;
  #drawnAt = 0; #isAsked = false; #movesUntil = 0; #frameMs = FRAME_MS;
  #flashes = [];
  #selected = {};
  #mustFit = true; #outline = null;

  /** `onSelect(kind, id)` hears of a click on a driver or trip. */
  constructor(container, hint, city, onSelect) {
    this.city = city;
    this.#hint = hint;
    const L = globalThis.L;
    this.#map = L.map(container, {
      zoomAnimation: false, fadeAnimation: false, markerZoomAnimation: false, zoomSnap: 0.5, zoomDelta: 1,
      wheelPxPerZoomLevel: 90, minZoom: 3, maxZoom: 18, zoomControl: false, attributionControl: true,
      worldCopyJump: true,
    }).setView([40.75, -73.95], 12);
    this.#map.attributionControl.setPrefix(false);
    L.control.zoom({ position: "bottomright" }).addTo(this.#map);
    L.control.scale({ imperial: false, position: "bottomright" }).addTo(this.#map);
    this.#canvas = h("canvas", { class: "canvas", "aria-hidden": "true" });
    container.append(this.#canvas);
    this.#context = this.#canvas.getContext("2d");
    this.#map.on("move zoom resize viewreset", () => this.draw(true));
    this.#map.on("click", (event) => this.#onClick(event, onSelect));
    this.#map.on("mousemove", (event) => this.#onHover(event));
    this.#map.on("mouseout", () => this.#showHint(null));
    new ResizeObserver(() => { this.#map.invalidateSize(false); this.draw(true); }).observe(container);
    city.addEventListener("change", () => this.#onChange());
    city.addEventListener("news", (event) => this.#onNews(event.detail));
    addEventListener("visibilitychange", () => this.draw());
  }

  /** Leaflet's map, for what lies below drivers and trips. */
  get leaflet() {
    return this.#map;
  }

  setTheme(theme) {
    this.#theme = theme;
    this.#radius = 0;
    this.draw(true);
  }

  setTiles(url, attribution) {
    if (!url || this.#tiles) return;
    this.#tiles = globalThis.L.tileLayer(url, { maxZoom: 19 }).addTo(this.#map);
    // Leaflet would take the text for markup.
    if (attribution) this.#map.attributionControl.getContainer().append(attribution);
  }

  /** Outlines of all zones; the map shows all of the one that is watched. */
  setZones(zones, watched) {
    const L = globalThis.L;
    this.#zonesLayer?.remove();
    this.#zonesLayer = L.featureGroup().addTo(this.#map);
    let bounds = null;
    for (const zone of zones) {
      if (!zone.outline) continue;
      const isWatched = zone.name === watched;
      const layer = L.geoJSON(zone.outline, {
        interactive: false, className: isWatched ? "zone-area watched" : "zone-area",
      }).addTo(this.#zonesLayer);
      if (isWatched) bounds = layer.getBounds();
    }
    for (const { name, outline } of zones.find((zone) => zone.name === watched)?.queues ?? []) {
      L.geoJSON(outline, { className: "queue-area" }).bindTooltip(() => h("span", {}, `Queue ${name}`)).addTo(this.#zonesLayer);
    }
    this.#mustFit = true;
    this.#outline = bounds;
    // Without outlines all is land.
    this.#map.getContainer().classList.toggle("plain", !zones.some((zone) => zone.outline));
    this.fit();
  }

  /** Shows all drivers, or the zone where there are none yet. */
  fit() {
    const points = [...this.city.drivers.values()].map((driver) => [driver.lat, driver.lng]);
    let bounds = this.#outline;
    if (points.length) {
      // Without the few that are far from all others.
      const cut = (values) => {
        const sorted = values.sort((a, b) => a - b);
        const off = Math.floor(sorted.length * 0.05);
        return [sorted[off], sorted[sorted.length - 1 - off]];
      };
      const [south, north] = cut(points.map((point) => point[0]));
      const [west, east] = cut(points.map((point) => point[1]));
      bounds = globalThis.L.latLngBounds([south, west], [north, east]);
      this.#mustFit = false;
    }
    if (bounds) this.#map.fitBounds(bounds, { animate: false, padding: [28, 28], maxZoom: 15 });
    this.draw(true);
  }

  /** Marks a trip or driver, and brings them into view where they are not. */
  select(selected, { reveal = false } = {}) {
    this.#selected = selected ?? {};
    const at = this.#placeOf(this.#selected);
    if (reveal && at && !this.#map.getBounds().pad(-0.1).contains(at)) this.#map.panTo(at, { animate: false });
    this.draw(true);
  }

  #placeOf({ tripId, driverId }) {
    const driver = this.city.drivers.get(driverId);
    if (driver) return [driver.lat, driver.lng];
    const trip = this.city.trips.get(tripId);
    return trip ? [trip.pickup.lat, trip.pickup.lng] : null;
  }

  #onChange() {
    if (this.#mustFit && this.city.drivers.size > 0) this.fit();
    this.#movesUntil = performance.now() + this.city.glideMs + 50;
    this.#frameMs = this.#paceOf();
    this.draw();
  }

  /** Time for a pixel of the fastest driver's way: drawing more often would show the same. */
  #paceOf() {
    const { drivers, glideMs } = this.city;
    let way = 0;
    for (const { x, y, fromX, fromY } of drivers.values()) way = Math.max(way, Math.abs(x - fromX), Math.abs(y - fromY));
    const pixels = way * this.#view().scale;
    return Math.max(drivers.size > CROWD ? CROWD_FRAME_MS : FRAME_MS, Math.min(glideMs, glideMs / pixels));
  }

  #onNews(event) {
    if (event.event !== "accepted" && event.event !== "completed") return;
    this.#flashes.push({ ...event, until: performance.now() + FLASH_MS });
    if (this.#flashes.length > 60) this.#flashes.shift();
    this.draw();
  }

  // --- what is under the pointer

  #at(point) {
    const { scale, left, top } = this.#view();
    const now = performance.now();
    let best = null;
    let nearest = NEAR_PX ** 2;
    const look = (x, y, kind, thing) => {
      const square = (x - point.x) ** 2 + (y - point.y) ** 2;
      if (square < nearest) { nearest = square; best = { kind, thing }; }
    };
    for (const driver of this.city.drivers.values()) {
      const [x, y] = this.#placeNow(driver, now);
      look(x * scale - left, y * scale - top, "driver", driver);
    }
    for (const trip of this.city.trips.values()) {
      if (trip.current_status !== "pending") continue;
      const [x, y] = project(trip.pickup.lat, trip.pickup.lng);
      look(x * scale - left, y * scale - top, "trip", trip);
    }
    return best;
  }

  #onClick(event, onSelect) {
    const found = this.#at(event.containerPoint);
    if (found) onSelect(found.kind, found.thing.id);
  }

  #onHover(event) {
    const now = performance.now();
    if (now - (this.hoveredAt ?? 0) < 60) return;
    this.hoveredAt = now;
    this.#showHint(this.#at(event.containerPoint), event.containerPoint);
  }

  #showHint(found, point) {
    this.#hint.hidden = !found;
    this.#map.getContainer().classList.toggle("over", Boolean(found));
    if (!found) return;
    const { kind, thing } = found;
    const label = kind === "driver" ? DRIVER_STATES[thing.state].label : TRIP_STATES[thing.current_status].label;
    setText(this.#hint, `${thing.id} · ${label}`);
    this.#hint.style.transform = `translate(${Math.round(point.x) + 14}px, ${Math.round(point.y) + 14}px)`;
  }

  // --- drawing

  /** Asks for a drawing; while something glides, one asks for the next. */
  draw(isAtOnce = false) {
    if (isAtOnce) this.#drawnAt = 0;
    if (this.#isAsked || document.hidden) return;
    this.#isAsked = true;
    requestAnimationFrame((now) => this.#onFrame(now));
  }

  #onFrame(now) {
    this.#isAsked = false;
    const frameMs = this.#flashes.length ? Math.min(this.#frameMs, CROWD_FRAME_MS) : this.#frameMs;
    if (now - this.#drawnAt >= frameMs - 2) {
      this.#drawnAt = now;
      this.#paint(performance.now());
    }
    if (now < this.#movesUntil || this.#flashes.length) this.draw();
  }

  #view() {
    const zoom = this.#map.getZoom();
    const min = this.#map.getPixelBounds().min;
    return { zoom, scale: 256 * 2 ** zoom, left: min.x, top: min.y };
  }

  #placeNow(driver, now) {
    const glideMs = this.city.glideMs;
    const done = glideMs ? Math.min(1, (now - driver.movedAt) / glideMs) : 1;
    return [driver.fromX + (driver.x - driver.fromX) * done, driver.fromY + (driver.y - driver.fromY) * done];
  }

  #prepare(zoom) {
    const { clientWidth: width, clientHeight: height } = this.#map.getContainer();
    const ratio = Math.min(2, devicePixelRatio || 1);
    if (this.#canvas.width !== width * ratio || this.#canvas.height !== height * ratio) {
      this.#canvas.width = width * ratio;
      this.#canvas.height = height * ratio;
    }
    const radius = zoom < 11 ? 3.2 : zoom < 13 ? 4.2 : zoom < 15 ? 5.2 : 6.4;
    if (radius !== this.#radius || ratio !== this.#ratio) {
      this.#radius = radius;
      this.#ratio = ratio;
      this.#stamps = makeStamps(this.#theme, radius, ratio);
    }
    this.#context.setTransform(ratio, 0, 0, ratio, 0, 0);
    this.#context.clearRect(0, 0, width, height);
    return { width, height };
  }

  #paint(now) {
    const view = this.#view();
    const size = this.#prepare(view.zoom);
    const screen = (x, y) => [x * view.scale - view.left, y * view.scale - view.top];
    const places = new Map();
    for (const driver of this.city.drivers.values()) places.set(driver.id, screen(...this.#placeNow(driver, now)));
    if (!this.#tiles) this.#paintGrid(view, size);
    this.#paintLines(places, screen);
    this.#paintTrips(screen, size);
    this.#paintDrivers(places, size);
    this.#paintFlashes(now, places, screen);
    this.#paintSelected(places, screen);
  }

  /** A plain ground would not tell that it moves. */
  #paintGrid(view, { width, height }) {
    const step = 256 * 2 ** (view.zoom - Math.floor(view.zoom)) / 2;
    const context = this.#context;
    context.beginPath();
    for (let x = -(((view.left % step) + step) % step); x < width; x += step) { context.moveTo(x, 0); context.lineTo(x, height); }
    for (let y = -(((view.top % step) + step) % step); y < height; y += step) { context.moveTo(0, y); context.lineTo(width, y); }
    context.strokeStyle = LOOKS[this.#theme].grid;
    context.lineWidth = 1;
    context.stroke();
  }

  /** Offers that are out, dashed; ways to pickups; and the way of a selected ride. */
  #paintLines(places, screen) {
    const context = this.#context;
    context.globalAlpha = LOOKS[this.#theme].line;
    const pickupOf = (trip) => screen(...project(trip.pickup.lat, trip.pickup.lng));
    context.beginPath();
    for (const [tripId, drivers] of Object.entries(this.city.offers)) {
      const trip = this.city.trips.get(tripId);
      if (!trip) continue;
      const from = pickupOf(trip);
      for (const id of drivers) {
        const to = places.get(id);
        if (to) { context.moveTo(...from); context.lineTo(...to); }
      }
    }
    context.setLineDash([4, 4]);
    context.lineWidth = 1.4;
    context.strokeStyle = DRIVER_STATES.offered.color[this.#theme];
    context.stroke();
    context.setLineDash([]);
    context.beginPath();
    for (const trip of this.city.trips.values()) {
      const to = trip.current_status === "accepted" && places.get(trip.driver_id);
      if (to) { context.moveTo(...pickupOf(trip)); context.lineTo(...to); }
    }
    context.lineWidth = 1.2;
    context.strokeStyle = DRIVER_STATES.to_pickup.color[this.#theme];
    context.stroke();
    context.globalAlpha = 1;
  }

  #paintTrips(screen, size) {
    for (const trip of this.city.trips.values()) {
      if (trip.current_status !== "pending") continue;
      this.#put(this.#stamps.trips.pending, screen(...project(trip.pickup.lat, trip.pickup.lng)), size);
    }
  }

  #paintDrivers(places, size) {
    // Who has nothing to do lies below.
    const idle = new Set(["free", "unavailable", "stale"]);
    for (const isBelow of [true, false]) {
      for (const driver of this.city.drivers.values()) {
        if (idle.has(driver.state) === isBelow) this.#put(this.#stamps.drivers[driver.state], places.get(driver.id), size);
      }
    }
  }

  #put({ canvas, side }, [x, y], { width, height }) {
    if (x < -side || y < -side || x > width + side || y > height + side) return;
    this.#context.drawImage(canvas, x - side / 2, y - side / 2, side, side);
  }

  /** Who won, for a moment: a line that fades, and a ring that grows. */
  #paintFlashes(now, places, screen) {
    const context = this.#context;
    this.#flashes = this.#flashes.filter((flash) => flash.until > now);
    for (const flash of this.#flashes) {
      const at = places.get(flash.driver_id);
      const trip = this.city.trips.get(flash.trip_id);
      if (!at || !trip) continue;
      const left = (flash.until - now) / FLASH_MS;
      const won = flash.event === "accepted";
      context.globalAlpha = left;
      context.strokeStyle = (won ? DRIVER_STATES.to_pickup : DRIVER_STATES.free).color[this.#theme];
      context.lineWidth = 2.5;
      context.beginPath();
      if (won) { context.moveTo(...screen(...project(trip.pickup.lat, trip.pickup.lng))); context.lineTo(...at); }
      context.moveTo(at[0] + this.#radius * (2 + 3 * (1 - left)), at[1]);
      context.arc(...at, this.#radius * (2 + 3 * (1 - left)), 0, 2 * Math.PI);
      context.stroke();
      context.globalAlpha = 1;
    }
  }

  #paintSelected(places, screen) {
    const { tripId, driverId } = this.#selected;
    const look = LOOKS[this.#theme];
    const context = this.#context;
    const trip = this.city.trips.get(tripId ?? this.city.drivers.get(driverId)?.tripId);
    const at = places.get(driverId ?? trip?.driver_id);
    if (trip) {
      const pickup = screen(...project(trip.pickup.lat, trip.pickup.lng));
      const dropoff = trip.dropoff && screen(...project(trip.dropoff.lat, trip.dropoff.lng));
      context.lineWidth = 2;
      context.strokeStyle = TRIP_STATES[trip.current_status].color[this.#theme];
      if (dropoff) {
        context.beginPath();
        context.moveTo(...(trip.current_status === "ongoing" && at ? at : pickup));
        context.lineTo(...dropoff);
        context.stroke();
        this.#mark(dropoff, "drop-off", look);
      }
      this.#mark(pickup, "pickup", look);
    }
    if (at) {
      context.strokeStyle = look.text;
      context.lineWidth = 2;
      context.beginPath();
      context.arc(...at, this.#radius * 2.3, 0, 2 * Math.PI);
      context.stroke();
    }
  }

  #mark([x, y], text, look) {
    const context = this.#context;
    context.beginPath();
    context.arc(x, y, this.#radius * 1.9, 0, 2 * Math.PI);
    context.strokeStyle = look.text;
    context.lineWidth = 1.5;
    context.stroke();
    context.font = "600 12px system-ui, sans-serif";
    context.strokeStyle = look.halo;
    context.lineWidth = 3;
    context.strokeText(text, x + this.#radius * 2.4, y + 4);
    context.fillStyle = look.text;
    context.fillText(text, x + this.#radius * 2.4, y + 4);
  }
}
