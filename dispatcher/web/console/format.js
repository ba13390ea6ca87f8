// Times, distances and ids as people read them.

const clock = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit", hour12: false });
const day = new Intl.DateTimeFormat(undefined, { dateStyle: "medium" });

/** The time of day of an RFC 3339 text. */
export function timeOf(text) {
  return text ? clock.format(new Date(text)) : "";
}

/** The time of day, with the day where it is not today. */
export function momentOf(text) {
  if (!text) return "";
  const at = new Date(text);
  const isToday = at.toDateString() === new Date().toDateString();
  return isToday ? clock.format(at) : `${day.format(at)}, ${clock.format(at)}`;
}

/** A span of seconds in two units at most: 8 s, 2 min 5 s, 3 h 10 min. */
export function span(seconds) {
  const s = Math.max(0, Math.round(seconds));
  if (s < 60) return `${s} s`;
  if (s < 3600) return s % 60 && s < 600 ? `${Math.floor(s / 60)} min ${s % 60} s` : `${Math.floor(s / 60)} min`;
  if (s < 86400) return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
  return `${Math.floor(s / 86400)} d`;
}

/** A span that may be short: in milliseconds below a second. */
export function lapse(since, until) {
  const ms = Math.max(0, new Date(until) - new Date(since));
  return ms < 1000 ? `${ms} ms` : ms < 10_000 ? `${(ms / 1000).toFixed(1)} s` : span(ms / 1000);
}

/** How long ago an RFC 3339 text was, by this machine's clock. */
export function since(text) {
  return span((Date.now() - new Date(text).getTime()) / 1000);
}

/** Metres as metres or kilometres. */
export function metres(m) {
  if (m === null || m === undefined) return "";
  return m < 950 ? `${Math.round(m)} m` : `${(m / 1000).toFixed(1)} km`;
}

/** Seconds to a tenth. */
export function seconds(s) {
  return s === null || s === undefined ? "–" : s < 100 ? `${s.toFixed(1)} s` : span(s);
}

/** A long id with its middle left out; the beginning tells the zone, the end tells it apart. */
export function shortId(id) {
  return id.length <= 28 ? id : `${id.slice(0, 14)}…${id.slice(-11)}`;
}

/** Distance in metres between two [lat, lng]. */
export function distance(a, b) {
  const rad = Math.PI / 180;
  const dLat = (b[0] - a[0]) * rad;
  const dLng = (b[1] - a[1]) * rad;
  const x = Math.sin(dLat / 2) ** 2 + Math.cos(a[0] * rad) * Math.cos(b[0] * rad) * Math.sin(dLng / 2) ** 2;
  return 2 * 6371000 * Math.asin(Math.sqrt(x));
}
