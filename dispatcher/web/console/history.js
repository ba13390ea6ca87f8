// A trip's history: what Postgres holds of its events and offers, in the order of time.

import { h } from "./dom.js";
import { lapse, metres, shortId, timeOf } from "./format.js";
import { eventTitle } from "./words.js";

const driverLink = (id) => h("a", { class: "id", href: `#/driver/${encodeURIComponent(id)}`, title: id }, shortId(id));

/** Waves of offers: those of one number that went out together. */
function wavesOf(offers) {
  const waves = new Map();
  for (const offer of offers) {
    if (offer.wave === 0) continue; // declined without having been offered
    const name = `${offer.wave} ${offer.offered_at}`;
    if (!waves.has(name)) waves.set(name, { at: offer.offered_at, wave: offer.wave, offers: [] });
    waves.get(name).offers.push(offer);
  }
  return [...waves.values()];
}

const LATER = {
  declined: "declined",
  expired: "let the offer pass",
};

/** What happened, one entry each: events, waves, and what drivers did with their offers. */
function entriesOf(trip, events, offers) {
  const entries = events.map((event) => ({ at: event.created_at, rank: event.event === "created" ? 0 : 3, event }));
  for (const wave of wavesOf(offers)) entries.push({ at: wave.at, rank: 1, wave });
  for (const offer of offers) if (LATER[offer.outcome]) entries.push({ at: offer.outcome_at ?? offer.offered_at, rank: 2, offer });
  return entries.sort((a, b) => a.at.localeCompare(b.at) || a.rank - b.rank || (a.event?.version ?? 0) - (b.event?.version ?? 0));
}

const listed = (items) => items.map((item, i) => [i ? ", " : "", item]);

/** Who won and why: how fast, who tried as well and came too late, and who else held an offer then. */
function raceText(event, offers, races) {
  const winner = event.payload.driver_id;
  const lost = races.filter((race) => race.version === event.version);
  const tried = new Set([winner, ...lost.map((race) => race.driver_id)]);
  const idle = offers.filter((offer) => offer.outcome === "withdrawn" && !tried.has(offer.driver_id)
    && offer.offered_at <= event.created_at && offer.outcome_at >= event.created_at && (!offer.deadline || offer.deadline > event.created_at));
  const mine = offers.findLast((offer) => offer.driver_id === winner && ["accepted", "open"].includes(offer.outcome) && offer.offered_at <= event.created_at);
  const first = event.actor_role === "admin" ? "An operator chose them."
    : mine ? `The first to accept, ${lapse(mine.offered_at, event.created_at)} after the offer of wave ${mine.wave}.` : "The first to accept, without an offer.";
  return [
    first,
    lost.length > 0 && [" Too late: ", listed(lost.map((race) => h("span", { data: { race: race.driver_id } }, driverLink(race.driver_id), ` by ${lapse(event.created_at, race.tried_at)}`))), "."],
    idle.length > 0 && [" Withdrawn from: ", listed(idle.map((offer) => driverLink(offer.driver_id))), "."],
  ];
}

function eventDetail(event, offers, races) {
  const { payload, actor_id: actor, actor_role: role } = event;
  const by = role === "system" ? "by the dispatcher" : [`by ${role} `, role === "driver" ? driverLink(actor) : h("span", { class: "id" }, actor)];
  const detail = [h("span", { class: "faint" }, by)];
  if (event.event === "accepted") detail.push(h("p", {}, role === "driver" ? null : ["Driver ", driverLink(payload.driver_id), ". "], raceText(event, offers, races)));
  if (event.event === "released" && payload.former_driver) detail.push(h("p", {}, "From driver ", driverLink(payload.former_driver), "."));
  if (payload.reason && payload.reason !== "driver_offline") detail.push(h("p", {}, "Reason: ", h("q", {}, payload.reason)));
  return detail;
}

/** The history as a list. */
export function historyOf(trip, events, offers, races) {
  return h("ol", { class: "history" }, entriesOf(trip, events, offers).map((entry) => {
    const time = h("time", { datetime: entry.at, title: entry.at }, timeOf(entry.at), h("span", { class: "faint" }, ` +${lapse(trip.created_at, entry.at)}`));
    if (entry.event) {
      return h("li", { data: { kind: "event", event: entry.event.event, version: entry.event.version } },
        time, h("strong", {}, eventTitle(entry.event)), " ", eventDetail(entry.event, offers, races));
    }
    if (entry.wave) {
      const asked = entry.wave.offers.map((offer, i) => [i ? ", " : "", driverLink(offer.driver_id), h("span", { class: "faint" }, ` ${metres(offer.distance_m)}`)]);
      return h("li", { data: { kind: "wave" } }, time, h("strong", {}, `Wave ${entry.wave.wave}`), ` asked ${entry.wave.offers.length}: `, asked);
    }
    return h("li", { data: { kind: "offer" } }, time, driverLink(entry.offer.driver_id), ` ${LATER[entry.offer.outcome]}`);
  }));
}
