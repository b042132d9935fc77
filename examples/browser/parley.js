// A chat turn that survives lost networks, closed laptops and reloads.
//
// What must survive is kept in `storage` (localStorage in a browser): the Idempotency-Key from before the first try
// of the POST, then the request's id, the cursor, and the text assembled so far. Whoever opens the page next goes on
// from there; no event is missed and none is applied twice.

const WAIT_SECONDS = 25;
const PAUSE_MS_MAX = 5000;
const TURN = "parley.turn";
const SESSION = "parley.session";

export class Refused extends Error {
  // Parley answered, and asking again would get the same answer. `code` is stable, the message is for people.
  constructor(status, problem) {
    super(problem.detail ?? `HTTP ${status}`);
    this.status = status;
    this.code = problem.code ?? "unknown";
  }
}

export class Parley {
  // `baseUrl` is empty where the page and Parley share an origin, as they should: the key stays on the server.
  constructor({ storage, baseUrl = "", fetch = globalThis.fetch.bind(globalThis), onRetry = () => {} }) {
    this.storage = storage;
    this.baseUrl = baseUrl;
    this.fetch = fetch;
    this.onRetry = onRetry;
  }

  // The turn that was under way when the page was left, or null.
  get turn() {
    return JSON.parse(this.storage.getItem(TURN) ?? "null");
  }

  // Begin a turn. `onText` is told the whole text whenever it changes. Resolves to the request as it ended.
  async ask(input, onText) {
    this.#save({ input, key: crypto.randomUUID(), sessionKey: crypto.randomUUID(), id: null, cursor: 0, text: "" });
    return await this.resume(onText);
  }

  // Go on with the turn in storage, from wherever it stands. The same code runs after a POST and after a reload.
  async resume(onText) {
    let turn = this.turn;
    if (turn === null) return null;
    try {
      if (turn.id === null) turn = await this.#post(turn);
      onText(turn.text);
      for (let closed = false; !closed; ) {
        const page = await this.#call(`/v1/requests/${turn.id}/events?after=${turn.cursor}&wait=${WAIT_SECONDS}`);
        turn = { ...turn, text: page.events.reduce(assemble, turn.text), cursor: page.next };
        // Text and cursor are saved together: what was applied is never asked for again.
        this.#save(turn);
        onText(turn.text);
        closed = page.closed;
      }
      const request = await this.#call(`/v1/requests/${turn.id}`);
      this.storage.removeItem(TURN);
      return request;
    } catch (error) {
      if (error instanceof Refused) this.#forget(error);
      throw error;
    }
  }

  async #post(turn) {
    let sessionId = this.storage.getItem(SESSION);
    if (sessionId === null) {
      sessionId = (await this.#call("/v1/sessions", {}, turn.sessionKey)).id;
      this.storage.setItem(SESSION, sessionId);
    }
    const { id } = await this.#call(`/v1/sessions/${sessionId}/requests`, { input: turn.input }, turn.key);
    const posted = { ...turn, id };
    this.#save(posted);
    return posted;
  }

  // One call, repeated until it is answered: every call here may be repeated.
  async #call(path, body, idempotencyKey) {
    const options = { method: body ? "POST" : "GET", headers: {}, body: body && JSON.stringify(body) };
    if (body) options.headers = { "Content-Type": "application/json", "Idempotency-Key": idempotencyKey };
    for (let pauseMs = 200; ; pauseMs = Math.min(pauseMs * 2, PAUSE_MS_MAX)) {
      let toldMs = 0;
      try {
        const signal = AbortSignal.timeout((WAIT_SECONDS + 10) * 1000);
        const response = await this.fetch(this.baseUrl + path, { ...options, signal });
        if (response.ok) return await response.json();
        if (response.status !== 429 && response.status < 500) throw new Refused(response.status, await response.json());
        toldMs = 1000 * (Number(response.headers.get("Retry-After")) || 0);
        this.onRetry(`HTTP ${response.status}`);
      } catch (error) {
        if (error instanceof Refused) throw error;
        this.onRetry(error.name);
      }
      await pause(Math.max(toldMs, pauseMs * (0.5 + Math.random() / 2)));
    }
  }

  #forget(refusal) {
    this.storage.removeItem(TURN);
    if (refusal.code === "session_not_found") this.storage.removeItem(SESSION);
  }

  #save(turn) {
    this.storage.setItem(TURN, JSON.stringify(turn));
  }
}

function assemble(text, event) {
  if (event.type === "output.superseded") return "";
  return event.type === "output.delta" || event.type === "refusal.delta" ? text + event.data.text : text;
}

// A pause that ends early when the browser says that the network is back.
function pause(ms) {
  return new Promise((resolve) => {
    const timer = setTimeout(done, ms);
    globalThis.addEventListener?.("online", done);
    function done() {
      clearTimeout(timer);
      globalThis.removeEventListener?.("online", done);
      resolve();
    }
  });
}
