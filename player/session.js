// One WebRTC session over HTTP, as WHIP (RFC 9725) and WHEP share it: POST an offer, apply the answer, watch the
// connection, DELETE at the end, and begin again by itself when it breaks. What is sent or received is the subclasses'
// business (`whip.js`, `whep.js`).
//
// The gateway puts all its candidates into the answer and learns ours from our connectivity checks (ICE-lite), so the
// offer leaves at once: no waiting for candidates, no trickle. Gathering begins when the answer has named the STUN and
// TURN servers (RFC 9725 §4.6). When the path breaks, ICE restarts (§4.3.3) before the session is given up.

/** Delays between attempts, in milliseconds: full jitter under an exponential ceiling. */
const BACKOFF = { first: 300, factor: 1.6, ceiling: 10_000 };
/** How long the gateway may take to answer an offer. */
const ANSWER_WITHIN = 10_000;
/** How long ICE and DTLS may take after the answer. */
const CONNECT_WITHIN = 10_000;
/** How long a connection may be `disconnected` before it is given up: enough for an ICE restart over a new network. */
const DISCONNECTED_FOR = 6_000;
/** Between restarts of ICE while it is, in milliseconds; and where the gateway could not even be asked, at most. */
const RESTART_EVERY = 2_000;
const ASK_AGAIN_WITHIN = 800;
/** A gateway of which nothing was heard for so long is asked whether it still has the session, in milliseconds. */
const QUIET_FOR = 3_000;
/** Between looks. */
const LISTEN_EVERY = 500;
/** A connection that lived this long was a good one: the back-off starts over. */
const SETTLED_AFTER = 5_000;
/** Refusals that the same request will meet again: only a person can help. */
const FINAL = new Set([400, 401, 403, 405, 413, 415]);

/** The gateway said no. `detail` is its own sentence, when it sent a problem document (RFC 9457). */
export class Refusal extends Error {
  constructor(status, detail, retryAfter) {
    super(detail || `HTTP status ${status}`);
    this.name = 'Refusal';
    this.status = status;
    this.detail = detail;
    this.retryAfter = retryAfter;
  }

  /** Another try can succeed without anybody doing anything here. */
  get passing() {
    return !FINAL.has(this.status);
  }
}

/** Media does not get through, or no longer does; HTTP may. */
export class PathLost extends Error {
  name = 'PathLost';
}

/** Another publisher took the stream over: to come back by itself would begin a fight without end. */
export class TakenOver extends Error {
  name = 'TakenOver';
}

/**
 * A session that keeps itself alive. `state` is one of
 *
 * - `idle`: not started, or stopped by `stop()`
 * - `connecting`: an attempt is under way
 * - `live`: connected; media can flow
 * - `retrying`: the last attempt or connection failed; another attempt follows
 * - `failed`: refused, taken over, or impossible here; `start()` tries again
 *
 * Each change is a `state` event; `reason` holds the error that led to `retrying` or `failed`.
 */
export class Client extends EventTarget {
  state = 'idle';
  reason = null;
  /** What the gateway offers beyond the session, by the last part of its name: `{ layer: URL, ... }` (RFC 9725 §4.9). */
  extensions = {};
  /** Whether the gateway answered when it was last asked something. */
  reachable = true;
  /** Sessions that the gateway has granted so far. */
  sessions = 0;

  #endpoint;
  #token;
  #pc = null;
  #session = null;
  /** The last session that broke, of which may be to be learned why. */
  #broken = null;
  #answer = '';
  #restarting = false;
  #failures = 0;
  #liveSince = 0;
  // The one pending wait: for the connection, for a recovery, or for the next attempt.
  #timer = 0;

  constructor(endpoint, { token = '' } = {}) {
    super();
    this.#endpoint = new URL(endpoint, document.baseURI);
    this.#token = token;
  }

  /** The current peer connection, for statistics; null between attempts. */
  get connection() {
    return this.#pc;
  }

  /** Whether the gateway has answered the present offer. */
  get granted() {
    return this.#session !== null;
  }

  start() {
    if (this.state !== 'idle' && this.state !== 'failed') return;
    this.#failures = 0;
    this.#broken = null;
    this.#connect();
  }

