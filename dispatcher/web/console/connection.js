// The socket: it says who it is by its first frame, watches one zone, and comes back when it is lost.

const FIRST_WAIT_MS = 500;
const MAX_WAIT_MS = 8000;
const UNAUTHORIZED = 4401;

/**
 * A socket that is opened again and again. `handlers` are `onView(frame)`, `onState(state, detail)`
 * with the states connecting, live and lost, and `onUnauthorized(message)`.
 */
export class Connection {
  #socket = null;
  #waitMs = FIRST_WAIT_MS;
  #timer = 0;
  #heartbeat = 0;
  #isClosed = false;

  constructor(token, handlers) {
    this.token = token;
    this.handlers = handlers;
    this.zone = null;
    this.refusal = null;
    addEventListener("online", () => this.#openSoon(0));
  }

  open() {
    if (this.#isClosed || this.#socket) return;
    this.handlers.onState("connecting");
    const url = new URL("ws", document.baseURI);
    url.protocol = url.protocol === "https:" ? "wss:" : "ws:";
    const socket = (this.#socket = new WebSocket(url));
    socket.onopen = () => this.#send({ type: "auth", token: this.token });
    socket.onmessage = (message) => this.#onFrame(JSON.parse(message.data));
    socket.onclose = (event) => this.#onClose(event);
  }

  /** From now on this zone is watched. */
  watch(zone) {
    this.zone = zone;
    if (this.#socket?.readyState === WebSocket.OPEN) this.#send({ type: "watch", zone, id: `watch ${zone}` });
  }

  close() {
    this.#isClosed = true;
    clearTimeout(this.#timer);
    clearInterval(this.#heartbeat);
    this.#socket?.close();
  }

  #send(frame) {
    this.#socket.send(JSON.stringify(frame));
  }

  #onFrame(frame) {
    if (frame.type === "welcome") {
      this.#waitMs = FIRST_WAIT_MS;
      clearInterval(this.#heartbeat);
      this.#heartbeat = setInterval(() => this.#send({ type: "heartbeat" }), frame.heartbeat_s * 1000);
      if (this.zone) this.watch(this.zone);
      this.handlers.onState("live");
    } else if (frame.type === "zone_view") {
      if (frame.zone === this.zone) this.handlers.onView(frame);
    } else if (frame.type === "error") {
      this.refusal = frame.message;
    }
  }

  #onClose(event) {
    clearInterval(this.#heartbeat);
    this.#socket = null;
    if (this.#isClosed) return;
    if (event.code === UNAUTHORIZED) {
      this.#isClosed = true;
      this.handlers.onUnauthorized(this.refusal ?? "The token has expired.");
      return;
    }
    // Screens that lost one server do not all come back at once.
    const waitMs = this.#waitMs * (0.5 + Math.random() / 2);
    this.#waitMs = Math.min(MAX_WAIT_MS, this.#waitMs * 2);
    this.handlers.onState("lost", event.code === 1012 ? "the server restarts" : null);
    this.#openSoon(waitMs);
  }

  #openSoon(waitMs) {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.open(), waitMs);
  }
}
