// What the player concludes from what it sees: whether the stream is live, and whether to use WebRTC or HLS. Nothing here
// touches a browser: figures and times go in, in milliseconds, conclusions come out.

/** Video of which no frame was shown for so long is not live: before anybody has counted to two. */
export const LIVE_FOR = 1_800;

/** WebRTC that is not connected after so long is helped out by HLS; after half of it hls.js is loaded. */
const CONNECT_WITHIN = 900;
/** A session that brings nothing for so long is helped out too, if HLS can bring more. */
const STALLED_FOR = 3_600;
/** Reports come every second: what the gateway says to have sent later than this after the last packet has not arrived. */
const REPORTED_WITHIN = 1_500;
/** Packets that are further apart do not belong to one flow. */
const FLOW_GAP = 1_000;
/** WebRTC whose media flows for so long again is used again. */
const FLOWS_FOR = 700;
/** HLS that shows no frame for so long is given up. */
const HLS_STALLED_FOR = 8_000;
/** Between attempts at HLS: twice as long after each that failed, up to the second figure. */
const TRY_EVERY = 2_000;
const TRY_AT_LEAST_EVERY = 30_000;

/**
 * Whether what is shown is live. Where there is video, only frames of it count: sound goes on when the camera is off.
 *
 * `hasVideo`: the stream has video, whether or not this session can carry it; `frameAt` and `soundAt`: when the last
 * frame was shown and when sound arrived last, 0 for never.
 */
export function isLive({ hasVideo, frameAt, soundAt }, at) {
  const last = hasVideo ? frameAt : Math.max(frameAt, soundAt);
  return last > 0 && at - last < LIVE_FOR;
}

/** What flows in one WebRTC session, from the statistics that are taken now and then. */
export class Flow {
  #counts = { received: 0, packets: 0, sent: 0, frames: 0, sound: 0 };
  /** When each of them has grown last; the beginning of the session, for none. */
  #grown;
  /** When the packets of video that arrive now have begun to. */
  #flowsSince;

  constructor(at) {
    this.#grown = { received: at, packets: at, sent: at, frames: at, sound: at };
    this.#flowsSince = at;
  }

  /**
   * Takes statistics: `received` counts everything that came over the connection, `packets` those of video, `sent` those
   * of video that the gateway reports to have sent, `frames` those that were decoded, `sound` the packets of sound.
   */
  note(counts, at) {
    const before = this.#grown.packets;
    for (const [name, count] of Object.entries(this.#counts)) {
      if (!(counts[name] > count)) continue;
      this.#counts[name] = counts[name];
      this.#grown[name] = at;
    }
    if (this.#grown.packets === at && at - before > FLOW_GAP) this.#flowsSince = at;
  }

  /** Whether a frame was decoded. */
  get decoded() {
    return this.#counts.frames > 0;
  }

  /** When sound arrived last; 0 for never. */
  get soundAt() {
    return this.#counts.sound > 0 ? this.#grown.sound : 0;
  }

  /** What of it bears on the choice of a transport. */
  conclude(at) {
    const { received, packets, sent, frames } = this.#grown;
    const since = at - frames;
    return {
      decoded: this.decoded,
      /** Nothing came, not even a report or an answer to a check: the path is cut. */
      cut: at - received > STALLED_FOR,
      /** The gateway sends video, and none of it arrives. */
      lost: since > STALLED_FOR && sent - packets > REPORTED_WITHIN,
      /** Video arrives, and no frame comes of it. */
      undecodable: this.#counts.packets > 0 && at - packets < FLOW_GAP && at - Math.max(frames, this.#flowsSince) > STALLED_FOR,
    };
  }
}

/** How long after an attempt at HLS the next one may follow, when so many have failed. */
export function pauseAfter(failures) {
  return Math.min(TRY_EVERY * 2 ** Math.max(0, failures - 1), TRY_AT_LEAST_EVERY);
}

/**
 * Which transport to use now, and why: `{ use: 'webrtc' | 'hls', why, prepare }`. `why` is one of `chosen`, `connection`,
 * `codec` and `silence`; `prepare` says that HLS may be needed soon.
 *
 * HLS is for what WebRTC cannot bring, and never for a stream that is not live: a gateway that sends reports and no video
 * has none.
 *
 * - `setting`: `auto`, `off` (no HLS) or `only` (no WebRTC)
 * - `using`: `webrtc` or `hls`, `why`: the reason of the present use of HLS
 * - `session`: the state of the WebRTC session (see session.js); `granted`: the gateway has answered its offer;
 *   `waited`: for so long; `status`: HTTP status of the refusal; `pathLost`: it ended because media did not get through;
 *   `reachable`: the gateway answers HTTP
 * - `missing`: codec of the video that the session cannot carry, `''` for none
 * - `flow`: see `Flow.conclude`; `flowing`: for so long frames have been decoded without a gap, or sound has come where
 *   there is no video
 * - `stalled`: for so long HLS has shown no frame
 * - `tried`: so long ago HLS was tried last, `failures`: so often in vain
 */
export function choose(view) {
  return view.using === 'hls' ? leaveHls(view) : leaveWebRtc(view);
}

function leaveHls({ setting, why, session, flowing, stalled }) {
  const stays = { use: 'hls', why };
  if (setting === 'only') return stalled > HLS_STALLED_FOR ? { use: 'webrtc' } : stays;
  if (stalled > HLS_STALLED_FOR) return { use: 'webrtc' };
  // What WebRTC cannot carry it does not carry any better when something else comes that way.
  const returns = why !== 'codec' && session === 'live' && flowing > FLOWS_FOR;
  return returns ? { use: 'webrtc' } : stays;
}

function leaveWebRtc(view) {
  const { setting, tried, failures } = view;
  const stays = { use: 'webrtc' };
  if (setting === 'off') return stays;
  const mayTry = tried > pauseAfter(setting === 'only' ? 0 : failures);
  if (setting === 'only') return mayTry ? { use: 'hls', why: 'chosen' } : stays;
  const why = reason(view);
  if (why && mayTry) return { use: 'hls', why };
  const slow = view.session === 'connecting' && view.granted && view.waited > CONNECT_WITHIN / 2;
  return slow ? { ...stays, prepare: true } : stays;
}

function reason({ session, granted, waited, status, pathLost, reachable, missing, flow }) {
  if (status === 406 || status === 422) return 'codec';
  if (session === 'connecting') return granted && waited > CONNECT_WITHIN ? 'connection' : undefined;
  if (session === 'retrying') return pathLost ? 'connection' : undefined;
  if (session !== 'live') return undefined;
  if (missing) return 'codec';
  if (flow.undecodable) return flow.decoded ? 'silence' : 'codec';
  if (flow.lost || (flow.cut && reachable)) return 'silence';
  return undefined;
}
