// A WebRTC session over HTTP, the common part of WHIP (RFC 9725) and WHEP: POSTs an offer, applies the answer, monitors
// the connection, DELETEs the session at the end, and starts a new one when it fails. Subclasses define what is sent or
// received (`whip.js`, `whep.js`).
//
// The gateway puts all its candidates into the answer and learns those of the client from connectivity checks
// (ICE-lite), so the offer is sent at once, without candidates and without trickle ICE. Gathering starts after the
// answer, which names the STUN and TURN servers (RFC 9725 §4.6). When the path fails, ICE is restarted (§4.3.3) before
// the session is given up.

import { DataTracks } from './data.js';

/** Delays between attempts, in milliseconds: exponential back-off with full jitter. */
const BACKOFF = { first: 300, factor: 1.6, ceiling: 10_000 };
/** Timeout of a request, in milliseconds. */
const REQUEST_TIMEOUT = 10_000;
/** Timeout of ICE and DTLS after the answer, in milliseconds. */
const CONNECT_TIMEOUT = 10_000;
/** A connection that is `disconnected` for this time is given up: enough for an ICE restart over a new network. */
const DISCONNECTED_TIMEOUT = 6_000;
/** Interval of ICE restarts while disconnected, in milliseconds, and its maximum while the gateway is unreachable. */
const RESTART_INTERVAL = 2_000;
const UNREACHABLE_RESTART_INTERVAL = 800;
/** If nothing is received for this time, the gateway is asked whether the session still exists, in milliseconds. */
const QUIET_TIMEOUT = 3_000;
/** Interval at which received data is polled, in milliseconds. */
const QUIET_POLL_INTERVAL = 500;
/** The back-off is reset after a connection that lasted this long, in milliseconds. */
const STABLE_AFTER = 5_000;
/** Statuses that a retry of the same request cannot change. */
const PERMANENT = new Set([400, 401, 403, 405, 413, 415]);

/** The gateway has rejected a request. `detail` is that of the problem document, if it sent one (RFC 9457). */
export class Refusal extends Error {
  constructor(status, detail, retryAfter) {
    super(detail || `The gateway answered with HTTP status ${status}.`);
    this.name = 'Refusal';
    this.status = status;
    this.detail = detail;
    this.retryAfter = retryAfter;
  }

  /** Whether a retry can succeed without a change on this side. */
  get isTransient() {
    return !PERMANENT.has(this.status);
  }
}

/**
 * The media path failed or could not be established; HTTP may work. `addresses` are those that were tried if none was
 * reached.
 */
export class PathLost extends Error {
  name = 'PathLost';

  constructor(message, addresses = []) {
    super(message);
    this.addresses = addresses;
  }

  /** What was tried, for the user. */
  get remedy() {
    return `None of the gateway's addresses could be reached: ${this.addresses.join(', ')}. This page keeps trying.`;
  }
}

/** Another publisher took the stream over. Retrying would start an endless takeover loop. */
export class TakenOver extends Error {
  name = 'TakenOver';
}

/**
 * A session that recovers from failures. `state` is one of
 *
 * - `idle`: not started, or stopped by `stop()`
 * - `connecting`: an attempt is under way
 * - `live`: connected; media can flow
 * - `retrying`: the last attempt or connection failed; another attempt follows
 * - `failed`: rejected, taken over, or not supported by the browser; `start()` tries again
 *
 * Each change is a `state` event; `reason` holds the error that led to `retrying` or `failed`.
 */
export class Client extends EventTarget {
  state = 'idle';
  reason = null;
  /** Extensions of the session, by the last part of their name: `{ layer: URL, ... }` (RFC 9725 §4.9). */
  extensions = {};
  /** Whether the gateway answered the last request. */
  reachable = true;
  /** Number of sessions that the gateway has accepted so far. */
  sessions = 0;

  #endpoint;
  #token;
  #pc = null;
  #session = null;
  /** URL of the last failed session, to find out why it ended. */
  #failedSession = null;
  #answer = '';
  #restarting = false;
  #failures = 0;
  #liveSince = 0;
  // The only pending timer: for the connection, for a recovery, or for the next attempt.
  #timer = 0;
  #data;

  /** `data` are the data tracks of a client that this one replaces. */
  constructor(endpoint, { token = '', data = new DataTracks() } = {}) {
    super();
    this.#endpoint = new URL(endpoint, document.baseURI);
    this.#token = token;
    this.#data = data;
  }

  /** Returns the messages of a data channel label: see `DataTrack` in `data.js`. */
  data(label) {
    return this.#data.request(label);
  }

  /** The current peer connection, for statistics; null between attempts. */
  get connection() {
    return this.#pc;
  }

