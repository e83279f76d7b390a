// Watching in the browser: a WHEP client and the custom element
//
//   <script type="module" src="/player.js"></script>
//   <millstream-player src="/whep/NAME" token="..."></millstream-player>
//
// The element starts muted, so that browsers let it start by itself. What it is doing can be read from its attributes:
//
//   data-state        idle, connecting, playing, paused, waiting, retrying, failed
//   data-sessions     sessions the gateway has granted; stays at 1 while a source comes and goes
//   data-frames       video frames decoded in this session
//   data-audio-energy energy of the sound decoded in this session (`totalAudioEnergy`); Chromium counts none while muted
//   data-first-frame  milliseconds from the offer to the first decoded frame of this session
//   data-codec        video codec being decoded, such as VP8
//   data-status       HTTP status of the refusal behind `waiting`, `retrying` and `failed`
//   data-way          how the picture comes: webrtc or hls
//   data-why          why it comes by HLS: connection, codec, silence, chosen
//   data-delay        seconds behind the source, by HLS
//   data-layers       versions of the picture that there are to choose from
//
// WebRTC goes first. Where it does not get through, brings nothing, or cannot be decoded, LL-HLS takes over, and WebRTC
// goes on being tried: when media comes that way, the player returns to it. `hls="off"` forbids it, `hls="only"` forbids
// WebRTC.

import { HlsClient, playlistOf, prepare } from './hls.js';
import { Client, PathLost } from './session.js';

/** How often the flow of media is looked at, in milliseconds. */
const LOOK_EVERY = 250;
/** Media that stood still for longer than this is called paused, in milliseconds. */
const STILL_FOR = 2_000;

/** WebRTC that is not connected after so long is helped out by HLS, in milliseconds. */
const CONNECTED_WITHIN = 900;
/** So is a connection that brings no picture, or none any more. */
const PICTURE_WITHIN = 2_000;
const STALLED_FOR = 3_600;
/** Between looks whether there are several versions of the picture, in milliseconds; the last one again and again. */
const ASK_AFTER = [2_000, 8_000, 30_000];
/** Between attempts at either way while the other one plays. */
const TRY_EVERY = 2_000;
/** How long a gateway may take to hear which layer is wanted, in milliseconds. */
const WISH_WITHIN = 3_000;

