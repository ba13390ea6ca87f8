// The heat: where work is waiting, by H3 cell, below drivers and trips. It is asked for while it is shown.

import { h, setText } from "./dom.js";

const AGAIN_MS = 10000;
/** From how many trips a free driver a cell is of the next level. */
const LEVELS = [0, 0.5, 1, 2];

export class HeatLayer {
  #map; #api; #layer = null; #timer = 0; #zone = ""; #isShown = false; #button;

  /** `button` shows and hides it. */
  constructor(map, button, api) {
    this.#map = map;
    this.#button = button;
    this.#api = api;
    button.addEventListener("click", () => this.show(!this.#isShown));
    setText(button, "Heat");
    button.title = "Where work is waiting";
    addEventListener("visibilitychange", () => { if (this.#isShown && !document.hidden) this.#ask(); });
    this.show(false);
  }

  /** Another zone is watched. */
  watch(zone) {
    this.#zone = zone;
    this.#draw([]);
    if (this.#isShown) this.#ask();
  }

  show(isShown) {
    this.#isShown = isShown;
    this.#button.setAttribute("aria-pressed", String(isShown));
    clearTimeout(this.#timer);
    if (isShown) this.#ask();
    else this.#draw([]);
  }

  async #ask() {
    clearTimeout(this.#timer);
    if (document.hidden) return; // asked again when it is seen
    const api = this.#api();
    const zone = this.#zone;
    let againMs = AGAIN_MS;
    try {
      const { cells } = api && zone ? await api.ask(`zones/${encodeURIComponent(zone)}/heat`) : { cells: [] };
      if (this.#isShown && zone === this.#zone) this.#draw(cells);
    } catch (error) {
      // The link says that the server is away; the last picture stays until the next one.
      againMs = Math.max(AGAIN_MS, 1000 * (error.retryAfterS ?? 0));
    }
    if (this.#isShown && zone === this.#zone) this.#askIn(againMs);
  }

  #askIn(ms) {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#ask(), ms);
  }

  #draw(cells) {
    const L = globalThis.L;
    this.#layer?.remove();
    this.#layer = L.featureGroup().addTo(this.#map);
    for (const { boundary, asked, waiting, free_drivers: free } of cells) {
      const pressure = (asked + waiting) / Math.max(1, free);
      const level = LEVELS.filter((from) => pressure > from).length;
      const text = `${asked} asked in ten minutes, ${waiting} waiting, ${free} free drivers`;
      L.polygon(boundary, { className: `heat-cell level-${level}` })
        .bindTooltip(() => h("span", {}, text), { sticky: true }).addTo(this.#layer);
    }
  }
}
