// The words and colours of states. Colours are Okabe and Ito's, which colour-blind people tell apart,
// and each state has a shape of its own as well.

/** States of drivers, as frames name them, in the order of lists. */
export const DRIVER_STATES = {
  offered: { label: "Offered a trip", shape: "ring", color: { light: "#c77700", dark: "#f0b429" } },
  to_pickup: { label: "To pickup", shape: "diamond", color: { light: "#0067ab", dark: "#5fb4f0" } },
  at_pickup: { label: "At pickup", shape: "square", color: { light: "#7a4ea3", dark: "#c3a2ee" } },
  riding: { label: "Riding", shape: "triangle", color: { light: "#b1417f", dark: "#f08cc0" } },
  free: { label: "Free", shape: "circle", color: { light: "#00845f", dark: "#2fd2a0" } },
  unavailable: { label: "On a break", shape: "hollow", color: { light: "#66707b", dark: "#8d99a6" } },
  stale: { label: "Old position", shape: "cross", color: { light: "#66707b", dark: "#8d99a6" } },
  offline: { label: "Offline", shape: "hollow", color: { light: "#66707b", dark: "#8d99a6" } },
};

/** States of trips. */
export const TRIP_STATES = {
  pending: { label: "Waiting", shape: "pickup", color: { light: "#c23b00", dark: "#ff8a50" } },
  accepted: { label: "To pickup", shape: "diamond", color: DRIVER_STATES.to_pickup.color },
  arrived: { label: "At pickup", shape: "square", color: DRIVER_STATES.at_pickup.color },
  ongoing: { label: "Riding", shape: "triangle", color: DRIVER_STATES.riding.color },
  completed: { label: "Completed", shape: "circle", color: { light: "#66707b", dark: "#8d99a6" } },
  cancelled: { label: "Cancelled", shape: "cross", color: { light: "#66707b", dark: "#8d99a6" } },
  expired: { label: "Expired", shape: "cross", color: { light: "#c23b00", dark: "#ff8a50" } },
};

/** What keeps offers from a driver, in words: the codes of dispatcher/core/obstacles.py that are of the driver alone. */
export const OBSTACLES = {
  offline: "They are offline.",
  unavailable: "They are on a break: online, but not available.",
  active_trip: "They have a trip.",
  no_position: "They have sent no position yet.",
  stale_position: "Their last position is too old.",
  not_present: "Their app is not connected: no sign of life in time.",
  enough_offers: "They hold as many open offers as the zone allows.",
};

/** What became of an offer, in words. */
export const OUTCOMES = {
  open: "is open",
  accepted: "was accepted",
  declined: "was declined",
  expired: "was let pass",
  withdrawn: "was withdrawn",
};

const EVENTS = {
  created: "Created",
  accepted: "Accepted",
  arrived: "Driver at the pickup",
  started: "Ride started",
  completed: "Completed",
  released: "Given back",
  cancelled: "Cancelled",
  expired: "Expired: no driver was found",
};

/** An event of a trip's history, in words. */
export function eventTitle(event) {
  if (event.event === "accepted" && event.actor_role === "admin") return "Assigned";
  if (event.event === "released" && event.payload?.reason === "driver_offline") {
    return event.actor_role === "driver" ? "Given back: went offline" : "Taken back: driver offline";
  }
  if (event.event === "completed" && event.actor_role !== "driver") return "Ended without the driver";
  return EVENTS[event.event] ?? event.event;
}

const SCORE_PARTS = {
  way_s: "way",
  waiting_s: "the trip's waiting",
  idle_s: "the driver's time without a trip",
  turned_down_s: "offers turned down",
  open_offers_s: "other open offers",
};

/** What a score is made of, and the drivers who came next; a place in a queue; null where neither decided. */
export function scoreText(score) {
  if (!score) return null;
  if (score.queue) return `number ${score.position} in the queue ${score.queue}`;
  const parts = Object.entries(SCORE_PARTS).filter(([name]) => score[name]).map(([name, text]) => `${text} ${score[name].toFixed(1)} s`);
  const next = score.next.map((other) => `${other.driver_id} ${other.total_s.toFixed(1)} s`);
  return [parts.join(", "), next.length ? `next: ${next.join(", ")}` : ""].filter(Boolean).join("; ");
}

/** Sentences for refusals that speak to the driver, as an operator needs them. */
const REFUSALS = {
  driver_not_online: "The driver is not online in the trip's zone.",
  driver_not_available: "The driver is on a break or has a trip.",
  trip_already_assigned: "Another driver has this trip already.",
};

/** A problem as an operator reads it. */
export function problemText(problem) {
  return REFUSALS[problem.response_code] ?? problem.message ?? "It did not work.";
}
