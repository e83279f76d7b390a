// Decisions of the player: whether the stream is live, and whether to use WebRTC or HLS. Pure functions without browser
// APIs. Times are in milliseconds.

/** A stream is not live if no video frame was displayed for this time, which is less than two seconds. */
export const LIVE_TIMEOUT = 1_800;

/** Key frames that are sent alone are at most ten seconds apart (docs/quality.md). */
const KEY_FRAME_TIMEOUT = 12_000;

/** The player falls back to HLS if WebRTC is not connected after this time; hls.js is loaded after half of it. */
const CONNECT_TIMEOUT = 900;
/** The player falls back to HLS if a session delivers nothing for this time although there is media. */
const STALL_TIMEOUT = 3_600;
/**
 * Sender reports arrive every second. If one reports new packets more than this time after the last received packet,
 * packets are lost.
 */
const REPORT_TIMEOUT = 1_500;
/** Maximum gap between packets of a continuous flow. */
const MAX_FLOW_GAP = 1_000;
/** The player returns to WebRTC after media has flowed for this time. */
const RETURN_AFTER = 700;
/** HLS is given up if it displays no frame for this time. */
const HLS_STALL_TIMEOUT = 8_000;
/** Delay between attempts of HLS: doubles after each failure, up to the maximum. */
const HLS_RETRY_DELAY = 2_000;
const HLS_MAX_RETRY_DELAY = 30_000;

/**
 * Returns until when the stream is live by what has arrived; 0 for never. If it has video, only video frames count,
 * because audio continues while the camera is off.
 *
 * `hasVideo`: the stream has video, whether or not this session can carry it; `frameAt` and `audioAt`: when the last
 * frame was displayed and when audio arrived last, 0 for never; `isWithoutVideo`: the gateway withholds the video, or all
 * but its key frames, because the path carries no more.
 */
export function liveUntil({ hasVideo, frameAt, audioAt, isWithoutVideo = false }) {
  if (isWithoutVideo && !audioAt) return frameAt && frameAt + KEY_FRAME_TIMEOUT;
  const last = hasVideo && !isWithoutVideo ? frameAt : Math.max(frameAt, audioAt);
  return last && last + LIVE_TIMEOUT;
}

/** Returns whether the stream is live: see `liveUntil`. */
export function isLive(seen, at) {
  return liveUntil(seen) > at;
}

/** The media flow of one WebRTC session, from periodic statistics. */
export class Flow {
  #counts = { received: 0, packets: 0, sent: 0, frames: 0, audio: 0 };
  /** When each count has increased last; initially the start of the session. */
  #increased;
  /** Start of the current continuous flow of video packets. */
  #flowSince;

  constructor(at) {
    this.#increased = { received: at, packets: at, sent: at, frames: at, audio: at };
    this.#flowSince = at;
  }

