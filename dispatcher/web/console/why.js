// What keeps a driver from a trip: asked on the trip's page, answered filter by filter.

import { h } from "./dom.js";
import { faultText } from "./notices.js";
import { scoreText } from "./words.js";

const MARKS = new Map([[true, ["✓", "passes"]], [false, ["✕", "keeps it away"]], [null, ["?", "could not be asked"]]]);

/** The question of one trip's page. It outlives the page's readings, so that an answer stays. */
export class Why {
  constructor(api, tripId) {
    this.api = api;
    this.tripId = tripId;
    this.input = h("input", { name: "driver", required: true, autocomplete: "off", spellcheck: "false", maxlength: 64, "aria-label": "Driver" });
    this.answer = h("div", { "aria-live": "polite", data: { part: "why" } });
    this.element = h("section", {},
      h("h3", {}, "Why not this driver?"),
      h("form", { class: "inline", submit: (event) => { event.preventDefault(); this.#ask(); } },
        this.input, h("button", { type: "submit", data: { action: "why" } }, "Explain")),
      this.answer);
  }

  async #ask() {
    const driver = this.input.value.trim();
    this.answer.replaceChildren(h("p", { class: "faint" }, "Asking …"));
    try {
      const { verdict, filters, score, history } = await this.api.get("why", { trip: this.tripId, driver });
      this.answer.replaceChildren(
        h("p", { data: { verdict: verdict.codes.join(" ") } }, h("strong", {}, driver), `: ${verdict.text}.`),
        h("ul", { class: "filters" }, filters.map(({ filter, passes, saw }) => {
          const [mark, said] = MARKS.get(passes);
          return h("li", { data: { filter, passes: String(passes) } }, h("span", { class: "mark", role: "img", "aria-label": said }, mark), ` ${saw}`);
        })),
        score ? h("p", { data: { part: "score" } }, score.queue ? "Asked by the queue: " : `Score ${score.total_s.toFixed(1)} s: `, scoreText(score), ".") : "",
        history.length ? h("ul", { class: "plain" }, history.map(({ text }) => h("li", {}, text))) : "");
    } catch (error) {
      this.answer.replaceChildren(h("p", { class: "fault", role: "alert" }, faultText(error)));
    }
  }
}
