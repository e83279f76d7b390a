// Watching over WebRTC: a WHEP client (draft-ietf-wish-whep) with its extensions for layers and events. What is made of
// what it receives is the player's business (`player.js`).

import { Client, receivedBy } from './session.js';

/** Between looks whether there are several versions of the picture, in milliseconds; the last one again and again. */
const ASK_AFTER = [2_000, 8_000, 30_000];
/** How long a gateway may take to hear which layer is wanted, in milliseconds. */
const WISH_WITHIN = 3_000;

/** Receives one audio and one video track from a WHEP endpoint. The tracks are in `stream`, new for each session. */
export class WhepClient extends Client {
  stream = null;
  /** Versions of the picture, the best first: `{ rid, width, height, bitrate }`. Each change is a `layers` event. */
  layers = [];
  /** Codec of the video that the stream has and this session cannot carry; empty for none. */
  missing = '';

  #events = null;
  #asking = 0;
  /** The layer that is wanted and was not asked for yet. */
  #wish = null;
  #wishing = false;

  constructor(endpoint, options) {
    super(endpoint, options);
    this.addEventListener('state', () => {
      if (this.state === 'live') this.#ask(0);
      else this.#deafen();
    });
  }

  /**
   * Wants the layer of this name from now on; without a name, the best one. The last wish holds. Whether it was heard; of a
   * wish that another one overtook nothing is known.
   */
  async choose(rid) {
    this.#wish = rid ? { rid } : {};
    // One after the other: wishes on their way at the same time may overtake each other.
    if (this.#wishing) return true;
    this.#wishing = true;
    let heard = true;
    while (this.#wish) {
      const body = JSON.stringify(this.#wish);
      this.#wish = null;
      const { layer } = this.extensions;
      if (!layer) continue;
      const headers = { 'Content-Type': 'application/json' };
      // A network that is gone answers never, and the next session has wishes too.
      const signal = AbortSignal.timeout(WISH_WITHIN);
      heard = await fetch(layer, { method: 'POST', headers, body, signal }).then(({ ok }) => ok, () => false);
    }
    this.#wishing = false;
    return heard;
  }

  /**
   * Looks whether there is a choice, now and then. Only where there is one, its changes are listened to: a stream of
   * events holds a connection, of which a browser has six for a gateway, and a gateway so many for everybody.
   */
  async #ask(times) {
    const { layer } = this.extensions;
    if (!layer || this.#events) return;
    const reply = await fetch(layer).catch(() => null);
    const answer = reply?.ok ? await reply.json().catch(() => ({})) : {};
    if (this.state !== 'live' || this.extensions.layer !== layer) return;
    if (reply?.ok) this.missing = missingVideo(reply.headers.get('Link') ?? '');
    if ((Object.values(answer)[0] ?? []).length > 1) {
      this.#listen().catch(() => {});
      return;
    }
    clearTimeout(this.#asking);
    this.#asking = setTimeout(() => this.#ask(times + 1), ASK_AFTER[times] ?? ASK_AFTER.at(-1));
  }

  async #listen() {
    const url = this.extensions['server-sent-events'];
    if (!url || this.#events) return;
    this.#events = {};
    const opened = await fetch(url, { method: 'POST', body: '["layers"]' });
    const location = opened.headers.get('Location');
    if (!opened.ok || !location || !this.#events) return;
    this.#events = new EventSource(new URL(location, url));
    this.#events.addEventListener('layers', ({ data }) => this.#tell(Object.values(JSON.parse(data))[0] ?? []));
  }

  #deafen() {
    clearTimeout(this.#asking);
    this.#events?.close?.();
    this.#events = null;
    if (this.layers.length > 0) this.#tell([]);
  }

  #tell(layers) {
    this.layers = layers;
    this.dispatchEvent(new Event('layers'));
  }

  linked(link, base) {
    super.linked(link, base);
    this.missing = missingVideo(link);
  }

  /** Whether the stream has video, as far as the answer and what the gateway said since tell. */
  get hasVideo() {
    const video = this.connection?.getTransceivers().find(({ receiver }) => receiver.track.kind === 'video');
    return Boolean(this.missing) || /recv/.test(video?.currentDirection ?? '');
  }

  /** Asks the gateway now, instead of in a while, what the session misses. */
  askAgain() {
    if (this.state !== 'live' || this.#events) return;
    clearTimeout(this.#asking);
    this.#ask(ASK_AFTER.length);
  }

  prepare(pc) {
    this.stream = new MediaStream();
    for (const kind of ['audio', 'video']) {
      const { receiver } = pc.addTransceiver(kind, { direction: 'recvonly' });
      this.stream.addTrack(receiver.track);
    }
  }

  /** Asks for stereo: without this, Chromium decodes Opus to one channel (RFC 7587 §6.1). */
  shape(sdp) {
    const [, opus] = /^a=rtpmap:(\d+) opus\//im.exec(sdp) ?? [];
    return sdp.replace(new RegExp(`^a=fmtp:${opus} (?!.*stereo=1).*$`, 'm'), '$&;stereo=1');
  }

  /** What has arrived, from one `getStats` report; null when there is no session. */
  async statistics() {
    const report = await this.connection?.getStats();
    if (!report) return null;
    const all = [...report.values()];
    const inbound = (kind) => all.find((s) => s.type === 'inbound-rtp' && s.kind === kind) ?? {};
    const [video, audio] = [inbound('video'), inbound('audio')];
    const pair = all.find((s) => s.type === 'candidate-pair' && s.nominated && s.state === 'succeeded');
    const reported = all.find((s) => s.type === 'remote-outbound-rtp' && s.kind === 'video');
    return {
      at: performance.now(),
      received: receivedBy(all),
      sent: reported?.packetsSent ?? 0,
      frames: video.framesDecoded ?? 0,
      videoPackets: video.packetsReceived ?? 0,
      audioPackets: audio.packetsReceived ?? 0,
      audioEnergy: audio.totalAudioEnergy ?? 0,
      bytes: (video.bytesReceived ?? 0) + (audio.bytesReceived ?? 0),
      lost: (video.packetsLost ?? 0) + (audio.packetsLost ?? 0),
      width: video.frameWidth,
      height: video.frameHeight,
      codec: report.get(video.codecId)?.mimeType?.split('/')[1],
      buffered: video.jitterBufferEmittedCount ? video.jitterBufferDelay / video.jitterBufferEmittedCount : undefined,
      roundTrip: pair?.currentRoundTripTime,
    };
  }
}

/** The codec of the video that an answer leaves out, in its links: `<...>; rel="alternate"; video="H264"`. */
const missingVideo = (link) => /rel="alternate"[^,]*; *video="([A-Za-z0-9]+)"/.exec(link)?.[1] ?? '';