  /** Whether the gateway has answered the current offer. */
  get granted() {
    return this.#session !== null;
  }

  start() {
    if (this.state !== 'idle' && this.state !== 'failed') return;
    this.#failures = 0;
    this.#failedSession = null;
    this.#connect();
  }

  /** Ends the session; safe in `pagehide`. */
  stop() {
    this.#release();
    this.#setState('idle');
  }

  /** Retries at once instead of after the back-off. */
  retryNow() {
    if (this.state === 'retrying') this.#connect();
  }

  /** For subclasses: adds transceivers to a new connection. Throws if another attempt cannot succeed. */
  prepare(_pc) {}

  /** Modifies the SDP of the offer; subclasses modify more. */
  shape(sdp) {
    return requestLostAudio(sdp);
  }

  /** For subclasses: handles the `Link` header of the answer. */
  onLinks(link, base) {
    this.extensions = extensions(link, base);
  }

  /** For subclasses: whether another client may replace this one, so that it has to check before it reconnects. */
  get replaceable() {
    return false;
  }

  async #connect() {
    clearTimeout(this.#timer);
    const pc = new RTCPeerConnection({ bundlePolicy: 'max-bundle' });
    this.#pc = pc;
    this.#setState('connecting');
    try {
      this.prepare(pc);
      this.#data.attach(pc);
    } catch (error) {
      this.#release();
      return this.#setState('failed', error);
    }
    try {
      if (this.#failedSession && this.replaceable) await this.#checkTakenOver(this.#failedSession);
      if (this.#pc !== pc) return;
      pc.onconnectionstatechange = () => this.#connectionChanged(pc);
      const offer = await pc.createOffer();
      const sdp = this.shape(offer.sdp);
      const { url, answer, link, base } = await this.#post(sdp);
      if (this.#pc !== pc) return this.#delete(url);
      this.#session = url;
      this.#answer = answer;
      this.#failedSession = null;
      this.onLinks(link, base);
      this.sessions += 1;
      const servers = iceServers(link);
      if (servers.length > 0) pc.setConfiguration({ ...pc.getConfiguration(), iceServers: servers });
      await pc.setLocalDescription({ type: 'offer', sdp });
      await pc.setRemoteDescription({ type: 'answer', sdp: answer });
      this.#watchTransport(pc);
      if (this.state === 'connecting') this.#failAfter(pc, CONNECT_TIMEOUT, () => this.#notConnected(pc));
    } catch (error) {
      if (this.#pc === pc) this.#fail(error);
    }
  }

  async #post(sdp) {
    const response = await fetch(this.#endpoint, {
      method: 'POST',
      headers: { 'Content-Type': 'application/sdp', ...this.#authorization() },
      body: sdp,
      signal: AbortSignal.timeout(REQUEST_TIMEOUT),
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

  /** Throws if the session with this URL was ended because another client replaced it. */
  async #checkTakenOver(url) {
    const options = { headers: this.#authorization(), signal: AbortSignal.timeout(REQUEST_TIMEOUT) };
    const response = await fetch(url, options).catch((cause) => {
      this.reachable = false;
      throw new Error('The gateway cannot be reached.', { cause });
    });
    this.reachable = true;
    if (response.status === 404 && (await problemOf(response)).code === 'taken_over') {
      throw new TakenOver('Another publisher took over the stream.');
    }
  }

  /**
   * Restarts ICE, for example after a change of the network (RFC 9725 §4.3.3). The old path is used until the new one
   * is established. Resolves with whether the gateway could be reached.
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
        signal: AbortSignal.timeout(REQUEST_TIMEOUT),
      });
      reached = true;
      if (!response.ok) throw await refusal(response);
      const fragment = await response.text();
      if (this.#pc !== pc || pc.signalingState !== 'stable') return reached;
      this.#answer = withCredentials(this.#answer, fragment);
      await pc.setLocalDescription({ type: 'offer', sdp });
      await pc.setRemoteDescription({ type: 'answer', sdp: this.#answer });
    } catch (error) {
      // A session that the gateway no longer has is lost; other errors may be temporary.
      if (error instanceof Refusal && !error.isTransient && this.#pc === pc) this.#fail(error);
      if (error instanceof Refusal && error.status === 404 && this.#pc === pc) this.#fail(new Error('The WebRTC session has ended.'));
    } finally {
      this.#restarting = false;
      if (this.#pc === pc) this.reachable = reached;
    }
    return reached;
  }

  #delete(url) {
    if (!url) return;
    // `keepalive` lets the request outlive the page. Without the request, the gateway detects the lost session later.
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
        if (this.state !== 'live') this.#monitor(pc);
        this.#setState('live');
        break;
      case 'disconnected':
        this.#failAfter(pc, DISCONNECTED_TIMEOUT, () => new PathLost('The media connection was lost.'));
        this.#restartWhileLost(pc);
        break;
      case 'failed':
      case 'closed':
        this.#fail(this.#liveSince ? new PathLost('The media connection was lost.') : this.#notConnected(pc));
        break;
    }
  }

  /**
   * Checks the session while nothing is received: reports and responses to connectivity checks arrive every few
   * seconds, and Chromium takes seven seconds to report a publisher as disconnected. The interval doubles while the
   * session exists.
   */
  async #monitor(pc) {
    let [lastReceived, since, timeout] = [-1, performance.now(), QUIET_TIMEOUT];
    for (;;) {
      await new Promise((resolve) => setTimeout(resolve, QUIET_POLL_INTERVAL));
      if (this.#pc !== pc) return;
      const [now, at] = [await received(pc), performance.now()];
      if (this.#pc !== pc) return;
      if (now !== lastReceived) {
        [lastReceived, since, timeout] = [now, at, QUIET_TIMEOUT];
      } else if (at - since > timeout && (await this.#checkSession(pc, this.#session))) {
        [since, timeout] = [performance.now(), timeout * 2];
      }
    }
  }

  /** Returns whether the gateway answers. Starts a new session if it no longer has this one. */
  async #checkSession(pc, url) {
    if (!url) return true;
    const options = { headers: this.#authorization(), signal: AbortSignal.timeout(REQUEST_TIMEOUT) };
    const response = await fetch(url, options).catch(() => null);
    if (this.#pc !== pc) return true;
    this.reachable = response !== null;
    if (response?.status === 404) this.#fail(new Error('The WebRTC session has ended.'));
    return this.reachable;
  }

  async #restartWhileLost(pc) {
    while (this.#pc === pc && pc.connectionState === 'disconnected') {
      // A restarted gateway does not have the session: the sooner this is detected, the sooner a new session starts.
      const wait = (await this.restart()) ? RESTART_INTERVAL : UNREACHABLE_RESTART_INTERVAL * (0.5 + Math.random() / 2);
      await new Promise((resolve) => setTimeout(resolve, wait));
    }
  }

  /** Detects the DTLS close alert of the gateway, which `connectionState` does not reflect in all browsers. */
  #watchTransport(pc) {
    // A rejected section has its own transport, which closes at once and is irrelevant.
    const accepted = pc.getTransceivers().find(({ currentDirection }) => /^(send|recv)/.test(currentDirection));
    const transport = accepted?.receiver.transport ?? accepted?.sender.transport;
    transport?.addEventListener('statechange', () => {
      if (this.#pc === pc && transport.state === 'closed') this.#fail(new Error('The gateway ended the WebRTC session.'));
    });
  }

  /** Fails after this time. `lost` makes the error for when HTTP works. */
  #failAfter(pc, milliseconds, lost) {
    clearTimeout(this.#timer);
    const fail = () => this.#fail(this.reachable ? lost() : new Error('The gateway cannot be reached.'));
    this.#timer = setTimeout(() => this.#pc === pc && fail(), milliseconds);
  }

  /** Explains why the media connection was not established. */
  #notConnected(pc) {
    const isReached = ['connected', 'completed'].includes(pc.iceConnectionState);
    if (isReached) return new PathLost('The media connection could not be encrypted: the DTLS handshake did not complete.');
    return blocked(this.#answer);
  }

  #fail(error) {
    if (this.#liveSince && performance.now() - this.#liveSince > STABLE_AFTER) this.#failures = 0;
    this.#failedSession = this.#session ?? this.#failedSession;
    this.#release();
    const isPermanent = error instanceof TakenOver || (error instanceof Refusal && !error.isTransient);
    if (isPermanent) return this.#setState('failed', error);
    this.#timer = setTimeout(() => this.#connect(), this.#delay(error));
    this.#setState('retrying', error);
  }

  #delay(error) {
    // `Retry-After` takes precedence; jitter keeps clients from retrying in step.
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
    this.#data.detach();
    pc?.close();
    this.#delete(session);
  }

  #setState(state, reason = null) {
    this.state = state;
    this.reason = reason;
    this.dispatchEvent(new Event('state'));
  }
}

async function received(pc) {
  return receivedBy([...(await pc.getStats().catch(() => new Map())).values()]);
}

/** Counts everything received over a connection, from statistics: media, reports and responses to checks. */
export function receivedBy(all) {
  const counts = all
    .filter(({ type }) => type === 'candidate-pair')
    .map(({ bytesReceived = 0, responsesReceived = 0 }) => bytesReceived + responsesReceived);
  return counts.reduce((sum, count) => sum + count, 0);
}

/** Parses ICE servers, `<turn:host>; rel="ice-server"; username="u"; credential="c"`, joined by commas. */
function iceServers(link) {
  return [...link.matchAll(/<((?:stun|turn)s?:[^>]*)>([^,]*)/g)]
    .filter(([, , attributes]) => /rel="?ice-server"?/.test(attributes))
    .map(([, urls, attributes]) => {
      const attribute = (name) => new RegExp(`${name}="([^"]*)"`).exec(attributes)?.[1];
      return { urls, username: attribute('username'), credential: attribute('credential') };
    });
}

function extensions(link, base) {
  const found = [...link.matchAll(/<([^>]*)>; *rel="urn:(?:ietf:params:whep:ext:core|millstream:whep:ext):([a-z-]+)"/g)];
  return Object.fromEntries(found.map(([, url, name]) => [name, new URL(url, base)]));
}

const CREDENTIALS = /^a=ice-(?:ufrag|pwd):.*\r\n/gm;

/**
 * Offers that lost packets of Opus are requested again (RFC 4585 §6.2.1). Chromium does that, and answers such requests, but
 * does not offer it by itself. Firefox ignores it.
 */
function requestLostAudio(sdp) {
  const [line, opus] = /^a=rtpmap:(\d+) opus\/.*\r\n/im.exec(sdp) ?? [];
  if (!line || new RegExp(`^a=rtcp-fb:${opus} nack\\r$`, 'm').test(sdp)) return sdp;
  return sdp.replace(line, `${line}a=rtcp-fb:${opus} nack\r\n`);
}

/** Returns the body of the PATCH that restarts ICE: the credentials under the first m-line. */
function fragmentOf(sdp) {
  const [media] = /^m=.*\r\n/m.exec(sdp) ?? [''];
  const [mid] = /^a=mid:.*\r\n/m.exec(sdp) ?? [''];
  return media + mid + [...new Set(sdp.match(CREDENTIALS))].join('');
}

/** Returns the answer with the credentials replaced by those of a fragment. */
function withCredentials(answer, fragment) {
  const credentials = Object.fromEntries(fragment.match(CREDENTIALS).map((line) => [line.split(':')[0], line]));
  return answer.replace(CREDENTIALS, (line) => credentials[line.split(':')[0]]);
}

/**
 * Returns the codec of the video that a session or a playlist lacks although the stream has it, from the links of the
 * response: `<...>; rel="alternate"; video="H264"`. Empty for none.
 */
export const missingVideo = (link) => /rel="alternate"[^,]*; *video="([A-Za-z0-9]+)"/.exec(link)?.[1] ?? '';

/** Names the port and the addresses of the candidates in an answer, none of which was reached. */
export function blocked(answer) {
  const candidates = [...answer.matchAll(/^a=candidate:\S+ \d+ (\S+) \d+ (\S+) (\d+) /gm)]
    .map(([, transport, address, port]) => ({ transport: transport.toUpperCase(), address, port }));
  const unique = (name) => [...new Set(candidates.map((candidate) => candidate[name]))];
  if (candidates.length === 0) return new PathLost('The media connection could not be established.');
  const ports = unique('port');
  const verb = ports.length > 1 ? 'ports %s seem' : 'port %s seems';
  const message = `No media connection: ${unique('transport').join('/')} ${verb.replace('%s', ports.join(', '))} blocked`;
  const host = (address) => (address.includes(':') ? `[${address}]` : address);
  return new PathLost(message, [...new Set(candidates.map(({ address, port }) => `${host(address)}:${port}`))]);
}

/** Returns the problem document of a response (RFC 9457); empty for other bodies. */
async function problemOf(response) {
  const isProblem = /json/.test(response.headers.get('Content-Type') ?? '');
  return isProblem ? response.json().catch(() => ({})) : {};
}

async function refusal(response) {
  const problem = await problemOf(response);
  return new Refusal(response.status, problem.detail ?? problem.title, retryAfter(response.headers));
}

/** Returns `Retry-After`, seconds or a date (RFC 9110 §10.2.3), as milliseconds up to a minute; undefined if absent. */
function retryAfter(headers) {
  const value = headers.get('Retry-After');
  if (!value) return undefined;
  const wait = /^\d+$/.test(value) ? Number(value) * 1000 : Date.parse(value) - Date.now();
  return Number.isNaN(wait) ? undefined : Math.min(Math.max(wait, 0), 60_000);
}
