// A WHEP client (draft-ietf-wish-whep) with the extensions for layers and events. The player (`player.js`) displays
// what it receives.

import { Client, missingVideo, receivedBy } from './session.js';

/** Delays between polls of the layers, in milliseconds; the last one repeats. */
const LAYER_POLL_DELAYS = [2_000, 8_000, 30_000];
/** Timeout of a layer selection request, in milliseconds. */
const SELECTION_TIMEOUT = 3_000;

/** Receives one audio and one video track from a WHEP endpoint. Each session has a new `stream` with the tracks. */
export class WhepClient extends Client {
  stream = null;
  /** Layers, the best first: `{ rid, width, height, bitrate }`. Each change is a `layers` event. */
  layers = [];
  /** Codec of the stream's video if this session cannot carry it; else empty. */
  missing = '';

  #events = null;
  #layerTimer = 0;
  /** The layer selection that was not sent yet. */
  #pendingSelection = null;
  #sendingSelection = false;

  constructor(endpoint, options) {
    super(endpoint, options);
    this.addEventListener('state', () => {
      if (this.state === 'live') this.#pollLayers(0);
      else this.#closeEvents();
    });
  }

  /**
   * Selects the layer with this rid; without a rid, the best one. The last selection wins. Resolves with whether the
   * gateway accepted it; the result of a selection that was superseded is unspecified.
   */
  async choose(rid) {
    this.#pendingSelection = rid ? { rid } : {};
    // Requests are sent one after the other, because concurrent requests may be reordered.
    if (this.#sendingSelection) return true;
    this.#sendingSelection = true;
    let accepted = true;
    while (this.#pendingSelection) {
      const body = JSON.stringify(this.#pendingSelection);
      this.#pendingSelection = null;
      const { layer } = this.extensions;
      if (!layer) continue;
      const headers = { 'Content-Type': 'application/json' };
      // Without a timeout, a request over a lost network would block the selections of the next session.
      const signal = AbortSignal.timeout(SELECTION_TIMEOUT);
      accepted = await fetch(layer, { method: 'POST', headers, body, signal }).then(({ ok }) => ok, () => false);
    }
    this.#sendingSelection = false;
    return accepted;
  }

  /**
   * Polls whether there are several layers. Only then is an event stream opened, because it occupies a connection:
   * browsers open at most six to a gateway, and gateways limit connections.
   */
  async #pollLayers(times) {
    const { layer } = this.extensions;
    if (!layer || this.#events) return;
    const reply = await fetch(layer).catch(() => null);
    const answer = reply?.ok ? await reply.json().catch(() => ({})) : {};
    if (this.state !== 'live' || this.extensions.layer !== layer) return;
    if (reply?.ok) this.missing = missingVideo(reply.headers.get('Link') ?? '');
    if ((Object.values(answer)[0] ?? []).length > 1) {
      this.#openEvents().catch(() => {});
      return;
    }
    clearTimeout(this.#layerTimer);
    this.#layerTimer = setTimeout(() => this.#pollLayers(times + 1), LAYER_POLL_DELAYS[times] ?? LAYER_POLL_DELAYS.at(-1));
  }

  async #openEvents() {
    const url = this.extensions['server-sent-events'];
    if (!url || this.#events) return;
    this.#events = {};
    const opened = await fetch(url, { method: 'POST', body: '["layers"]' });
    const location = opened.headers.get('Location');
    if (!opened.ok || !location || !this.#events) return;
    this.#events = new EventSource(new URL(location, url));
    this.#events.addEventListener('layers', ({ data }) => this.#setLayers(Object.values(JSON.parse(data))[0] ?? []));
  }

  #closeEvents() {
    clearTimeout(this.#layerTimer);
    this.#events?.close?.();
    this.#events = null;
    if (this.layers.length > 0) this.#setLayers([]);
  }

  #setLayers(layers) {
    this.layers = layers;
    this.dispatchEvent(new Event('layers'));
  }

  onLinks(link, base) {
    super.onLinks(link, base);
    this.missing = missingVideo(link);
  }

  /** Whether the stream has video, according to the answer and later responses of the gateway. */
  get hasVideo() {
    const video = this.connection?.getTransceivers().find(({ receiver }) => receiver.track.kind === 'video');
    return Boolean(this.missing) || /recv/.test(video?.currentDirection ?? '');
  }

  /** Polls the layers, and the video that the session is missing, at once. */
  refreshLayers() {
    if (this.state !== 'live' || this.#events) return;
    clearTimeout(this.#layerTimer);
    this.#pollLayers(LAYER_POLL_DELAYS.length);
  }

  prepare(pc) {
    this.stream = new MediaStream();
    for (const kind of ['audio', 'video']) {
      const { receiver } = pc.addTransceiver(kind, { direction: 'recvonly' });
      this.stream.addTrack(receiver.track);
    }
  }

  /** Requests stereo: without this, Chromium decodes Opus to one channel (RFC 7587 §6.1). */
  shape(sdp) {
    const [, opus] = /^a=rtpmap:(\d+) opus\//im.exec(sdp) ?? [];
    return sdp.replace(new RegExp(`^a=fmtp:${opus} (?!.*stereo=1).*$`, 'm'), '$&;stereo=1');
  }

  /** Returns statistics from one `getStats` report; null without a session. */
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
