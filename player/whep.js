// A WHEP client (draft-ietf-wish-whep) with the extensions for layers and events. The player (`player.js`) displays
// what it receives.

import { Client, missingVideo, receivedBy } from './session.js';

/** Delays between polls of the layers, in milliseconds; the last one repeats. */
const LAYER_POLL_DELAYS = [2_000, 8_000, 30_000];
/** Timeout of a layer selection request, in milliseconds. */
const SELECTION_TIMEOUT = 3_000;
/** Timeout of a report, in milliseconds: the next one follows soon. */
const REPORT_TIMEOUT = 3_000;
/** An event stream that was opened for the quality alone is closed after this time without a limitation, in milliseconds. */
const QUALITY_TIMEOUT = 30_000;
/** Timeout of the request that opens an event stream, in milliseconds: it may come through on a path that carries little. */
const EVENTS_TIMEOUT = 10_000;
/** Delay after which an event stream that failed is opened again, in milliseconds. */
const EVENTS_RETRY_DELAY = 5_000;
/**
 * Maximum number of event streams that the clients of a page keep open where each one occupies a connection. Browsers open
 * six to a gateway, for all their pages, and requests of others would wait for one.
 */
const MAX_PLAIN_EVENT_STREAMS = 2;
/** Browsers speak HTTP/2, where streams share a connection, with TLS only. */
const isPlain = (url) => url.protocol === 'http:';
let plainEventStreams = 0;

/** Receives one audio and one video track from a WHEP endpoint. Each session has a new `stream` with the tracks. */
export class WhepClient extends Client {
  stream = null;
  /** Layers, the best first: `{ rid, width, height, bitrate }`. Each change is a `layers` event. */
  layers = [];
  /**
   * The last `quality` event of the session (docs/quality.md): `{ layer, video, limitation, bitrate }`; null while it is not
   * known. Each change is a `quality` event.
   */
  quality = null;
  /** Codec of the stream's video if this session cannot carry it; else empty. */
  missing = '';

  #events = null;
  #isEventStreamPlain = false;
  /** The event stream that the gateway has opened, `{ from, location }`: a session may have few, so it is read again. */
  #openedEvents = null;
  /** No event stream is opened before, in milliseconds of `performance.now()`: the last one failed. */
  #eventsPausedUntil = 0;
  #layerTimer = 0;
  #qualityTimer = 0;
  /** The layer selection that was not sent yet. */
  #pendingSelection = null;
  #sendingSelection = false;

  constructor(endpoint, options) {
    super(endpoint, options);
    this.addEventListener('state', () => {
      this.#eventsPausedUntil = 0;
      if (this.state === 'live') this.#pollLayers(0);
      else this.#closeEvents();
    });
  }

  /**
   * Selects the layer with this rid; without a rid, the gateway chooses by the path. The last selection wins. Resolves with whether the
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
   * Reports how long media waits in the player. Resolves with the delay of this session by its parts, as in the API of the
   * gateway; null where that takes no reports.
   */
  async reportDelay(report) {
    const { delay } = this.extensions;
    if (!delay) return null;
    const headers = { 'Content-Type': 'application/json' };
    const signal = AbortSignal.timeout(REPORT_TIMEOUT);
    const reply = await fetch(delay, { method: 'POST', headers, body: JSON.stringify(report), signal }).catch(() => null);
    return reply?.ok ? reply.json().catch(() => null) : null;
  }

  /**
   * Polls whether there are several layers. Only then, or for `watchQuality`, is an event stream opened, because it
   * occupies a connection: browsers open at most six to a gateway, and gateways limit connections. Where the page has too
   * many of them already, polling goes on.
   */
  async #pollLayers(times) {
    const { layer } = this.extensions;
    if (!layer) return;
    const reply = await fetch(layer).catch(() => null);
    const answer = reply?.ok ? await reply.json().catch(() => ({})) : {};
    if (this.state !== 'live' || this.extensions.layer !== layer) return;
    if (reply?.ok) this.missing = missingVideo(reply.headers.get('Link') ?? '');
    clearTimeout(this.#layerTimer);
    const layers = Object.values(answer)[0] ?? [];
    if (layers.length > 1 && this.#canOpenEvents) return this.#openEvents();
    // Without an event stream, the poll is all that tells of layers.
    if (reply?.ok && !this.#events && Math.max(layers.length, this.layers.length) > 1) this.#setLayers(layers);
    this.#layerTimer = setTimeout(() => this.#pollLayers(times + 1), LAYER_POLL_DELAYS[times] ?? LAYER_POLL_DELAYS.at(-1));
  }

  /**
   * Has the gateway report the quality of the session as long as it is limited: for streams with one layer, while frames
   * are missing. To be called again as long as they are: on a path that carries little, the first attempts may fail.
   */
  watchQuality() {
    if (this.state !== 'live') return;
    this.#openEvents();
    this.#closeEventsLater();
  }

  /** Closes the event stream in some time unless it is needed. */
  #closeEventsLater() {
    clearTimeout(this.#qualityTimer);
    this.#qualityTimer = setTimeout(() => {
      if (this.layers.length > 1 || this.quality?.limitation === 'bandwidth') return;
      this.#closeEvents();
      this.#pollLayers(LAYER_POLL_DELAYS.length);
    }, QUALITY_TIMEOUT);
  }