/** Receives one audio and one video track from a WHEP endpoint. The tracks are in `stream`, new for each session. */
export class WhepClient extends Client {
  stream = null;
  /** Versions of the picture, the best first: `{ rid, width, height, bitrate }`. Each change is a `layers` event. */
  layers = [];

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
    const answer = await fetch(layer).then((reply) => (reply.ok ? reply.json() : {}), () => ({}));
    if (this.state !== 'live') return;
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
    return {
      at: performance.now(),
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

const HTML = `
  <video playsinline autoplay muted></video>
  <div class="veil" role="status" aria-live="polite"><p class="title"></p><p class="text"></p>
    <button class="again" type="button" hidden>Try again</button></div>
  <p class="hint" hidden>Source paused</p>
  <dl class="numbers" hidden></dl>
  <div class="bar">
    <button class="play" type="button" aria-label="Pause" aria-keyshortcuts="k">
      <svg viewBox="0 0 24 24" aria-hidden="true"><path class="go" d="M7 4.5v15l12-7.5z"/>
        <path class="halt" d="M8 5v14m8-14v14"/></svg></button>
    <button class="live" type="button" title="Go to the live edge"><i></i><span>Live</span></button>
    <span class="way" hidden></span>
    <span class="gap"></span>
    <button class="sound" type="button" aria-keyshortcuts="m">
      <svg viewBox="0 0 24 24" aria-hidden="true"><path d="M4 9.5v5h3.5L12 19V5L7.5 9.5z"/>
        <path class="on" d="M15.5 8.5a5 5 0 0 1 0 7M18 6a8.5 8.5 0 0 1 0 12"/>
        <path class="off" d="M16 9.5l5 5m0-5l-5 5"/></svg><span></span></button>
    <input class="volume" type="range" min="0" max="1" step="0.05" value="1" aria-label="Volume">
    <select class="quality" aria-label="Quality" hidden></select>
    <button class="pip" type="button" aria-label="Picture in picture" aria-keyshortcuts="p">
      <svg viewBox="0 0 24 24" aria-hidden="true"><path d="M3 5h18v14H3zm9 7h7v5h-7z"/></svg></button>
    <button class="about" type="button" aria-label="Numbers" aria-keyshortcuts="i" aria-pressed="false">
      <svg viewBox="0 0 24 24" aria-hidden="true"><path d="M5 19v-6m7 6V5m7 14v-9"/></svg></button>
    <button class="full" type="button" aria-label="Full screen" aria-keyshortcuts="f">
      <svg viewBox="0 0 24 24" aria-hidden="true"><path d="M4 9V4h5m6 0h5v5m0 6v5h-5m-6 0H4v-5"/></svg></button>
  </div>`;

const CSS = `
  :host { display: block; position: relative; aspect-ratio: 16 / 9; overflow: hidden; border-radius: 12px;
    background: #0b1114; color: #f4f7f7; font: 15px/1.45 system-ui, sans-serif; }
  :host(:fullscreen) { border-radius: 0; }
  [hidden] { display: none !important; }
  video { position: absolute; inset: 0; width: 100%; height: 100%; object-fit: contain; opacity: 0;
    transition: opacity .4s; }
  video.pictured { opacity: 1; }
  .veil { position: absolute; inset: 0; display: grid; place-content: center; justify-items: center; gap: 6px;
    padding: 24px; text-align: center; background: #0b1114b3; opacity: 0; visibility: hidden;
    transition: opacity .4s, visibility .4s; }
  .veil.shown { opacity: 1; visibility: visible; }
  .veil p { margin: 0; max-width: 34em; text-wrap: balance; }
  .veil .title { font-size: 1.2em; font-weight: 600; }
  .veil .text { color: #b9c6c8; }
  .again { margin-top: 10px; }
  .hint { position: absolute; top: 14px; left: 14px; margin: 0; padding: 4px 12px; border-radius: 99px;
    background: #0b1114cc; color: #dbe5e6; font-size: .9em; }
  .numbers { position: absolute; top: 14px; right: 14px; margin: 0; padding: 10px 14px; border-radius: 8px;
    background: #0b1114cc; font-size: .85em; font-variant-numeric: tabular-nums; display: grid;
    grid-template-columns: auto auto; gap: 2px 14px; }
  .numbers dt { color: #9fb0b3; } .numbers dd { margin: 0; text-align: right; }
  .bar { position: absolute; inset: auto 0 0; display: flex; align-items: center; gap: 6px; padding: 28px 12px 10px;
    background: linear-gradient(#0b111400, #0b1114cc); opacity: 0; transition: opacity .3s; }
  :host(:hover) .bar, :host(:focus-within) .bar, .bar.muted { opacity: 1; }
  .veil.shown ~ .bar { opacity: 0 !important; visibility: hidden; }
  :host(.still) .bar:not(.muted, :focus-within) { opacity: 0; } :host(.still) { cursor: none; }
  .gap { flex: 1; }
  :host(:not([data-state=playing])) .live { display: none; }
  .live, .way { display: inline-flex; align-items: center; gap: 7px; font-size: .85em; letter-spacing: .02em; }
  .way { color: #b9c6c8; }
  .live i { width: 8px; height: 8px; border-radius: 50%; background: #ff5d5d; }
  button { display: inline-flex; align-items: center; gap: 8px; height: 38px; padding: 0 9px; border: 0;
    border-radius: 8px; background: transparent; color: inherit; font: inherit; cursor: pointer; }
  button:hover { background: #ffffff24; }
  .again, .bar.muted .sound { padding: 0 14px; background: #f4f7f7; color: #10181b; font-weight: 600; }
  .again:hover, .bar.muted .sound:hover { background: #fff; }
  select { height: 32px; padding: 0 6px; border: 0; border-radius: 8px; background: #ffffff24; color: inherit;
    font: inherit; font-size: .9em; } option { color: #10181b; }
  button:focus-visible, input:focus-visible, select:focus-visible { outline: 2px solid #7fd6d0; outline-offset: 2px; }
  svg { width: 20px; height: 20px; fill: none; stroke: currentColor; stroke-width: 1.8; stroke-linecap: round;
    stroke-linejoin: round; }
  .bar.halted .halt, .bar:not(.halted) .go, .sound span:empty, .bar.muted .on, .bar:not(.muted) .off, .bar.muted .volume { display: none; }
  .volume { width: 84px; accent-color: #f4f7f7; }
  @media (max-width: 460px) { .volume { display: none; } .numbers { font-size: .72em; gap: 0 10px; } }
  @media (prefers-reduced-motion: reduce) { * { transition: none !important; } }`;

/** What the menu calls layers: by their height, and by their bitrate where that does not tell them apart. */
function namesOf(layers) {
  const rate = ({ bitrate }) => `${Math.round(bitrate / 1000)} kbit/s`;
  const isAlone = ({ height }) => height && layers.filter((layer) => layer.height === height).length === 1;
  return layers.map((layer) => (isAlone(layer) ? `${layer.height}p` : [layer.height && `${layer.height}p`, rate(layer)].filter(Boolean).join(', ')));
}

export class MillstreamPlayer extends HTMLElement {
  static observedAttributes = ['src', 'token'];

  #client = null;
  // In a document: from then on a change of attributes means another session.
  #placed = false;
  #parts = {};
  #looking = 0;
  #seen = { progress: 0, at: 0 };
  #previous = null;
  #offeredAt = 0;
  /** The other way, while it is tried or used. */
  #hls = null;
  #triedAt = -Infinity;
  #arrived = { packets: 0, since: 0 };
  #resting = 0;
  /** Which version of the picture the viewer chose: of whom, and how it is called there; null for none. */
  #wanted = null;
  /** What each way was told last, and in which session. */
  #told = new WeakMap();

  constructor() {
    super();
    const root = this.attachShadow({ mode: 'open' });
    const sheet = new CSSStyleSheet();
    sheet.replaceSync(CSS);
    root.adoptedStyleSheets = [sheet];
    root.innerHTML = HTML;
    const part = (name) => root.querySelector(name);
    this.#parts = {
      video: part('video'), veil: part('.veil'), title: part('.title'), text: part('.text'), again: part('.again'),
      hint: part('.hint'), numbers: part('.numbers'), bar: part('.bar'), sound: part('.sound'),
      soundLabel: part('.sound span'), play: part('.play'), volume: part('.volume'), about: part('.about'), full: part('.full'),
      live: part('.live'), way: part('.way'), pip: part('.pip'), quality: part('.quality'),
    };
    this.#parts.video.muted = true;
    this.#listen();
    this.#showSound();
  }

  /** The client of the current source; null while the element is not in a document or has no `src`. */
  get client() {
    return this.#client;
  }

  get video() {
    return this.#parts.video;
  }

  connectedCallback() {
    if (!this.hasAttribute('tabindex')) this.tabIndex = 0;
    addEventListener('pagehide', this.#leave);
    addEventListener('pageshow', this.#join);
    addEventListener('online', this.#hurry);
    this.#placed = true;
    this.#join();
  }

  disconnectedCallback() {
    this.#placed = false;
    removeEventListener('pagehide', this.#leave);
    removeEventListener('pageshow', this.#join);
    removeEventListener('online', this.#hurry);
    this.#leave();
  }

  attributeChangedCallback() {
    if (!this.#placed) return;
    this.#leave();
    this.#join();
  }

  #join = () => {
    const src = this.getAttribute('src');
    if (!src || this.#client) return;
    this.#client = new WhepClient(src, { token: this.getAttribute('token') ?? '' });
    this.#client.addEventListener('state', () => this.#clientChanged());
    this.#client.addEventListener('layers', () => this.#showQuality());
    this.#looking = setInterval(() => this.#look(), LOOK_EVERY);
    if (this.getAttribute('hls') === 'only') this.#enterHls('chosen');
    else this.#client.start();
  };

  #leave = () => {
    clearInterval(this.#looking);
    this.#client?.stop();
    this.#client = null;
    this.#leaveHls();
  };

  #hurry = () => this.#client?.retryNow();

  #clientChanged() {
    const { state, reason, sessions, stream } = this.#client ?? { state: 'idle' };
    this.dataset.sessions = sessions ?? 0;
    if (reason?.status) this.dataset.status = reason.status;
    else delete this.dataset.status;
    if (state === 'connecting') {
      this.#offeredAt = performance.now();
      this.#seen = { progress: 0, at: performance.now() };
      this.dataset.frames = this.dataset.audioEnergy = 0;
      delete this.dataset.firstFrame;
      // The last picture of a session that broke stays until the next session has one.
      if (!this.#parts.video.srcObject) this.#attach(stream);
    }
    if (state === 'live') this.#attach(stream);
    // While attempts follow each other, what is shown stays calm.
    if (state === 'connecting' && ['waiting', 'retrying'].includes(this.dataset.state)) return;
    this.#show(state === 'retrying' && reason?.status === 409 ? 'waiting' : state, reason);
  }

  #attach(stream) {
    const { video } = this.#parts;
    if (video.srcObject === stream || this.#hls) return;
    video.srcObject = stream;
    video.play().catch(() => {});
  }

  /** Looks whether media flows; `live` without any is shown as `paused`. */
  async #look() {
    const now = await this.#client?.statistics();
    this.#choose(now);
    if (this.#hls) return this.#lookAtHls();
    if (!now || this.#client?.state !== 'live') return;
    this.dataset.frames = now.frames;
    this.dataset.audioEnergy = now.audioEnergy;
    if (now.codec) this.dataset.codec = now.codec;
    const progress = now.frames || now.audioPackets;
    if (progress !== this.#seen.progress) {
      if (now.frames && !this.dataset.firstFrame) this.dataset.firstFrame = Math.round(now.at - this.#offeredAt);
      this.#seen = { progress, at: now.at };
      this.dataset.way = 'webrtc';
      this.#show('playing');
    } else if (now.at - this.#seen.at > STILL_FOR) {
      this.#show('paused');
    }
    this.#count(now);
  }

  /** Whether the way has to be changed. `now` is what WebRTC has brought. */
  #choose(now) {
    const client = this.#client;
    if (!client) return;
    const at = performance.now();
    if (this.#hls) {
      if (client.state === 'retrying' && at - this.#triedAt > TRY_EVERY) {
        this.#triedAt = at;
        client.retryNow();
      }
      this.#climb(now, at);
      return;
    }
    if (this.getAttribute('hls') === 'only') {
      if (at - this.#triedAt > TRY_EVERY) this.#enterHls('chosen');
      return;
    }
    const waited = at - this.#offeredAt;
    const { state, reason } = client;
    const still = at - this.#seen.at;
    let why;
    if (reason?.status === 406 || reason?.status === 422) why = 'codec';
    else if (state === 'connecting' && this.#offeredAt && waited > CONNECTED_WITHIN) why = 'connection';
    else if (state === 'connecting' && this.#offeredAt && waited > CONNECTED_WITHIN / 2) prepare();
    else if (state === 'retrying' && reason instanceof PathLost) why = 'connection';
    else if (state === 'live' && !this.#seen.progress && waited > CONNECTED_WITHIN + PICTURE_WITHIN) why = 'silence';
    else if (state === 'live' && this.#seen.progress && still > STALLED_FOR && client.reachable) why = 'silence';
    if (why && at - this.#triedAt > TRY_EVERY) this.#enterHls(why);
  }

  /** A choice only where there is one. What was chosen stays chosen while it is there, whichever way the picture comes. */
  #showQuality() {
    const { quality } = this.#parts;
    const layers = (this.#chooser?.layers ?? []).filter(({ bitrate }) => bitrate > 0);
    const names = namesOf(layers);
    const options = layers.map(({ rid }, index) => new Option(names[index], rid));
    quality.replaceChildren(new Option(this.#chooser === this.#hls ? 'Auto' : 'Best', ''), ...options);
    const wanted = this.#wanted;
    // Who was asked knows it by its identifier, whatever its size is now; the other way knows sizes only.
    const index = layers.findIndex(({ rid }, index) =>
      wanted?.chooser === this.#chooser ? rid === wanted.rid : names[index] === wanted?.name);
    if (wanted?.chooser === this.#chooser && index >= 0) wanted.name = names[index];
    quality.value = layers[index]?.rid ?? '';
    quality.hidden = layers.length < 2;
    this.dataset.layers = layers.length;
    if (!wanted || index >= 0) this.#tellQuality();
  }

  /** Tells the choice to whom does not know it: the other way, or another session. */
  async #tellQuality() {
    const [chooser, rid] = [this.#chooser, this.#parts.quality.value];
    if (!chooser || chooser.layers.length === 0) return;
    const session = chooser.sessions ?? 0;
    const told = this.#told.get(chooser);
    if ((told?.session === session ? told.rid : '') === rid) return;
    const now = { session, rid };
    this.#told.set(chooser, now);
    const heard = await chooser.choose(rid);
    if (!heard && this.#told.get(chooser) === now) this.#told.delete(chooser);
  }

  /** By whom the choice is made. */
  get #chooser() {
    return this.#hls?.layers.length ? this.#hls : this.#client;
  }

  #enterHls(why) {
    this.#triedAt = performance.now();
    const url = this.getAttribute('hls') === 'off' ? null : playlistOf(this.getAttribute('src'));
    if (!url) return;
    const hls = new HlsClient(url, { token: this.getAttribute('token') ?? '' });
    this.#hls = hls;
    this.#arrived = { packets: 0, since: 0 };
    if (why === 'chosen' && !this.dataset.state) this.#show('connecting');
    hls.addEventListener('layers', () => this.#showQuality());
    hls.addEventListener('state', () => {
      if (this.#hls !== hls) return;
      if (hls.state === 'playing') {
        this.dataset.way = 'hls';
        this.dataset.why = why;
        this.#seen.progress ||= 1;
        this.#show('playing');
        this.#showWay();
      }
      // That way is closed too, or the stream is away: WebRTC says more about it.
      if (hls.state === 'failed') {
        this.#leaveHls();
        if (why === 'chosen') this.#show('waiting');
      }
    });
    hls.start(this.#parts.video);
  }

  /** WebRTC brings media again, and goes on doing so: back to it. */
  #climb(now, at) {
    const packets = this.#client.state === 'live' ? (now?.videoPackets || now?.audioPackets || 0) : 0;
    const flows = packets > this.#arrived.packets;
    if (!flows && at - this.#arrived.at > 600) this.#arrived.since = 0;
    if (!flows) return;
    this.#arrived = { packets, at, since: this.#arrived.since || at };
    if (this.dataset.why !== 'codec' && at - this.#arrived.since > 700) this.#leaveHls();
  }

  #leaveHls() {
    const hls = this.#hls;
    if (!hls) return;
    this.#hls = null;
    this.#triedAt = performance.now();
    hls.stop();
    delete this.dataset.why;
    delete this.dataset.delay;
    this.dataset.way = 'webrtc';
    this.#seen = { progress: 0, at: performance.now() };
    this.#offeredAt = performance.now();
    if (this.#client?.state === 'live') this.#attach(this.#client.stream);
    this.#showWay();
    this.#showQuality();
  }

  #lookAtHls() {
    const hls = this.#hls;
    if (hls?.state !== 'playing') return;
    const now = hls.statistics();
    this.dataset.frames = now.frames;
    if (hls.delay) this.dataset.delay = hls.delay.toFixed(2);
    if (now.codec) this.dataset.codec = now.codec;
    this.#showWay();
    this.#count({ ...now, bytes: 0, lost: now.dropped });
  }

  #showWay() {
    const { way } = this.#parts;
    const reasons = {
      chosen: 'as chosen', connection: 'WebRTC does not get through', codec: 'no decoder for WebRTC', silence: 'nothing came by WebRTC',
    };
    const isHls = this.dataset.way === 'hls';
    way.hidden = !isHls;
    if (isHls) {
      const delay = this.dataset.delay ? `, ${Number(this.dataset.delay).toFixed(1)} s behind` : '';
      way.textContent = `by HLS: ${reasons[this.dataset.why] ?? ''}${delay}`;
    }
  }

  #show(state, reason) {
    // What the other way shows goes before what this one has to say.
    if (this.#hls?.state === 'playing' && state !== 'playing') return;
    // For the viewer, a connection is on its way until media flows; one that recovers goes on where it was.
    const flowed = ['playing', 'paused'].includes(this.dataset.state);
    const shown = state !== 'live' ? state : flowed ? this.dataset.state : 'connecting';
    if (this.dataset.state === shown && !reason) return;
    this.dataset.state = shown;
    const began = this.#seen.progress > 0;
    const { veil, title, text, again, hint } = this.#parts;
    const words = explain(shown, reason, began);
    veil.classList.toggle('shown', Boolean(words));
    if (words) [title.textContent, text.textContent] = words;
    again.hidden = shown !== 'failed';
    hint.hidden = !(shown === 'paused' && began);
    this.dispatchEvent(new CustomEvent('statechange', { detail: { state: shown, reason } }));
  }

  #count(now) {
    const before = this.#previous ?? now;
    if (now.at - before.at < 1_000 && this.#previous) return;
    this.#previous = now;
    if (this.#parts.numbers.hidden || now === before) return;
    const seconds = (now.at - before.at) / 1000;
    const rows = {
      Way: this.#hls ? 'LL-HLS' : 'WebRTC',
      Picture: now.width ? `${now.width} × ${now.height}` : '–',
      Codec: now.codec ?? '–',
      Frames: `${Math.max(0, (now.frames - before.frames) / seconds).toFixed(0)} /s`,
      Rate: `${Math.max(0, ((now.bytes - before.bytes) * 8) / seconds / 1000).toFixed(0)} kbit/s`,
      Buffer: now.buffered === undefined ? '–' : `${(now.buffered * 1000).toFixed(0)} ms`,
      'Round trip': now.roundTrip === undefined ? '–' : `${(now.roundTrip * 1000).toFixed(0)} ms`,
      Lost: `${now.lost} packets`,
    };
    this.#parts.numbers.replaceChildren(...Object.entries(rows).flatMap(([name, value]) => {
      const [dt, dd] = [document.createElement('dt'), document.createElement('dd')];
      [dt.textContent, dd.textContent] = [name, value];
      return [dt, dd];
    }));
  }

  #listen() {
    const { video, again, play, sound, volume, about, full, numbers, live, pip, quality } = this.#parts;
    again.addEventListener('click', () => this.#client?.start());
    play.addEventListener('click', () => this.#togglePlay());
    for (const event of ['play', 'pause']) video.addEventListener(event, () => this.#showPlay());
    quality.addEventListener('change', () => {
      const name = quality.selectedOptions[0]?.text;
      this.#wanted = quality.value ? { chooser: this.#chooser, rid: quality.value, name } : null;
      this.#tellQuality();
    });
    sound.addEventListener('click', () => this.#toggleSound());
    volume.addEventListener('input', () => (video.volume = Number(volume.value)));
    video.addEventListener('loadeddata', () => video.classList.add('pictured'));
    video.addEventListener('volumechange', () => this.#showSound());
    about.addEventListener('click', () => {
      numbers.hidden = !numbers.hidden;
      about.setAttribute('aria-pressed', String(!numbers.hidden));
    });
    live.addEventListener('click', () => this.#hls?.toLiveEdge());
    pip.hidden = !document.pictureInPictureEnabled;
    pip.addEventListener('click', () => this.#togglePicture());
    full.addEventListener('click', () => this.#toggleFull());
    video.addEventListener('dblclick', () => this.#toggleFull());
    this.addEventListener('keydown', (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      // Keys belong to the control that has the focus, where it has a use for them.
      const [inner] = event.composedPath();
      if (inner.matches?.('select, input')) return;
      const action = { k: play, m: sound, f: full, i: about, p: pip }[event.key.toLowerCase()];
      action?.click();
    });
    this.addEventListener('pointermove', () => {
      this.classList.remove('still');
      clearTimeout(this.#resting);
      this.#resting = setTimeout(() => this.classList.add('still'), 3_000);
    });
  }

  #togglePlay() {
    const { video } = this.#parts;
    if (!video.paused) return video.pause();
    // What was missed is gone: it goes on with what is live.
    this.#hls?.toLiveEdge();
    video.play().catch(() => {});
  }

  #showPlay() {
    const { video, bar, play } = this.#parts;
    bar.classList.toggle('halted', video.paused);
    play.setAttribute('aria-label', video.paused ? 'Play' : 'Pause');
  }

  #toggleSound() {
    const { video } = this.#parts;
    video.muted = !video.muted;
    video.play().catch(() => {});
  }

  #showSound() {
    const { video, bar, sound, soundLabel } = this.#parts;
    bar.classList.toggle('muted', video.muted);
    soundLabel.textContent = video.muted ? 'Turn sound on' : '';
    sound.setAttribute('aria-label', video.muted ? 'Turn sound on' : 'Turn sound off');
  }

  #togglePicture() {
    const { video } = this.#parts;
    if (document.pictureInPictureElement) document.exitPictureInPicture();
    else video.requestPictureInPicture?.().catch(() => {});
  }

  #toggleFull() {
    if (document.fullscreenElement) document.exitFullscreen();
    // iPhones offer full screen for the video alone.
    else if (this.requestFullscreen) this.requestFullscreen().catch(() => {});
    else this.#parts.video.webkitEnterFullscreen?.();
  }
}

/** Title and text for a state that hides the picture; undefined when the picture speaks for itself. */
function explain(state, reason, began) {
  const detail = reason?.detail ?? '';
  switch (state) {
    case 'connecting':
      return ['Connecting…', ''];
    case 'paused':
      return began ? undefined : ['Waiting for the picture', 'Connected; nothing has arrived yet.'];
    case 'waiting':
      return ['Waiting for the stream to begin', 'The picture will start by itself.'];
    case 'retrying':
      if (reason?.status === 404) return ['There is no such stream', detail || 'Looking again from time to time.'];
      if (reason?.status === 406 || reason?.status === 422) {
        return ['This browser cannot play the stream', detail || 'It has no decoder for the stream’s format.'];
      }
      if (reason?.status === 429 || reason?.status === 503) {
        return ['The gateway is busy', 'The picture will start as soon as there is room.'];
      }
      return ['Reconnecting…', reason?.status ? detail : 'The gateway cannot be reached at the moment.'];
    case 'failed':
      if (reason?.status === 401) return ['A token is needed to watch', 'The token is missing, wrong or has run out.'];
      if (reason?.status === 403) return ['This token is not for this stream', detail];
      return ['The gateway refused', detail || reason?.message || ''];
    default:
      return undefined;
  }
}

customElements.define('millstream-player', MillstreamPlayer);
