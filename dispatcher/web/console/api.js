// The admin API: questions, and changes with a key that is made once for each intent.

/** A call that was refused; `problem` is the answer's body, `retryAfterS` what the answer asks to wait for. */
export class Refused extends Error {
  constructor(problem, retryAfterS = 0) {
    super(problem.message);
    this.problem = problem;
    this.retryAfterS = retryAfterS;
  }
}

/** A call that got no answer: the server is away, or the network. */
export class Unanswered extends Error {}

/** Refusals of what may be under way, or have been done, or be done in a moment. */
const PASSING_CODES = new Set(["request_in_progress", "trip_busy", "request_timeout"]);

/** Whether asking the same again may be answered otherwise: nothing that was answered has settled it. */
export function mayPass(error) {
  if (error instanceof Unanswered) return true;
  return error instanceof Refused && (error.problem.status === 429 || error.problem.status >= 500 || PASSING_CODES.has(error.problem.response_code));
}

/** Sends calls with a token. `onUnauthorized(message)` hears that the token is refused. */
export class Api {
  constructor(token, onUnauthorized) {
    this.token = token;
    this.onUnauthorized = onUnauthorized;
  }

  /** The answer to a question. Raises Refused, Unanswered. */
  get(path, parameters = {}) {
    const given = Object.entries(parameters).filter(([, value]) => value !== null && value !== undefined && value !== "");
    const query = new URLSearchParams(given).toString();
    return this.#send("GET", query ? `${path}?${query}` : path);
  }

  /** The answer to a question that drivers may ask as well. Raises as get does. */
  ask(path) {
    return this.#send("GET", path, undefined, undefined, "api");
  }

  /**
   * Makes a change. Whoever asks keeps the key of one intent, so that to ask again has no second
   * effect; lost connections and passing refusals are retried here.
   */
  async change(path, body, key) {
    for (let attempt = 0; ; attempt += 1) {
      try {
        return await this.#send("POST", path, body, key);
      } catch (error) {
        // Who is beyond a limit is told how long to wait: longer than a dialog stays.
        if (!mayPass(error) || error.problem?.status === 429 || attempt === 3) throw error;
        await new Promise((resolve) => setTimeout(resolve, 400 * 2 ** attempt * (0.5 + Math.random() / 2)));
      }
    }
  }

  async #send(method, path, body, key, root = "api/admin") {
    const headers = { Authorization: `Bearer ${this.token}` };
    if (body) headers["Content-Type"] = "application/json";
    if (key) headers["Idempotency-Key"] = key;
    let response;
    try {
      response = await fetch(`${root}/${path}`, {
        method, headers, body: body && JSON.stringify(body), cache: "no-store", credentials: "omit",
      });
    } catch {
      throw new Unanswered(path);
    }
    const answer = await response.json().catch(() => ({}));
    if (response.ok) return answer;
    const problem = { status: response.status, ...answer };
    if (response.status === 401) this.onUnauthorized(problem.message);
    throw new Refused(problem, Number(response.headers.get("Retry-After")) || 0);
  }
}

/** A fresh Idempotency-Key. */
export function newKey() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return `console-${Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("")}`;
}
