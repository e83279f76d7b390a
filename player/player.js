// Watching in the browser: a WHEP client and the custom element
//
//   <script type="module" src="/player.js"></script>
//   <millstream-player src="/whep/NAME" token="..."></millstream-player>
//
// The element starts muted, so that browsers let it start by itself. What it is doing can be read from its attributes:
//
//   data-state        idle, connecting, playing (a frame was shown within the last two seconds, or there is no video and
//                     sound comes), paused (connected, and nothing comes), waiting (nobody publishes), retrying, failed
//   data-sessions     sessions the gateway has granted; stays at 1 while a source comes and goes
//   data-frames       video frames decoded in this session
//   data-audio-energy energy of the sound decoded in this session (`totalAudioEnergy`); Chromium counts none while muted
//   data-first-frame  milliseconds from the offer to the first frame that was shown of this session
//   data-missing      codec of the video that the session cannot carry, as the browser has no decoder for it
//   data-codec        video codec being decoded, such as VP8
//   data-status       HTTP status of the refusal behind `waiting`, `retrying` and `failed`
//   data-way          how the picture comes: webrtc or hls
//   data-why          why it comes by HLS: connection, codec, silence, chosen
//   data-delay        seconds behind the source, by HLS
//   data-layers       versions of the picture that there are to choose from
//
// WebRTC goes first. Where it does not get through, brings nothing of what the gateway sends, or cannot be decoded, LL-HLS
// takes over, and WebRTC goes on being tried: when media comes that way, the player returns to it (`transport.js`).
// `hls="off"` forbids it, `hls="only"` forbids WebRTC. A stream whose source is gone keeps its last frame in sight.

import { HlsClient, playlistOf, prepare } from './hls.js';
import { PathLost } from './session.js';
import { choose, Flow, isLive, LIVE_FOR } from './transport.js';
import { WhepClient } from './whep.js';

export { WhepClient };

/** How often the flow of media is looked at, in milliseconds. */
const LOOK_EVERY = 250;
/** Between attempts at WebRTC while HLS plays. */
const TRY_EVERY = 2_000;
/** Frames or packets that are further apart do not flow, in milliseconds. */
const FLOW_GAP = 600;

