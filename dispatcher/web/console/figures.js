// The bar of figures, and a sentence of them for screen readers now and then.

import { byId, h, setText } from "./dom.js";
import { seconds, span } from "./format.js";

const SPOKEN_MS = 30_000;
const sum = (counts) => Object.values(counts ?? {}).reduce((a, b) => a + b, 0);
const engine = (f, name) => (f.engines?.[name] === "ok" ? `${f.engines[`${name}_ms`] ?? "–"} ms` : f.engines?.[name] ?? "–");

/** Each figure: name, what it means, its value, and whether somebody should look. */
const FIGURES = [
  ["Waiting", "Trips that wait for a driver", (f) => f.trips.pending],
  ["To pickup", "Trips whose driver is on the way to the pickup", (f) => f.trips.accepted],
  ["At pickup", "Trips whose driver is there", (f) => f.trips.arrived],
  ["Riding", "Trips that are under way", (f) => f.trips.ongoing],
  ["Offers", "Offers that drivers may still take", (f) => f.offers],
  ["Free", "Drivers who may be offered a trip now, of all on the map", (f) => `${(f.drivers.free ?? 0) + (f.drivers.offered ?? 0)} / ${sum(f.drivers)}`],
  ["Accepts", "Trips taken in a second, over the last 10 s", (f) => `${f.accepts_per_s.toFixed(1)}/s`],
  ["Assigned in", "From the request to a driver, half and 95 % of trips of the last 5 minutes", (f) => `${seconds(f.wait_p50_s)} · ${seconds(f.wait_p95_s)}`],
  ["Drift", "Trips that Redis and Postgres disagree on for more than 3 s; 0 is right", (f) => f.drift, (f) => f.drift > 0],
  ["Redis", "Redis' answer to a look at the zone", (f) => engine(f, "redis"), (f) => f.engines?.redis !== "ok"],
  ["Postgres", "Postgres' answer to the same", (f) => engine(f, "postgres"), (f) => f.engines?.postgres !== "ok"],
  ["Ended", "Trips completed, and cancelled or expired, in the last 5 minutes", (f) => `${f.ended.completed ?? 0} · ${(f.ended.cancelled ?? 0) + (f.ended.expired ?? 0)}`],
  ["Refused", "Changes that this server refused since you look: losers of races, mostly", (f) => f.refused],
  ["Limited", "Calls that this server turned away by a rate limit since you look", (f) => f.limited],
];

const STALE_MS = 5000;
const ENGINES = { redis: "Redis", postgres: "Postgres" };

/** What keeps the city from being as it is now, in words; empty where nothing does. */
export function staleText(city, now) {
  if (!city.seenAt) return "";
  const silentMs = now - city.seenAt;
  const isAlone = city.decidedBy === "postgres";
  if (silentMs > STALE_MS) return `No news for ${span(silentMs / 1000)}`;
  if (!isAlone && city.ageMs !== null && city.ageMs + silentMs <= STALE_MS) return "";
  const faults = Object.entries(ENGINES)
    .filter(([name]) => (city.figures.engines[name] ?? "ok") !== "ok")
    .map(([name, text]) => `${text} is ${city.figures.engines[name].replaceAll("_", " ")}`);
  const picture = city.ageMs === null ? "No picture yet" : `Picture of ${span((city.ageMs + silentMs) / 1000)} ago`;
  return `${picture}${faults.length || isAlone ? ": " : ""}${[...faults, ...(isAlone ? ["Postgres decides"] : [])].join(", ")}`;
}

/** Shows the figures of a city as they come. */
export function showFigures(city) {
  const cells = FIGURES.map(([name, meaning]) => {
    const value = h("dd", {}, "–");
    byId("figures").append(h("div", { class: "figure", title: meaning }, h("dt", {}, name), value));
    return value;
  });
  let spokenAt = 0;
  city.addEventListener("change", () => {
    const figures = city.figures;
    FIGURES.forEach(([, , valueOf, isBad], i) => {
      setText(cells[i], figures ? String(valueOf(figures)) : "–");
      cells[i].parentElement.classList.toggle("bad", Boolean(figures && isBad?.(figures)));
    });
    if (!figures || performance.now() - spokenAt < SPOKEN_MS) return;
    spokenAt = performance.now();
    setText(byId("summary"), `${figures.trips.pending} trips wait, ${figures.trips.ongoing} are under way, ${figures.drivers.free ?? 0} of ${sum(figures.drivers)} drivers are free.`);
  });
}