  /** Ends the session; safe in `pagehide`. */
  stop() {
    this.#release();
    this.#enter('idle');
  }

  /** Cuts a waiting period short. */
  retryNow() {
    if (this.state === 'retrying') this.#connect();
  }

  /** For subclasses: adds transceivers to a fresh connection. Throws what no other attempt could mend. */
  prepare(_pc) {}

  /** For subclasses: changes the offer's text. */
  shape(sdp) {
    return sdp;
  }

  /** For subclasses: takes the links of the answer to an offer. */
  linked(link, base) {
    this.extensions = extensions(link, base);
  }

  /** For subclasses: whether another client may take the place of this one, so that it has to ask before it returns. */
  get replaceable() {
    return false;
  }

  async #connect() {
    clearTimeout(this.#timer);
    const pc = new RTCPeerConnection({ bundlePolicy: 'max-bundle' });
    this.#pc = pc;
    this.#enter('connecting');
    try {
      this.prepare(pc);
    } catch (error) {
      this.#release();
      return this.#enter('failed', error);
    }
    try {
      if (this.#broken && this.replaceable) await this.#askAbout(this.#broken);
      if (this.#pc !== pc) return;
      pc.onconnectionstatechange = () => this.#connectionChanged(pc);
      const offer = await pc.createOffer();
      const sdp = this.shape(offer.sdp);
      const { url, answer, link, base } = await this.#post(sdp);
      if (this.#pc !== pc) return this.#delete(url);
      this.#session = url;
      this.#answer = answer;
      this.#broken = null;
      this.linked(link, base);
      this.sessions += 1;
      const servers = iceServers(link);
      if (servers.length > 0) pc.setConfiguration({ ...pc.getConfiguration(), iceServers: servers });
      await pc.setLocalDescription({ type: 'offer', sdp });
      await pc.setRemoteDescription({ type: 'answer', sdp: answer });
      this.#watchTransport(pc);
      if (this.state === 'connecting') this.#loseAfter(pc, CONNECT_WITHIN, 'The media connection could not be made.');
    } catch (error) {
      if (this.#pc === pc) this.#fail(error);
    }
  }

  async #post(sdp) {
    const response = await fetch(this.#endpoint, {
      method: 'POST',
      headers: { 'Content-Type': 'application/sdp', ...this.#authorization() },
      body: sdp,
      signal: AbortSignal.timeout(ANSWER_WITHIN),
    }).catch((cause) => {
      this.reachable = false;
      throw new Error('The gateway cannot be reached.', { cause });
    });
    this.reachable = true;
    if (!response.ok) throw await refusal(response);
    const location = response.headers.get('Location');
    return {
      url: location && new URL(location, response.url),
      answer: await response.text(),
      link: response.headers.get('Link') ?? '',
      base: response.url,
    };
  }

  /** Throws if the session of this URL was ended because another client took its place. */
  async #askAbout(url) {
    const options = { headers: this.#authorization(), signal: AbortSignal.timeout(ANSWER_WITHIN) };
    const response = await fetch(url, options).catch((cause) => {
      this.reachable = false;
      throw new Error('The gateway cannot be reached.', { cause });
    });
    this.reachable = true;
    if (response.status === 404 && (await problemOf(response)).code === 'taken_over') {
      throw new TakenOver('Another publisher took over.');
    }
  }

  /**
   * Begins ICE anew within the session, as after a change of the network (RFC 9725 §4.3.3). What runs goes on until the
   * new path does. Resolves with whether the gateway could be asked.
   */
  async restart() {
    const [pc, url] = [this.#pc, this.#session];
    if (!pc || !url || this.#restarting) return true;
    this.#restarting = true;
    let reached = false;
    try {
      const offer = await pc.createOffer({ iceRestart: true });
      const sdp = this.shape(offer.sdp);
      const response = await fetch(url, {
        method: 'PATCH',
        headers: { 'Content-Type': 'application/trickle-ice-sdpfrag', 'If-Match': '*', ...this.#authorization() },
        body: fragmentOf(sdp),
        signal: AbortSignal.timeout(ANSWER_WITHIN),
      });
      reached = true;
      if (!response.ok) throw await refusal(response);
      const fragment = await response.text();
      if (this.#pc !== pc || pc.signalingState !== 'stable') return reached;
      this.#answer = withCredentials(this.#answer, fragment);
      await pc.setLocalDescription({ type: 'offer', sdp });
      await pc.setRemoteDescription({ type: 'answer', sdp: this.#answer });
    } catch (error) {
      // A session that the gateway no longer has cannot be saved; anything else may be better the next time.
      if (error instanceof Refusal && !error.passing && this.#pc === pc) this.#fail(error);
      if (error instanceof Refusal && error.status === 404 && this.#pc === pc) this.#fail(new Error('The session is over.'));
    } finally {
      this.#restarting = false;
      if (this.#pc === pc) this.reachable = reached;
    }
    return reached;
  }

  #delete(url) {
    if (!url) return;
    // `keepalive` lets the request outlive the page. The gateway notices a lost session by itself, if later.
    fetch(url, { method: 'DELETE', headers: this.#authorization(), keepalive: true }).catch(() => {});
  }

  #authorization() {
    return this.#token ? { Authorization: `Bearer ${this.#token}` } : {};
  }

  #connectionChanged(pc) {
    if (this.#pc !== pc) return;
    switch (pc.connectionState) {
      case 'connected':
        clearTimeout(this.#timer);
        this.#liveSince ||= performance.now();
        if (this.state !== 'live') this.#listen(pc);
        this.#enter('live');
        break;
      case 'disconnected':
        this.#loseAfter(pc, DISCONNECTED_FOR, 'The connection was lost.');
        this.#restartWhileLost(pc);
        break;
      case 'failed':
      case 'closed':
        this.#fail(new PathLost('The connection was lost.'));
        break;
    }
  }

  /**
   * Asks about the session while nothing comes from the gateway: reports and answers to checks come every few seconds,
   * and Chromium takes seven to call a publisher disconnected. While the gateway says that all is well, ever less often.
   */
  async #listen(pc) {
    let [heard, since, patience] = [-1, performance.now(), QUIET_FOR];
    for (;;) {
      await new Promise((resolve) => setTimeout(resolve, LISTEN_EVERY));
      if (this.#pc !== pc) return;
      const [now, at] = [await received(pc), performance.now()];
      if (this.#pc !== pc) return;
      if (now !== heard) {
        [heard, since, patience] = [now, at, QUIET_FOR];
      } else if (at - since > patience && (await this.#isKnown(pc, this.#session))) {
        [since, patience] = [performance.now(), patience * 2];
      }
    }
  }

  /** Whether the gateway answers; a session that it says to have no more begins anew. */
  async #isKnown(pc, url) {
    if (!url) return true;
    const options = { headers: this.#authorization(), signal: AbortSignal.timeout(ANSWER_WITHIN) };
    const response = await fetch(url, options).catch(() => null);
    if (this.#pc !== pc) return true;
    this.reachable = response !== null;
    if (response?.status === 404) this.#fail(new Error('The session is over.'));
    return this.reachable;
  }

  async #restartWhileLost(pc) {
    while (this.#pc === pc && pc.connectionState === 'disconnected') {
      // A gateway that starts anew knows the session no longer: the sooner that is known, the sooner there is another.
      const wait = (await this.restart()) ? RESTART_EVERY : ASK_AGAIN_WITHIN * (0.5 + Math.random() / 2);
      await new Promise((resolve) => setTimeout(resolve, wait));
    }
  }

  /** A gateway that ends a session says so in DTLS, which `connectionState` does not show everywhere. */
  #watchTransport(pc) {
    // A section that the gateway refused has a transport of its own, which closes at once and means nothing.
    const accepted = pc.getTransceivers().find(({ currentDirection }) => /^(send|recv)/.test(currentDirection));
    const transport = accepted?.receiver.transport ?? accepted?.sender.transport;
    transport?.addEventListener('statechange', () => {
      if (this.#pc === pc && transport.state === 'closed') this.#fail(new Error('The gateway ended the session.'));
    });
  }

  #loseAfter(pc, milliseconds, message) {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#pc === pc && this.#fail(this.reachable ? new PathLost(message) : new Error(message)), milliseconds);
  }

  #fail(error) {
    if (this.#liveSince && performance.now() - this.#liveSince > SETTLED_AFTER) this.#failures = 0;
    this.#broken = this.#session ?? this.#broken;
    this.#release();
    const isFinal = error instanceof TakenOver || (error instanceof Refusal && !error.passing);
    if (isFinal) return this.#enter('failed', error);
    this.#timer = setTimeout(() => this.#connect(), this.#delay(error));
    this.#enter('retrying', error);
  }

  #delay(error) {
    // The gateway's own wish wins; a little chance keeps a crowd from coming back in step.
    if (error.retryAfter !== undefined) return error.retryAfter * (1 + Math.random() / 4);
    const ceiling = Math.min(BACKOFF.ceiling, BACKOFF.first * BACKOFF.factor ** this.#failures);
    this.#failures += 1;
    return Math.random() * ceiling;
  }

  #release() {
    clearTimeout(this.#timer);
    const [pc, session] = [this.#pc, this.#session];
    this.#pc = this.#session = null;
    this.#liveSince = 0;
    pc?.close();
    this.#delete(session);
  }

  #enter(state, reason = null) {
    this.state = state;
    this.reason = reason;
    this.dispatchEvent(new Event('state'));
  }
}

async function received(pc) {
  return receivedBy([...(await pc.getStats().catch(() => new Map())).values()]);
}

/** Counts what has come over a connection, be it media, reports or answers to checks, by its statistics. */
export function receivedBy(all) {
  const counts = all
    .filter(({ type }) => type === 'candidate-pair')
    .map(({ bytesReceived = 0, responsesReceived = 0 }) => bytesReceived + responsesReceived);
  return counts.reduce((sum, count) => sum + count, 0);
}

/** The servers in a `Link` header: `<turn:host>; rel="ice-server"; username="u"; credential="c"`, joined by commas. */
function iceServers(link) {
  return [...link.matchAll(/<((?:stun|turn)s?:[^>]*)>([^,]*)/g)]
    .filter(([, , attributes]) => /rel="?ice-server"?/.test(attributes))
    .map(([, urls, attributes]) => {
      const attribute = (name) => new RegExp(`${name}="([^"]*)"`).exec(attributes)?.[1];
      return { urls, username: attribute('username'), credential: attribute('credential') };
    });
}

function extensions(link, base) {
  const found = [...link.matchAll(/<([^>]*)>; *rel="urn:ietf:params:whep:ext:core:([a-z-]+)"/g)];
  return Object.fromEntries(found.map(([, url, name]) => [name, new URL(url, base)]));
}

const CREDENTIALS = /^a=ice-(?:ufrag|pwd):.*\r\n/gm;

/** The body of the PATCH that restarts ICE: credentials, under the first m-line. */
function fragmentOf(sdp) {
  const [media] = /^m=.*\r\n/m.exec(sdp) ?? [''];
  const [mid] = /^a=mid:.*\r\n/m.exec(sdp) ?? [''];
  return media + mid + [...new Set(sdp.match(CREDENTIALS))].join('');
}

/** An answer with the credentials of a fragment. */
function withCredentials(answer, fragment) {
  const credentials = Object.fromEntries(fragment.match(CREDENTIALS).map((line) => [line.split(':')[0], line]));
  return answer.replace(CREDENTIALS, (line) => credentials[line.split(':')[0]]);
}

/** What a problem document says (RFC 9457); nothing for other bodies. */
async function problemOf(response) {
  const isProblem = /json/.test(response.headers.get('Content-Type') ?? '');
  return isProblem ? response.json().catch(() => ({})) : {};
}

async function refusal(response) {
  const problem = await problemOf(response);
  return new Refusal(response.status, problem.detail ?? problem.title, retryAfter(response.headers));
}

/** `Retry-After` in milliseconds: seconds or a date (RFC 9110 §10.2.3), at most a minute; undefined when absent. */
function retryAfter(headers) {
  const value = headers.get('Retry-After');
  if (!value) return undefined;
  const wait = /^\d+$/.test(value) ? Number(value) * 1000 : Date.parse(value) - Date.now();
  return Number.isNaN(wait) ? undefined : Math.min(Math.max(wait, 0), 60_000);
}
