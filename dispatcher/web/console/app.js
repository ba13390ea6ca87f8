// The console: signs in, watches a zone, and shows its map, figures, lists and pages.

import { Api } from "./api.js";
import { City } from "./city.js";
import { Connection } from "./connection.js";
import { byId, h, setText } from "./dom.js";
import { showFigures, staleText } from "./figures.js";
import { glyph } from "./glyphs.js";
import { DriverList, TripList } from "./lists.js";
import { HeatLayer } from "./heat.js";
import { CityMap } from "./map.js";
import { faultText, notify } from "./notices.js";
import { DriverPage, TripPage } from "./pages.js";
import { faultOf, forgetToken, keepToken, takeToken } from "./session.js";
import { DRIVER_STATES, TRIP_STATES } from "./words.js";

const THEMES = ["system", "light", "dark"];
const dark = matchMedia("(prefers-color-scheme: dark)");
const stillness = matchMedia("(prefers-reduced-motion: reduce)");

const city = new City();
/** What lists and pages share. */
const context = { city, api: null, theme: "light" };
let connection = null;
let map = null;
let heat = null;
let page = null;
const lists = { trips: new TripList(context), drivers: new DriverList(context) };
const view = h("div", { class: "view" });

// --- theme

function applyTheme() {
  const chosen = localStorage.getItem("dispatcher.theme") ?? "system";
  context.theme = chosen === "system" ? (dark.matches ? "dark" : "light") : chosen;
  document.documentElement.dataset.theme = context.theme;
  setText(byId("theme"), { system: "Auto", light: "Light", dark: "Dark" }[chosen]);
  byId("theme").title = "Colours: as the system has them, light or dark";
  map?.setTheme(context.theme);
  showLegend();
  for (const list of Object.values(lists)) list.update();
  page?.refresh();
}

function nextTheme() {
  const chosen = localStorage.getItem("dispatcher.theme") ?? "system";
  localStorage.setItem("dispatcher.theme", THEMES[(THEMES.indexOf(chosen) + 1) % THEMES.length]);
  applyTheme();
}

function showLegend() {
  const { offline, ...onTheMap } = DRIVER_STATES;
  const entries = [TRIP_STATES.pending, ...Object.values(onTheMap)];
  const labels = entries.map((style, i) => h("li", {}, glyph(style, context.theme), i ? style.label : "Trip waiting"));
  const line = h("li", {}, h("span", { class: "dashes", "aria-hidden": "true" }), "Offer out");
  byId("legend").replaceChildren(byId("legend").querySelector("summary"), h("ul", {}, labels, line));
}

// --- the panel

function tabs(current) {
  return h("nav", { class: "tabs", "aria-label": "Lists" }, [["trips", "Trips"], ["drivers", "Drivers"]].map(([name, text]) =>
    h("a", { href: `#/${name}`, "aria-current": name === current ? "page" : false }, text)));
}

/** Text of an address; null where its escapes are broken, as of a link that was cut off. */
function readable(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return null;
  }
}

/** Shows what the address names: #/trips, #/drivers, #/trip/ID or #/driver/ID. */
function route({ isFirst = false } = {}) {
  const [, kind = "trips", id] = /^#\/(\w+)(?:\/(.+))?$/.exec(location.hash) ?? [];
  page?.close();
  page = null;
  const named = id && readable(id);
  if (named && (kind === "trip" || kind === "driver")) {
    page = new (kind === "trip" ? TripPage : DriverPage)(context, named);
    page.refresh();
    view.replaceChildren(tabs(`${kind}s`), page.element);
    if (!isFirst) page.heading.focus({ preventScroll: true });
  } else {
    const name = kind === "drivers" ? "drivers" : "trips";
    view.replaceChildren(tabs(name), lists[name].element);
    lists[name].update();
  }
  byId("panel").scrollTop = 0;
  map.select(page?.selected, { reveal: true });
}

// --- the link to the server

let wasLost = false;

function onLink(state, detail) {
  if (state === "lost") wasLost = true;
  else if (state === "live" && wasLost) {
    wasLost = false;
    page?.refresh(); // what has changed meanwhile, no frame tells
  }
  const link = byId("link");
  link.dataset.state = state;
  setText(link, { connecting: "Connecting …", live: "Live", lost: `Reconnecting …${detail ? ` (${detail})` : ""}` }[state]);
}

