// What an operator may do, each after a question.

import { h } from "./dom.js";
import { distance, metres } from "./format.js";
import { confirmAction } from "./notices.js";

const MAX_NEAR = 6;

export function askCancel(api, trip, done) {
  const reason = h("input", { name: "reason", maxlength: 500, autocomplete: "off" });
  confirmAction({
    title: "Cancel this trip?",
    text: `${trip.id} ends for good. Its customer${trip.driver_id ? ` and driver ${trip.driver_id} are` : " is"} told.`,
    fields: [h("label", {}, "Reason", reason)],
    action: "Cancel the trip",
    isDanger: true,
    async run(key) {
      await api.change("ride/cancel", { trip_request_id: trip.id, version: trip.version, reason: reason.value.trim() || null }, key);
      done();
      return "The trip is cancelled.";
    },
  });
}

export function askEnd(api, trip, done) {
  const reason = h("input", { name: "reason", maxlength: 500, autocomplete: "off" });
  confirmAction({
    title: "End this ride?",
    text: `${trip.id} counts as completed, and ${trip.driver_id} is free again. For a ride whose driver has vanished.`,
    fields: [h("label", {}, "Reason", reason)],
    action: "End the ride",
    isDanger: true,
    async run(key) {
      await api.change("ride/end", { trip_request_id: trip.id, version: trip.version, reason: reason.value.trim() || null }, key);
      done();
      return "The ride is ended.";
    },
  });
}

export function askForceOffline(api, driver, done) {
  confirmAction({
    title: "Force this driver offline?",
    text: `${driver.user_id} gets no more offers until they go online again. A trip that has not started is taken back and offered to others; one that is under way stays theirs.`,
    action: "Force offline",
    isDanger: true,
    async run(key) {
      const { released_trip: released } = await api.change("driver/offline", { driver_id: driver.user_id }, key);
      done();
      return released ? `${driver.user_id} is offline; ${released.id} waits for another driver.` : `${driver.user_id} is offline.`;
    },
  });
}

/** Free drivers of the right vehicle, nearest to the pickup first. */
function nearest(city, trip) {
  const pickup = [trip.pickup.lat, trip.pickup.lng];
  return [...city.drivers.values()]
    .filter((driver) => (driver.state === "free" || driver.state === "offered") && driver.vehicle === trip.vehicle_type)
    .map((driver) => ({ id: driver.id, m: distance(pickup, [driver.lat, driver.lng]) }))
    .sort((a, b) => a.m - b.m)
    .slice(0, MAX_NEAR);
}

export function askOffer(api, city, trip, done) {
  const { input, fields } = driverFields(city, trip);
  confirmAction({
    title: "Offer this trip?",
    text: `${trip.id} is offered to the driver as a wave of its own. Offers that are out stay; the next wave follows when this one has ended. The offer says that you made it.`,
    fields,
    action: "Offer",
    isReady: () => input.value.trim() !== "",
    async run(key) {
      const driver = input.value.trim();
      await api.change("ride/offer", { trip_request_id: trip.id, driver_id: driver }, key);
      done();
      return `${driver} is asked.`;
    },
  });
}

/** A field for a driver's id, and the nearest to choose from. */
function driverFields(city, trip) {
  const input = h("input", { name: "driver", required: true, autocomplete: "off", spellcheck: "false", maxlength: 64 });
  const near = nearest(city, trip).map(({ id, m }) =>
    h("button", {
      type: "button", class: "choice",
      click: () => { input.value = id; input.dispatchEvent(new Event("input", { bubbles: true })); input.focus(); },
    }, h("span", { class: "id" }, id), h("span", {}, metres(m))));
  const choices = near.length
    ? h("div", { class: "choices", role: "group", "aria-label": "Free drivers, nearest first" }, near)
    : h("p", { class: "faint" }, "No free driver is on the map.");
  return { input, fields: [h("label", {}, "Driver", input), choices] };
}

export function askAssign(api, city, trip, done) {
  const { input, fields } = driverFields(city, trip);
  confirmAction({
    title: "Assign this trip?",
    text: `${trip.id} becomes the driver's at once, without being offered, as if they had accepted; the history says that you did it.`,
    fields,
    action: "Assign",
    isReady: () => input.value.trim() !== "",
    async run(key) {
      const driver = input.value.trim();
      await api.change("ride/assign", { trip_request_id: trip.id, driver_id: driver, version: trip.version }, key);
      done();
      return `${driver} has the trip.`;
    },
  });
}