const HTML = `
  <video playsinline autoplay muted></video>
  <canvas class="still" hidden></canvas>
  <div class="veil" role="status" aria-live="polite"><p class="title"></p><p class="text"></p>
    <button class="again" type="button" hidden>Try again</button></div>
  <p class="hint" role="status" hidden></p>
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
  video, .still { position: absolute; inset: 0; width: 100%; height: 100%; object-fit: contain; }
  .still { background: #0b1114; }
  video { opacity: 0; transition: opacity .4s; }
  video.pictured { opacity: 1; }
  .veil { position: absolute; inset: 0; display: grid; place-content: center; justify-items: center; gap: 6px;
    padding: 24px; text-align: center; background: #0b1114b3; opacity: 0; visibility: hidden;
    transition: opacity .4s, visibility .4s; }
  .veil.shown { opacity: 1; visibility: visible; }
  .veil p { margin: 0; max-width: 34em; text-wrap: balance; }
  .veil .title { font-size: 1.2em; font-weight: 600; }
  .veil .text { color: #b9c6c8; }
  .again { margin-top: 10px; }
  .hint { position: absolute; top: 14px; left: 14px; margin: 0; padding: 4px 12px; border-radius: 15px;
    max-width: calc(100% - 28px); background: #0b1114cc; color: #dbe5e6; font-size: .9em; }
  .hint.middle { inset: 50% auto auto 50%; width: max-content; transform: translate(-50%, -50%); text-align: center;
    text-wrap: balance; font-size: 1em; }
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
  :host(:not([data-state=playing])) .live, .bar.halted .live { display: none; }
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
  /** When a frame of what is used now was shown last; 0 for never. */
  #frameAt = 0;
  /** When what is used now began to be, and when the session was offered. */
  #usedSince = 0;
  #offeredAt = 0;
  #stillTimer = 0;
  #flow = new Flow(0);
  /** Frames of this stream have been shown, whatever is shown now. */
  #pictured = false;
  #previous = null;
  /** HLS, while it is tried or used, and what became of attempts. */
  #hls = null;
  #why = '';
  #triedAt = -Infinity;
  #failures = 0;
  /** Frames that were counted last, and what flows by WebRTC meanwhile. */
  #counted = 0;
  #arrived = { count: 0, at: 0, since: 0 };
  #asked = false;
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
      still: part('.still'), hint: part('.hint'), numbers: part('.numbers'), bar: part('.bar'), sound: part('.sound'),
      soundLabel: part('.sound span'), play: part('.play'), volume: part('.volume'), about: part('.about'), full: part('.full'),
      live: part('.live'), way: part('.way'), pip: part('.pip'), quality: part('.quality'),
    };
    this.#parts.video.muted = true;
    this.#watchFrames();
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

  attributeChangedCallback(name, before, after) {
    if (!this.#placed) return;
    this.#leave();
    if (name === 'src' && before !== after) this.#forgetPicture();
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
    clearTimeout(this.#stillTimer);
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
      const now = performance.now();
      this.#offeredAt = now;
      this.#flow = new Flow(now);
      this.#asked = false;
      if (!this.#hls) this.#begin(now);
      this.dataset.frames = this.dataset.audioEnergy = 0;
      delete this.dataset.firstFrame;
      delete this.dataset.missing;
      // The last picture of a session that broke stays until the next session has one.
      if (!this.#parts.video.srcObject) this.#attach(stream);
    }
    if (state === 'live') this.#attach(stream);
    // From here on frames are due.
    if (state === 'live' && !this.#hls && !this.#frameAt) this.#begin(performance.now());
    // What the gateway says of the stream is new: HLS may be better off now too.
    if (state === 'live' || (state === 'retrying' && reason?.status)) this.#failures = 0;
    // While attempts follow each other, what is shown stays calm.
    if (state === 'connecting' && ['waiting', 'retrying'].includes(this.dataset.state)) return;
    this.#show(state === 'retrying' && reason?.status === 409 ? 'waiting' : state, reason);
  }

  #attach(stream) {
    const { video } = this.#parts;
    if (video.srcObject === stream || this.#hls) return;
    this.#keepStill();
    video.srcObject = stream;
    video.play().catch(() => {});
  }

  /** Something else is used from now on: nothing of it was shown yet. */
  #begin(now) {
    this.#frameAt = 0;
    this.#usedSince = now;
    this.#counted = 0;
    clearTimeout(this.#stillTimer);
    this.#stillTimer = setTimeout(() => this.#judge(), LIVE_FOR + 10);
  }

  /** Keeps the last frame in sight until what the video element changes to has one. */
  #keepStill() {
    const { video, still } = this.#parts;
    if (!this.#pictured || !still.hidden || !video.videoWidth) return;
    [still.width, still.height] = [video.videoWidth, video.videoHeight];
    still.getContext('2d').drawImage(video, 0, 0);
    still.hidden = false;
  }

  #forgetPicture() {
    const { video, still } = this.#parts;
    video.srcObject = null;
    video.classList.remove('pictured');
    still.hidden = true;
    this.#pictured = false;
  }

  #watchFrames() {
    const { video } = this.#parts;
    const shown = () => {
      this.#frameShown(performance.now());
      video.requestVideoFrameCallback(shown);
    };
    video.requestVideoFrameCallback?.(shown);
  }

  /** Whether frames have to be counted instead of seen: no page that is hidden, and no halted video, is told of them. */
  get #counts() {
    const { video } = this.#parts;
    return document.hidden || video.paused || !video.requestVideoFrameCallback;
  }

  #frameShown(at) {
    const isHls = this.#hls?.state === 'playing' || (this.#hls && !this.#parts.video.srcObject);
    if (!isHls && this.#client?.state !== 'live') return;
    this.#frameAt = at;
    this.#pictured = true;
    this.#parts.still.hidden = true;
    if (!isHls && !this.dataset.firstFrame) this.dataset.firstFrame = Math.round(at - this.#offeredAt);
    if (this.dataset.state !== 'playing') this.#judge();
  }

  /** Says whether it is live, and looks again when it may no longer be. */
  #judge() {
    const isHls = this.#hls?.state === 'playing';
    if (!isHls && this.#client?.state !== 'live') return;
    const now = performance.now();
    const { hasVideo } = isHls ? this.#hls : this.#client;
    const soundAt = isHls ? this.#hls.playedAt : this.#flow.soundAt;
    const live = isLive({ hasVideo, frameAt: this.#frameAt, soundAt }, now);
    clearTimeout(this.#stillTimer);
    if (live) {
      if (!isHls) this.dataset.way = 'webrtc';
      this.#show('playing');
      const last = hasVideo ? this.#frameAt : soundAt;
      this.#stillTimer = setTimeout(() => this.#judge(), Math.max(10, last + LIVE_FOR - now));
    } else if (isHls && this.#parts.video.paused) {
      // By its viewer: it stays as it is.
      return;
    } else if (now - this.#usedSince > LIVE_FOR) {
      this.#show('paused');
    }
  }

  /** Looks at what flows, and chooses between the transports. */
  async #look() {
    const client = this.#client;
    const stats = await client?.statistics();
    if (!client || client !== this.#client) return;
    const now = performance.now();
    if (stats) this.#noteFlow(stats, now);
    this.#choose(now);
    if (this.#hls) return this.#lookAtHls();
    if (!stats || client.state !== 'live') return;
    this.dataset.frames = stats.frames;
    this.dataset.audioEnergy = stats.audioEnergy;
    if (stats.codec) this.dataset.codec = stats.codec;
    if (client.missing) this.dataset.missing = client.missing;
    else delete this.dataset.missing;
    this.#countFrames(stats.frames, now);
    // Sound is told of by nobody.
    this.#judge();
    this.#count(stats);
  }

  #noteFlow(stats, now) {
    this.#flow.note({
      received: stats.received, packets: stats.videoPackets, sent: stats.sent, frames: stats.frames, sound: stats.audioPackets,
    }, now);
    // What flows by WebRTC while HLS is used.
    const count = this.#client.state !== 'live' ? 0 : this.#client.hasVideo ? stats.frames : stats.audioPackets;
    const flows = count > this.#arrived.count;
    if (!flows && now - this.#arrived.at > FLOW_GAP) this.#arrived = { count, at: now, since: 0 };
    if (flows) this.#arrived = { count, at: now, since: this.#arrived.since || now };
  }

  #countFrames(frames, now) {
    if (frames > this.#counted && this.#counts) this.#frameShown(now);
    this.#counted = frames;
  }

  /** Changes the transport where that is called for. */
  #choose(now) {
    const client = this.#client;
    const isHls = Boolean(this.#hls);
    if (isHls && client.state === 'retrying' && now - this.#triedAt > TRY_EVERY) {
      this.#triedAt = now;
      client.retryNow();
    }
    const { state, reason, granted, reachable, missing } = client;
    const flow = this.#flow.conclude(now);
    const { use, why, prepare: soon } = choose({
      setting: { off: 'off', only: 'only' }[this.getAttribute('hls')] ?? 'auto',
      using: isHls ? 'hls' : 'webrtc',
      why: this.#why,
      session: state,
      granted,
      waited: now - this.#offeredAt,
      status: reason?.status,
      pathLost: reason instanceof PathLost,
      reachable,
      missing,
      // Frames that nobody could see need not be decoded.
      flow: { ...flow, undecodable: flow.undecodable && !document.hidden },
      flowing: this.#arrived.since ? now - this.#arrived.since : 0,
      stalled: this.#hlsStalled(now),
      tried: now - this.#triedAt,
      failures: this.#failures,
    });
    if (soon) prepare();
    if (use === 'hls' && !isHls) this.#enterHls(why);
    if (use === 'webrtc' && isHls) this.#leaveHls();
    // The stream may have changed to what the session cannot carry; once is enough for each time that it stands still.
    const stands = state === 'live' && client.hasVideo && !isHls && now - Math.max(this.#frameAt, this.#usedSince) > 2 * LIVE_FOR;
    if (stands && !this.#asked) client.askAgain();
    this.#asked = stands;
  }

  /** For how long HLS has shown nothing although it should. */
  #hlsStalled(now) {
    const isDue = this.#hls?.state === 'playing' && this.#hls.hasVideo && !this.#parts.video.paused;
    return isDue ? now - Math.max(this.#frameAt, this.#usedSince) : 0;
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
    this.#why = why;
    this.#arrived = { count: Infinity, at: 0, since: 0 };
    if (why === 'chosen' && !this.dataset.state) this.#show('connecting');
    hls.addEventListener('layers', () => this.#showQuality());
    hls.addEventListener('change', () => {
      this.#keepStill();
      if (this.#hls === hls) this.#begin(performance.now());
    });
    hls.addEventListener('state', () => {
      if (this.#hls !== hls) return;
      if (hls.state === 'playing') {
        this.#failures = 0;
        this.dataset.way = 'hls';
        this.dataset.why = why;
        // It would bring the sound a second time, and never the video.
        if (why === 'codec' && this.#client?.state === 'live') this.#client.stop();
        this.#judge();
        this.#showWay();
      }
      // That way is closed too, or the stream is away: WebRTC says more about it.
      if (hls.state === 'failed') {
        this.#failures += 1;
        this.#leaveHls();
      }
    });
    hls.start(this.#parts.video);
  }

  #leaveHls() {
    const hls = this.#hls;
    if (!hls) return;
    const was = hls.state;
    this.#hls = null;
    this.#triedAt = performance.now();
    hls.stop();
    this.#why = '';
    delete this.dataset.why;
    delete this.dataset.delay;
    this.dataset.way = 'webrtc';
    // An attempt that never got so far as to show something has changed nothing.
    if (was === 'playing' || !this.#parts.video.srcObject) this.#begin(performance.now());
    const client = this.#client;
    if (client?.state === 'live') this.#attach(client.stream);
    if (client && this.getAttribute('hls') === 'only') this.#show('waiting');
    else if (client?.state === 'idle') client.start();
    else if (client && was === 'playing') this.#clientChanged();
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
    this.#countFrames(now.frames, performance.now());
    this.#judge();
    this.#showWay();
    this.#count({ ...now, bytes: 0, lost: now.dropped });
  }

  #showWay() {
    const { way } = this.#parts;
    const reasons = {
      chosen: 'as chosen', connection: 'no connection over WebRTC', codec: 'codec not supported over WebRTC',
      silence: 'nothing arrives over WebRTC',
    };
    const isHls = this.dataset.way === 'hls';
    way.hidden = !isHls;
    if (isHls) {
      const latency = this.dataset.delay ? `, ${Number(this.dataset.delay).toFixed(1)} s latency` : '';
      way.textContent = `HLS${this.dataset.why === 'chosen' ? '' : ' fallback'}${latency}`;
      way.title = reasons[this.dataset.why] ?? '';
    }
  }

  #show(state, reason) {
    // What HLS shows goes before what WebRTC has to say.
    if (this.#hls?.state === 'playing' && !['playing', 'paused'].includes(state)) return;
    // For the viewer, a connection is on its way until media flows; one that recovers goes on where it was.
    const flowed = ['playing', 'paused'].includes(this.dataset.state);
    const shown = state !== 'live' ? state : flowed ? this.dataset.state : 'connecting';
    const { veil, title, text, again, hint } = this.#parts;
    const missing = shown === 'paused' && this.#hls?.state !== 'playing' && this.#client?.missing;
    const note = missing ? `This stream is ${missing.replace(/^H(?=26)/, 'H.')}, which your browser cannot play: sound only` : WAITING;
    if (this.dataset.state === shown && !reason && hint.textContent === note) return;
    const words = explain(shown, reason, this.#pictured);
    this.dataset.state = shown;
    veil.classList.toggle('shown', Boolean(words) && !missing);
    if (words) [title.textContent, text.textContent] = words;
    again.hidden = shown !== 'failed';
    hint.textContent = note;
    hint.classList.toggle('middle', Boolean(missing));
    hint.hidden = !missing && !(['paused', 'waiting'].includes(shown) && this.#pictured);
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

const WAITING = 'Waiting for the stream';

/** Title and text for a state that hides the picture; undefined when the picture speaks for itself. */
function explain(state, reason, pictured) {
  const detail = reason?.detail ?? '';
  switch (state) {
    case 'connecting':
      return ['Connecting…', ''];
    case 'paused':
      return pictured ? undefined : [WAITING, 'Connected; no media has arrived yet.'];
    case 'waiting':
      return pictured ? undefined : [WAITING, 'It will start by itself.'];
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