  /** Whether there is an event stream, or may be one more. */
  get #canOpenEvents() {
    const url = this.extensions['server-sent-events'];
    return Boolean(this.#events) || Boolean(url && (!isPlain(url) || plainEventStreams < MAX_PLAIN_EVENT_STREAMS));
  }

  async #openEvents() {
    const url = this.extensions['server-sent-events'];
    if (this.#events || !this.#canOpenEvents || performance.now() < this.#eventsPausedUntil) return;
    // Also marks this attempt: the session may end meanwhile.
    const events = { close() {} };
    this.#events = events;
    this.#isEventStreamPlain = isPlain(url);
    if (this.#isEventStreamPlain) plainEventStreams += 1;
    if (this.#openedEvents?.from !== url.href) {
      const signal = AbortSignal.timeout(EVENTS_TIMEOUT);
      const opened = await fetch(url, { method: 'POST', body: '["layers","quality"]', signal }).catch(() => null);
      const location = opened?.ok && opened.headers.get('Location');
      if (location) this.#openedEvents = { from: url.href, location: new URL(location, url) };
      if (this.#events !== events) return;
      if (!location) return this.#reopenEvents();
    }
    const source = new EventSource(this.#openedEvents.location);
    this.#events = source;
    source.addEventListener('layers', ({ data }) => this.#setLayers(Object.values(JSON.parse(data))[0] ?? []));
    source.addEventListener('quality', ({ data }) => this.#setQuality(JSON.parse(data)));
    source.addEventListener('error', () => {
      // It reconnects by itself unless the gateway rejected it.
      if (this.#events !== source || source.readyState !== EventSource.CLOSED) return;
      this.#openedEvents = null;
      this.#reopenEvents();
    });
  }

  #reopenEvents() {
    this.#closeEvents();
    this.#eventsPausedUntil = performance.now() + EVENTS_RETRY_DELAY;
    this.#layerTimer = setTimeout(() => this.state === 'live' && this.#pollLayers(LAYER_POLL_DELAYS.length), EVENTS_RETRY_DELAY);
  }

  #closeEvents() {
    clearTimeout(this.#layerTimer);
    clearTimeout(this.#qualityTimer);
    if (this.#events && this.#isEventStreamPlain) plainEventStreams -= 1;
    this.#events?.close();
    this.#events = null;
    if (this.layers.length > 0) this.#setLayers([]);
    if (this.quality) this.#setQuality(null);
  }

  #setQuality(quality) {
    this.quality = quality;
    this.dispatchEvent(new Event('quality'));
    if (quality) this.#closeEventsLater();
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

  /** Polls the layers, and the video that the session is missing, at once: no event stream tells of the latter. */
  refreshLayers() {
    if (this.state !== 'live') return;
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
  shape(offer) {
    const sdp = super.shape(offer);
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
      expected: [video, audio].reduce((sum, { packetsReceived = 0, packetsLost = 0 }) => sum + packetsReceived + packetsLost, 0),
      width: video.frameWidth,
      height: video.frameHeight,
      codec: report.get(video.codecId)?.mimeType?.split('/')[1],
      buffered: video.jitterBufferEmittedCount ? video.jitterBufferDelay / video.jitterBufferEmittedCount : undefined,
      roundTrip: pair?.currentRoundTripTime,
      playouts: [playoutOf(video), playoutOf(audio)],
    };
  }
}

/** Returns for how long the frames of a track, and how many, have waited in the jitter buffer and the decoder so far. */
const playoutOf = ({ jitterBufferDelay, jitterBufferEmittedCount = 0, totalDecodeTime = 0, framesDecoded = 0 }) => ({
  buffered: jitterBufferDelay, emitted: jitterBufferEmittedCount, decoding: totalDecodeTime, decoded: framesDecoded,
});
