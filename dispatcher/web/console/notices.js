// Short notices, and dialogs that ask before anything is done.

import { byId, h } from "./dom.js";
import { mayPass, newKey, Refused, Unanswered } from "./api.js";
import { problemText } from "./words.js";

const SHOWN_MS = 6000;

/** Says something for some seconds; errors stay twice as long. */
export function notify(text, isError = false) {
  const notice = h("p", { class: isError ? "notice error" : "notice" }, text);
  byId("notices").append(notice);
  setTimeout(() => notice.remove(), isError ? 2 * SHOWN_MS : SHOWN_MS);
}

/** What went wrong with a call, in a sentence. What is no call's fault is raised again. */
export function faultText(error) {
  if (error instanceof Refused) return problemText(error.problem);
  if (error instanceof Unanswered) return "The server did not answer.";
  throw error;
}

/**
 * Asks, and does it when confirmed. `fields` are elements to fill in; `run(key)` does it and returns
 * what to say. One opening of the dialog is one intent, so it has one key until there is an answer:
 * what was sent may have been done, and a second click then learns of it.
 */
export function confirmAction({ title, text, fields = [], action, isDanger = false, isReady = () => true, run }) {
  const dialog = byId("confirm");
  const fault = h("p", { class: "fault", role: "alert" });
  const button = h("button", { class: isDanger ? "danger" : "primary", type: "submit" }, action);
  const form = h("form", { method: "dialog" },
    h("h2", { id: "confirm-title" }, title),
    h("p", {}, text),
    fields, fault,
    h("div", { class: "buttons" }, h("button", { type: "button", click: () => dialog.close() }, "Back"), button));
  let key = newKey();
  const check = () => { button.disabled = !isReady(); };
  form.addEventListener("input", () => {
    key = newKey(); // other fields are another intent
    fault.textContent = "";
    check();
  });
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    button.disabled = true;
    fault.textContent = "";
    try {
      const said = await run(key);
      dialog.close();
      notify(said);
    } catch (error) {
      fault.textContent = faultText(error);
      if (!mayPass(error)) key = newKey();
      check();
    }
  });
  dialog.replaceChildren(form);
  check();
  dialog.showModal();
}