  /**
   * Takes statistics: `received` counts everything that was received over the connection, `packets` received video
   * packets, `sent` video packets that the gateway has sent according to its reports, `frames` decoded frames, `audio`
   * received audio packets.
   */
  update(counts, at) {
    const before = this.#increased.packets;
    for (const [name, count] of Object.entries(this.#counts)) {
      if (!(counts[name] > count)) continue;
      this.#counts[name] = counts[name];
      this.#increased[name] = at;
    }
    if (this.#increased.packets === at && at - before > MAX_FLOW_GAP) this.#flowSince = at;
  }

  /** Whether any frame was decoded. */
  get decoded() {
    return this.#counts.frames > 0;
  }

  /** Returns for how long no frame was decoded. */
  frameGap(at) {
    return at - this.#increased.frames;
  }

  /** When audio arrived last; 0 for never. */
  get audioAt() {
    return this.#counts.audio > 0 ? this.#increased.audio : 0;
  }

  /** Returns what is relevant for the choice of the transport. */
  evaluate(at) {
    const { received, packets, sent, frames } = this.#increased;
    const since = at - frames;
    return {
      decoded: this.decoded,
      /** Nothing was received, not even a report or a response to a connectivity check: the path is broken. */
      cut: at - received > STALL_TIMEOUT,
      /** The gateway sends video, but none arrives. */
      lost: since > STALL_TIMEOUT && sent - packets > REPORT_TIMEOUT,
      /** Video arrives, but no frame is decoded. */
      undecodable: this.#counts.packets > 0 && at - packets < MAX_FLOW_GAP && at - Math.max(frames, this.#flowSince) > STALL_TIMEOUT,
    };
  }
}

/** Returns the delay between two attempts of HLS after this number of failures. */
export function hlsRetryDelay(failures) {
  return Math.min(HLS_RETRY_DELAY * 2 ** Math.max(0, failures - 1), HLS_MAX_RETRY_DELAY);
}

/**
 * Returns which transport to use and why: `{ use: 'webrtc' | 'hls', why, prepare }`. `why` is one of `chosen`,
 * `connection`, `codec` and `silence`; `prepare` means that HLS may be needed soon.
 *
 * HLS is used for what WebRTC cannot deliver, but not for a stream that is not live: if the gateway sends reports and
 * no video, there is none.
 *
 * - `setting`: `auto`, `off` (no HLS) or `only` (no WebRTC)
 * - `using`: the current transport, `webrtc` or `hls`; `why`: the current reason for HLS
 * - `session`: the state of the WebRTC session (see session.js); `granted`: the gateway has answered its offer;
 *   `waited`: time since the offer; `status`: HTTP status of the rejected request; `pathLost`: the session ended
 *   because its media path failed; `reachable`: the gateway answers HTTP requests
 * - `missing`: codec of the video that the session cannot carry, `''` for none
 * - `flow`: see `Flow.evaluate`; `flowing`: for how long frames have been decoded without a gap, or audio has arrived
 *   if there is no video
 * - `stalled`: for how long HLS has displayed no frame
 * - `tried`: time since the last attempt of HLS, `failures`: number of consecutive failures
 */
export function chooseTransport(view) {
  return view.using === 'hls' ? whileHls(view) : whileWebRtc(view);
}

function whileHls({ setting, why, session, flowing, stalled }) {
  const unchanged = { use: 'hls', why };
  if (setting === 'only') return stalled > HLS_STALL_TIMEOUT ? { use: 'webrtc' } : unchanged;
  if (stalled > HLS_STALL_TIMEOUT) return { use: 'webrtc' };
  // If the codec is the reason, incoming media over WebRTC (audio) changes nothing.
  const returns = why !== 'codec' && session === 'live' && flowing > RETURN_AFTER;
  return returns ? { use: 'webrtc' } : unchanged;
}

function whileWebRtc(view) {
  const { setting, tried, failures } = view;
  const unchanged = { use: 'webrtc' };
  if (setting === 'off') return unchanged;
  const mayTry = tried > hlsRetryDelay(setting === 'only' ? 0 : failures);
  if (setting === 'only') return mayTry ? { use: 'hls', why: 'chosen' } : unchanged;
  const why = reason(view);
  if (why && mayTry) return { use: 'hls', why };
  const isLikely = view.waited > CONNECT_TIMEOUT / 2 || view.missing;
  return view.session === 'connecting' && view.granted && isLikely ? { ...unchanged, prepare: true } : unchanged;
}

function reason({ session, granted, waited, status, pathLost, reachable, missing, flow }) {
  if (status === 406 || status === 422) return 'codec';
  if (session === 'connecting') {
    if (!granted || waited <= CONNECT_TIMEOUT) return undefined;
    // The reason stays while HLS is used: what the answer lacks, a connection would not bring.
    return missing ? 'codec' : 'connection';
  }
  if (session === 'retrying') return pathLost ? 'connection' : undefined;
  if (session !== 'live') return undefined;
  if (missing) return 'codec';
  if (flow.undecodable) return flow.decoded ? 'silence' : 'codec';
  if (flow.lost || (flow.cut && reachable)) return 'silence';
  return undefined;
}
