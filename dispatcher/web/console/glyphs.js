// The signs of states: drawn once for each state, size and theme, and stamped from then on.

import { DRIVER_STATES, TRIP_STATES } from "./words.js";

const GROUND = { light: "#ffffff", dark: "#10161d" };

/** The path of a shape around the origin. */
function trace(context, shape, r) {
  context.beginPath();
  if (shape === "diamond") {
    context.moveTo(0, -r * 1.25); context.lineTo(r * 1.25, 0); context.lineTo(0, r * 1.25); context.lineTo(-r * 1.25, 0);
    context.closePath();
  } else if (shape === "square") {
    context.rect(-r * 0.92, -r * 0.92, r * 1.84, r * 1.84);
  } else if (shape === "triangle") {
    context.moveTo(0, -r * 1.25); context.lineTo(r * 1.2, r * 0.9); context.lineTo(-r * 1.2, r * 0.9);
    context.closePath();
  } else if (shape === "cross") {
    context.moveTo(-r * 0.8, -r * 0.8); context.lineTo(r * 0.8, r * 0.8);
    context.moveTo(r * 0.8, -r * 0.8); context.lineTo(-r * 0.8, r * 0.8);
  } else {
    context.arc(0, 0, r, 0, 2 * Math.PI);
  }
}

function paint(context, { shape, color }, theme, r) {
  context.lineJoin = "round";
  context.lineCap = "round";
  if (shape === "cross" || shape === "hollow") {
    trace(context, shape, r * 0.85);
    context.strokeStyle = GROUND[theme];
    context.lineWidth = r * 0.95;
    context.stroke();
    context.strokeStyle = color[theme];
    context.lineWidth = r * 0.42;
    if (shape === "hollow") { context.fillStyle = GROUND[theme]; context.fill(); }
    context.stroke();
    return;
  }
  trace(context, shape, r);
  context.strokeStyle = GROUND[theme];
  context.lineWidth = r * 0.5;
  context.stroke();
  context.fillStyle = color[theme];
  context.fill();
  if (shape === "ring" || shape === "pickup") {
    context.beginPath();
    context.arc(0, 0, r * (shape === "ring" ? 0.45 : 0.42), 0, 2 * Math.PI);
    context.fillStyle = GROUND[theme];
    context.fill();
  }
  if (shape === "ring") {
    context.beginPath();
    context.arc(0, 0, r * 1.55, 0, 2 * Math.PI);
    context.strokeStyle = color[theme];
    context.lineWidth = r * 0.25;
    context.stroke();
  }
}

/** A canvas with the sign of a state, `r` the radius in CSS pixels. */
function stamp(style, theme, r, ratio) {
  const side = Math.ceil(r * 4.4);
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = side * ratio;
  const context = canvas.getContext("2d");
  context.scale(ratio, ratio);
  context.translate(side / 2, side / 2);
  paint(context, style, theme, r);
  return { canvas, side };
}

/** All signs of one theme and size. */
export function makeStamps(theme, r, ratio) {
  const of = (states, size) => Object.fromEntries(Object.entries(states).map(([name, style]) => [name, stamp(style, theme, size, ratio)]));
  return { drivers: of(DRIVER_STATES, r), trips: of(TRIP_STATES, r * 1.35) };
}

/** The sign as a small picture for lists and the legend; words beside it say the same. */
export function glyph(style, theme) {
  const ratio = Math.max(2, Math.ceil(devicePixelRatio));
  const { canvas } = stamp(style, theme, 5, ratio);
  canvas.className = "glyph";
  canvas.setAttribute("aria-hidden", "true");
  return canvas;
}