/** A picture that is old says so, whether the server is silent or what it samples is away. */
function watchAge() {
  const link = byId("link");
  if (link.dataset.state !== "live" && link.dataset.state !== "stale") return;
  const text = staleText(city, performance.now());
  if (text) {
    link.dataset.state = "stale";
    link.title = city.decidedBy === "postgres" ? "Trips are as Postgres has them now, drivers and offers as they were then" : "";
    setText(link, text);
  } else if (link.dataset.state === "stale") {
    link.title = "";
    onLink("live");
  }
}

function signOut(message) {
  connection?.close();
  connection = null;
  context.api = null;
  forgetToken();
  onLinkOff();
  askToken(message);
}

function onLinkOff() {
  byId("link").dataset.state = "off";
  setText(byId("link"), "Signed out");
}

async function signIn(token) {
  context.api = new Api(token, signOut);
  let found;
  try {
    found = await context.api.get("zones");
  } catch (error) {
    if (!context.api) return; // refused, and asked for anew
    if (error.problem?.status === 403) {
      signOut("The console takes a token of the role admin.");
      return;
    }
    onLink("lost", error.problem?.status === 429 ? faultText(error) : null);
    const { api } = context;
    setTimeout(() => context.api === api && signIn(token), Math.max(1500, 1000 * (error.retryAfterS ?? 0)));
    return;
  }
  byId("sign-in").close();
  map.setTiles(found.map.tile_url, found.map.attribution);
  connection = new Connection(token, { onView: (frame) => city.take(frame), onState: onLink, onUnauthorized: signOut });
  showZones(found.zones);
  connection.open();
  route({ isFirst: true });
}

function showZones(zones) {
  const select = byId("zone");
  select.replaceChildren(...zones.map((zone) => h("option", { value: zone.name }, zone.name)));
  const kept = sessionStorage.getItem("dispatcher.zone");
  if (zones.some((zone) => zone.name === kept)) select.value = kept;
  select.onchange = () => {
    sessionStorage.setItem("dispatcher.zone", select.value);
    city.clear(select.value);
    map.setZones(zones, select.value);
    heat.watch(select.value);
    connection.watch(select.value);
  };
  select.onchange();
}

function askToken(message) {
  const dialog = byId("sign-in");
  const input = h("input", { name: "token", type: "password", required: true, autocomplete: "off", spellcheck: "false", "aria-describedby": "token-help" });
  const fault = h("p", { class: "fault", role: "alert" }, message ?? "");
  const form = h("form", {},
    h("h2", { id: "sign-in-title" }, "Sign in"),
    h("p", { id: "token-help" }, "With a token of the role admin. It stays in this tab. For development, this prints one:"),
    h("pre", {}, "dispatcher token --role admin --sub you"),
    h("label", {}, "Token", input), fault,
    h("div", { class: "buttons" }, h("button", { class: "primary", type: "submit" }, "Sign in")));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const token = input.value.trim();
    fault.textContent = faultOf(token) ?? "";
    if (fault.textContent) return;
    keepToken(token);
    signIn(token);
  });
  dialog.replaceChildren(form);
  dialog.oncancel = (event) => event.preventDefault();
  if (!dialog.open) dialog.showModal();
}

// --- begin

function glide() {
  city.glideMs = stillness.matches ? 0 : 1000;
}

function begin() {
  const token = takeToken();
  map = new CityMap(byId("map"), byId("hint"), city, (kind, id) => { location.hash = `#/${kind}/${encodeURIComponent(id)}`; });
  heat = new HeatLayer(map.leaflet, byId("heat"), () => context.api);
  if (matchMedia("(max-width: 760px)").matches) byId("legend").open = false;
  glide();
  applyTheme();
  showFigures(city);
  byId("panel").append(view);
  dark.addEventListener("change", applyTheme);
  stillness.addEventListener("change", glide);
  byId("theme").addEventListener("click", nextTheme);
  byId("sign-out").addEventListener("click", () => signOut());
  addEventListener("hashchange", () => {
    if (location.hash.startsWith("#token=")) {
      location.reload(); // a link was opened in this tab
      return;
    }
    if (context.api) route();
  });
  city.addEventListener("change", (event) => {
    if (page) page.onChange(event.detail);
    else for (const list of Object.values(lists)) list.update();
    watchAge();
  });
  setInterval(watchAge, 1000);
  addEventListener("unhandledrejection", (event) => notify(`Something went wrong in this page: ${event.reason?.message ?? event.reason}`, true));
  const fault = token && faultOf(token);
  if (token && !fault) signIn(token);
  else askToken(fault ?? undefined);
}

begin();
