// The player: a WHEP client and the custom element
//
//   <script type="module" src="/player.js"></script>
//   <millstream-player src="/whep/NAME" token="..." autoplay muted controls></millstream-player>
//
// The element behaves as an HTMLMediaElement: see `media-element.js`. Without `autoplay` it loads nothing before `play()`, or
// the click on the button that `controls` shows. Where the browser blocks unmuted autoplay, it mutes itself. Its attributes show
// its state:
//
//   data-state        idle, connecting, playing (a frame was shown within the last two seconds, or no video is sent and
//                     audio arrives), paused (connected without incoming media), waiting (the stream is not
//                     published), retrying, failed
//   data-sessions     sessions that the gateway has accepted; stays at 1 while a source comes and goes
//   data-frames       video frames decoded in this session
//   data-audio-energy energy of the audio decoded in this session (`totalAudioEnergy`); 0 in Chromium while muted
//   data-first-frame  milliseconds from the offer to the first displayed frame of this session
//   data-missing      codec of the stream's video that the transport in use cannot carry
//   data-codec        video codec being decoded, such as VP8
//   data-status       HTTP status of the rejected request that led to `waiting`, `retrying` or `failed`
//   data-way          transport in use: webrtc or hls
//   data-why          reason for HLS: connection, codec, silence (no media over WebRTC), chosen (by the page)
//   data-delay        HLS latency in seconds
//   data-layers       number of layers that can be selected
//   data-layer        name of the layer that is shown, such as 360p, if there are several
//   data-limited      what of the video is sent while the path carries no more: all (of a lower layer), reference_frames,
//                     key_frames, none
//
// WebRTC is preferred. If it cannot connect, does not deliver what the gateway sends, or cannot be decoded, the player
// falls back to LL-HLS and keeps retrying WebRTC; when media arrives over WebRTC, the player returns to it
// (`transport.js`). `hls="off"` disables the fallback, `hls="only"` disables WebRTC. When the source of a stream is
// gone, its last frame stays visible.
//
// When the gateway sends less than the best because the path carries no more (docs/quality.md), a notice says so
// (`limit.js`).

import { Controls } from './controls.js';
import { DataTracks } from './data.js';
import { DelayReport } from './delay-report.js';
import { HlsClient, playlistOf, prepare } from './hls.js';
import { QualityLimit } from './limit.js';
import { MediaElement } from './media-element.js';
import { explain, explainHls, explainLimit, unsupported, WAITING } from './messages.js';
import { namedLayers, QualityMenu } from './quality.js';
import { PathLost } from './session.js';
import { StatsPanel } from './stats-panel.js';
import { CSS, HTML } from './template.js';
import { chooseTransport, Flow, liveUntil, LIVE_TIMEOUT } from './transport.js';
import { WhepClient } from './whep.js';

export { WhepClient };

/** Interval at which statistics are polled, in milliseconds. */
const POLL_INTERVAL = 250;
/** Interval of WebRTC attempts while HLS plays, in milliseconds. */
const WEBRTC_RETRY_INTERVAL = 2_000;
/** Maximum gap between frames or packets of a continuous flow, in milliseconds. */
const MAX_FLOW_GAP = 600;
/** If no frame is decoded for this time, the gateway is asked whether it sends fewer, in milliseconds. */
const FRAME_GAP = 800;

export class MillstreamPlayer extends MediaElement {
  static observedAttributes = ['src', 'token', 'autoplay', 'poster'];

  #client = null;
  #data = new DataTracks();
  // The element is in a document: a change of its attributes starts a new session.
  #inDocument = false;
  #parts = {};
  #pollTimer = 0;
  /** When the last frame of the current transport was displayed; 0 for never. */
  #lastFrameAt = 0;
  /** When the current transport was started, and when the session was offered. */
  #transportSince = 0;
  #offeredAt = 0;
  #liveTimer = 0;
  #flow = new Flow(0);
  /** A frame of this stream has been displayed, over any transport. */
  #hasShownFrame = false;
  #stats;
  #delayReport = new DelayReport(Math.random());
  /** The delay of the session by its parts, as the gateway answered the last report; null while that is unknown. */
  #delay = null;
  #delaySession = 0;
  #limit = new QualityLimit();
  /** No frame has been decoded for some time although there is video. */
  #isInGap = false;
  /** The HLS client while it is tried or used, the reason, the time of the last attempt, and consecutive failures. */
  #hls = null;
  #hlsReason = '';
  #lastAttemptAt = -Infinity;
  #hlsFailures = 0;
  /** The last failure of the media path; null once there is one. */
  #pathLost = null;
  /** The last frame count, and the progress of WebRTC while HLS is used. */
  #frameCount = 0;
  #webrtcProgress = { count: 0, at: 0, since: 0 };
  #refreshedLayers = false;
  #menu;
  #controls;

  constructor() {
    super();
    const root = this.attachShadow({ mode: 'open' });
    const sheet = new CSSStyleSheet();
    sheet.replaceSync(CSS);
    root.adoptedStyleSheets = [sheet];
    root.innerHTML = HTML;
    const part = (name) => root.querySelector(name);
    this.#parts = {
      video: part('video'), poster: part('.poster'), overlay: part('.overlay'), title: part('.title'), text: part('.text'),
      retry: part('.retry'), lastFrame: part('.last-frame'), hint: part('.hint'), notice: part('.notice'), stats: part('.stats'),
      start: part('.start'), bar: part('.bar'), mute: part('.mute'), muteLabel: part('.mute span'), play: part('.play'),
      volume: part('.volume'), captions: part('.captions'), statsToggle: part('.stats-toggle'), fullscreen: part('.fullscreen'),
      live: part('.live'), transport: part('.transport'), pip: part('.pip'),
    };
    this.#menu = new QualityMenu(part('.quality'), () => this.#updateShownLayer());
    this.#stats = new StatsPanel(this.#parts.stats, () => [['Player', this.src], ['State', this.dataset.state ?? ''], ['Browser', navigator.userAgent]]);
    this.initialize(this.#parts.video);
    this.#watchFrames();
    this.#parts.retry.addEventListener('click', () => this.#client?.start());
    this.#controls = new Controls(this, this.#parts, () => this.#hls?.toLiveEdge());
  }

  /** The WHEP client; null while the element is not in a document or has no `src`. */
  get client() {
    return this.#client;
  }

  get video() {
    return this.#parts.video;
  }

  /**
   * Returns the messages of a data channel label (docs/data.md): an EventTarget with `message` events, and `send()`. Also
   * before there is a session; each session goes on with it. Messages come over WebRTC only.
   */
  data(label) {
    return this.#data.request(label);
  }

  /** The error that playback has ended with, as a MediaError has it; null for none. */
  get error() {
    const { state, reason } = this.#client ?? {};
    return state === 'failed' ? { code: MediaError.MEDIA_ERR_SRC_NOT_SUPPORTED, message: reason?.message ?? '' } : null;
  }

  connectedCallback() {
    super.connectedCallback();
    this.#controls.updateMute();
    for (const [name, value] of [['tabindex', '0'], ['role', 'region'], ['aria-label', 'Video player']]) {
      if (!this.hasAttribute(name)) this.setAttribute(name, value);
    }
    addEventListener('pagehide', this.#stop);
    addEventListener('pageshow', this.#start);
    addEventListener('online', this.#retryNow);
    this.#inDocument = true;
    this.#start();
  }

  disconnectedCallback() {
    this.#inDocument = false;
    removeEventListener('pagehide', this.#stop);
    removeEventListener('pageshow', this.#start);
    removeEventListener('online', this.#retryNow);
    this.#stop();
  }

  attributeChangedCallback(name, before, after) {
    if (name === 'poster') return this.#updatePoster();
    if (!this.#inDocument) return;
    if (name === 'autoplay') return this.#start();
    if (name === 'src' && before !== after) this.forgetPlayRequest();
    this.#stop();
    if (name === 'src' && before !== after) this.#clearVideo();
    this.#start();
  }

  startLoading() {
    this.#start();
    if (this.#client?.state === 'failed') this.#client.start();
  }

  restart() {
    this.#stop();
    this.#start();
  }

  #start = () => {
    const src = this.getAttribute('src');
    if (!src || !this.#inDocument || this.#client) return;
    if (!this.mayPlay) return this.#show('idle');
    this.#client = new WhepClient(src, { token: this.getAttribute('token') ?? '', data: this.#data });
    this.#client.addEventListener('state', () => this.#onClientState());
    this.#client.addEventListener('layers', () => this.#updateQuality());
    this.#client.addEventListener('quality', () => this.#updateShownLayer());
    this.#pollTimer = setInterval(() => this.#poll(), POLL_INTERVAL);
    if (this.getAttribute('hls') === 'only') this.#enterHls('chosen');
    else this.#client.start();
  };

  #stop = () => {
    clearInterval(this.#pollTimer);
    clearTimeout(this.#liveTimer);
    this.#client?.stop();
    this.#client = null;
    this.#leaveHls();
  };

  #retryNow = () => this.#client?.retryNow();

  #onClientState() {
    const { state, reason, sessions, stream } = this.#client ?? { state: 'idle' };
    this.dataset.sessions = sessions ?? 0;
    if (reason?.status) this.dataset.status = reason.status;
    else delete this.dataset.status;
    if (state === 'connecting') {
      const now = performance.now();
      this.#offeredAt = now;
      this.#flow = new Flow(now);
      this.#refreshedLayers = false;
      if (!this.#hls) this.#resetFrames(now);
      this.dataset.frames = this.dataset.audioEnergy = 0;
      delete this.dataset.firstFrame;
      delete this.dataset.missing;
      // The last frame of a failed session stays until the next session has one.
      if (!this.#parts.video.srcObject) this.#attach(stream);
    }
    if (state === 'live') this.#attach(stream);
    if (state === 'live') this.#pathLost = null;
    else if (reason instanceof PathLost) this.#pathLost = reason;
    // Frames are expected from now on.
    if (state === 'live' && !this.#hls && !this.#lastFrameAt) this.#resetFrames(performance.now());
    // The state of the stream may have changed, so HLS may succeed now too.
    if (state === 'live' || (state === 'retrying' && reason?.status)) this.#hlsFailures = 0;
    // The displayed state does not flicker between retries.
    if (state === 'connecting' && ['waiting', 'retrying'].includes(this.dataset.state)) return;
    this.#show(state === 'retrying' && reason?.status === 409 ? 'waiting' : state, reason);
  }

  #attach(stream) {
    const { video } = this.#parts;
    if (video.srcObject === stream || this.#hls) return;
    this.#keepLastFrame();
    video.srcObject = stream;
    this.playVideo();
  }

  /** Resets the frame state when the transport or the session changes. */
  #resetFrames(now) {
    this.#lastFrameAt = 0;
    this.#transportSince = now;
    this.#frameCount = 0;
    clearTimeout(this.#liveTimer);
    this.#liveTimer = setTimeout(() => this.#updateLive(), LIVE_TIMEOUT + 10);
  }

  /** Keeps the last frame visible until the new content of the video element has one. */
  #keepLastFrame() {
    const { video, lastFrame } = this.#parts;
    if (!this.#hasShownFrame || !lastFrame.hidden || !video.videoWidth) return;
    [lastFrame.width, lastFrame.height] = [video.videoWidth, video.videoHeight];
    lastFrame.getContext('2d').drawImage(video, 0, 0);
    lastFrame.hidden = false;
  }

  #clearVideo() {
    const { video, lastFrame } = this.#parts;
    video.srcObject = null;
    video.classList.remove('has-frame');
    lastFrame.hidden = true;
    this.#hasShownFrame = false;
  }

  #updatePoster() {
    const { poster } = this.#parts;
    poster.hidden = !this.poster;
    if (this.poster) poster.src = this.poster;
  }

  #watchFrames() {
    const { video } = this.#parts;
    const onFrame = (_, { width, height }) => {
      // Chromium displays two black pixels as a square before the first frame.
      if (width > 2 || height > 2) this.#onFrame(performance.now());
      video.requestVideoFrameCallback(onFrame);
    };
    video.requestVideoFrameCallback?.(onFrame);
  }

  /** Whether frames have to be counted by statistics: hidden pages and paused videos get no frame callbacks. */
  get #mustCountFrames() {
    const { video } = this.#parts;
    return document.hidden || video.paused || !video.requestVideoFrameCallback;
  }

  #onFrame(at) {
    const isHls = this.#hls?.state === 'playing' || (this.#hls && !this.#parts.video.srcObject);
    if (!isHls && this.#client?.state !== 'live') return;
    this.#lastFrameAt = at;
    // A hidden page decodes frames without displaying them.
    if (!document.hidden) {
      this.#hasShownFrame = true;
      this.#parts.video.classList.add('has-frame');
      this.#parts.lastFrame.hidden = true;
    }
    if (!isHls && !this.dataset.firstFrame) this.dataset.firstFrame = Math.round(at - this.#offeredAt);
    if (this.dataset.state !== 'playing') this.#updateLive();
  }

  /** Updates whether the stream is live, and schedules the next check for when it may no longer be. */
  #updateLive() {
    const isHls = this.#hls?.state === 'playing';
    if (!isHls && this.#client?.state !== 'live') return;
    const now = performance.now();
    const { hasVideo } = isHls ? this.#hls : this.#client;
    const audioAt = isHls ? this.#hls.playedAt : this.#flow.audioAt;
    const isWithoutVideo = !isHls && this.#limit.isWithoutVideo(now);
    const until = liveUntil({ hasVideo, frameAt: this.#lastFrameAt, audioAt, isWithoutVideo });
    clearTimeout(this.#liveTimer);
    if (until > now) {
      if (!isHls) this.dataset.way = 'webrtc';
      this.#show('playing');
      this.#liveTimer = setTimeout(() => this.#updateLive(), Math.max(10, until - now));
    } else if (isHls && this.#parts.video.paused) {
      // Paused by the viewer: the state stays.
      return;
    } else if (now - this.#transportSince > LIVE_TIMEOUT) {
      this.#show('paused');
    }
  }

  /** Polls statistics and chooses the transport. */
  async #poll() {
    const client = this.#client;
    const stats = await client?.statistics();
    if (!client || client !== this.#client) return;
    const now = performance.now();
    if (stats) this.#updateFlow(stats, now);
    this.#updateLimit();
    this.#chooseTransport(now);
    if (this.#hls) {
      this.#forgetDelay();
      return this.#pollHls();
    }
    if (!stats || client.state !== 'live') return;
    this.dataset.frames = stats.frames;
    this.dataset.audioEnergy = stats.audioEnergy;
    if (stats.codec) this.dataset.codec = stats.codec;
    this.#updateMissing(client.missing);
    this.#countFrames(stats.frames, now);
    // There is no callback for audio.
    this.#updateLive();
    this.#reportDelay(client, stats);
    this.#stats.update({ ...stats, delay: this.#delay }, Boolean(this.#hls));
  }

  /** Reports the delay of this player to the gateway, unless nobody sees what it plays. */
  async #reportDelay(client, stats) {
    const isSeen = !document.hidden || document.pictureInPictureElement;
    const { sessions } = client;
    if (!isSeen || this.#parts.video.paused || sessions !== this.#delaySession) this.#forgetDelay();
    this.#delaySession = sessions;
    if (!isSeen || this.#parts.video.paused) return;
    const report = this.#delayReport.update(stats, sessions, !this.#parts.stats.hidden);
    const delay = report && await client.reportDelay(report);
    // Without an answer, the last one stays.
    if (!delay || this.#hls || client !== this.#client || client.sessions !== sessions) return;
    this.#delayReport.confirm(stats.at, report);
    this.#delay = delay;
  }

  #forgetDelay() {
    this.#delayReport.pause();
    this.#delay = null;
  }

  #updateFlow(stats, now) {
    this.#flow.update({
      received: stats.received, packets: stats.videoPackets, sent: stats.sent, frames: stats.frames, audio: stats.audioPackets,
    }, now);
    // Progress of WebRTC while HLS is used.
    const count = this.#client.state !== 'live' ? 0 : this.#client.hasVideo ? stats.frames : stats.audioPackets;
    const flows = count > this.#webrtcProgress.count;
    if (!flows && now - this.#webrtcProgress.at > MAX_FLOW_GAP) this.#webrtcProgress = { count, at: now, since: 0 };
    if (flows) this.#webrtcProgress = { count, at: now, since: this.#webrtcProgress.since || now };
    // The flow begins with the offer, but frames can be expected of a connection only.
    const gap = Math.min(this.#flow.frameGap(now), now - this.#transportSince);
    const isInGap = this.#client.state === 'live' && this.#client.hasVideo && !this.#client.missing && gap > FRAME_GAP;
    if (isInGap) this.#client.watchQuality();
    this.#isInGap = isInGap;
  }

  #updateMissing(codec) {
    if (codec) this.dataset.missing = codec;
    else delete this.dataset.missing;
  }

  #countFrames(frames, now) {
    if (frames > this.#frameCount && this.#mustCountFrames) this.#onFrame(now);
    this.#frameCount = frames;
  }

  /** Changes the transport if necessary. */
  #chooseTransport(now) {
    const client = this.#client;
    const isHls = Boolean(this.#hls);
    if (isHls && client.state === 'retrying' && now - this.#lastAttemptAt > WEBRTC_RETRY_INTERVAL) {
      this.#lastAttemptAt = now;
      client.retryNow();
    }
    const { state, reason, granted, reachable, missing } = client;
    const flow = this.#flow.evaluate(now);
    const { use, why, prepare: prepareHls } = chooseTransport({
      setting: { off: 'off', only: 'only' }[this.getAttribute('hls')] ?? 'auto',
      using: isHls ? 'hls' : 'webrtc',
      why: this.#hlsReason,
      session: state,
      granted,
      waited: now - this.#offeredAt,
      status: reason?.status,
      pathLost: reason instanceof PathLost,
      reachable,
      missing,
      // Browsers need not decode frames of hidden pages.
      flow: { ...flow, undecodable: flow.undecodable && !document.hidden },
      flowing: this.#webrtcProgress.since ? now - this.#webrtcProgress.since : 0,
      stalled: this.#hlsStalled(now),
      tried: now - this.#lastAttemptAt,
      failures: this.#hlsFailures,
    });
    if (prepareHls) prepare(playlistOf(this.getAttribute('src')));
    if (use === 'hls' && !isHls) this.#enterHls(why);
    if (use === 'webrtc' && isHls) this.#leaveHls();
    // The stream may have changed to a codec that the session cannot carry. This is checked once for each stall.
    const isStalled = state === 'live' && client.hasVideo && !isHls && now - Math.max(this.#lastFrameAt, this.#transportSince) > 2 * LIVE_TIMEOUT;
    if (isStalled && !this.#refreshedLayers) client.refreshLayers();
    this.#refreshedLayers = isStalled;
  }

  /** Returns for how long HLS has displayed no frame although it should, in milliseconds. */
  #hlsStalled(now) {
    const isExpected = this.#hls?.state === 'playing' && this.#hls.hasVideo && !this.#hls.missing && !this.#parts.video.paused;
    return isExpected ? now - Math.max(this.#lastFrameAt, this.#transportSince) : 0;
  }

  #updateQuality() {
    this.dataset.layers = this.#menu.update(this.#layerClient);
    this.#updateShownLayer();
  }

  #updateShownLayer() {
    const shown = this.#menu.updateShown();
    if (shown) this.dataset.layer = shown;
    else delete this.dataset.layer;
    this.#updateLimit();
  }

  /** Updates the notice of a quality that is limited by the path. */
  #updateLimit() {
    const [client, now] = [this.#client, performance.now()];
    const layers = namedLayers(client);
    this.#limit.update(client?.quality ?? null, layers, now, this.#isInGap);
    const limit = this.#hls ? null : this.#limit.report(this.#menu.isSelected, now);
    if (limit) this.dataset.limited = limit.video;
    else delete this.dataset.limited;
    const shown = layers.find(({ rid }) => rid === limit?.rid)?.name;
    const text = explainLimit(limit, { shown, best: layers[0]?.name, hasAudio: this.#flow.audioAt > 0 });
    const { notice, hint } = this.#parts;
    // An unchanged text is not announced again.
    if (notice.textContent !== text) notice.textContent = text;
    // It says more than that media is missing.
    hint.classList.toggle('replaced', Boolean(text));
  }

  /** The client whose layers the menu shows. */
  get #layerClient() {
    return this.#hls?.layers.length ? this.#hls : this.#client;
  }

  #enterHls(why) {
    this.#lastAttemptAt = performance.now();
    const url = this.getAttribute('hls') === 'off' ? null : playlistOf(this.getAttribute('src'));
    if (!url) return;
    const hls = new HlsClient(url, { token: this.getAttribute('token') ?? '', play: () => this.playVideo() });
    this.#hls = hls;
    this.#hlsReason = why;
    this.#webrtcProgress = { count: Infinity, at: 0, since: 0 };
    if (why === 'chosen' && !this.dataset.state) this.#show('connecting');
    hls.addEventListener('layers', () => {
      this.#updateQuality();
      // Audio alone comes over WebRTC too.
      if (this.#hls === hls && hls.missing && why === 'codec') this.#giveUpHls();
    });
    hls.addEventListener('quality', () => this.#updateShownLayer());
    hls.addEventListener('change', () => {
      this.#keepLastFrame();
      if (this.#hls === hls) this.#resetFrames(performance.now());
    });
    hls.addEventListener('state', () => {
      if (this.#hls !== hls) return;
      if (hls.state === 'playing') {
        this.#hlsFailures = 0;
        this.dataset.way = 'hls';
        this.dataset.why = why;
        // WebRTC would only duplicate the audio; it cannot carry the video.
        const { state, missing } = this.#client ?? {};
        if (why === 'codec' && (state === 'live' || (state === 'connecting' && missing))) this.#client.stop();
        this.#updateLive();
        this.#updateTransport();
      }
      // HLS does not work either, or the stream is not live: WebRTC reports the reason.
      if (hls.state === 'failed') this.#giveUpHls();
    });
    hls.start(this.#parts.video);
  }

  #giveUpHls() {
    this.#hlsFailures += 1;
    this.#leaveHls();
  }

  #leaveHls() {
    const hls = this.#hls;
    if (!hls) return;
    const stateBefore = hls.state;
    this.#hls = null;
    this.#lastAttemptAt = performance.now();
    hls.stop();
    this.#hlsReason = '';
    delete this.dataset.why;
    delete this.dataset.delay;
    this.dataset.way = 'webrtc';
    // An attempt that never played has changed nothing.
    if (stateBefore === 'playing' || !this.#parts.video.srcObject) this.#resetFrames(performance.now());
    const client = this.#client;
    if (client?.state === 'live') this.#attach(client.stream);
    if (client && this.getAttribute('hls') === 'only') this.#show('waiting');
    else if (client?.state === 'idle') client.start();
    else if (client && stateBefore === 'playing') this.#onClientState();
    this.#updateTransport();
    this.#updateQuality();
  }

  #pollHls() {
    const hls = this.#hls;
    if (hls?.state !== 'playing') return;
    const now = hls.statistics();
    this.dataset.frames = now.frames;
    if (hls.delay) this.dataset.delay = hls.delay.toFixed(2);
    if (now.codec) this.dataset.codec = now.codec;
    this.#updateMissing(hls.missing);
    this.#countFrames(now.frames, performance.now());
    this.#updateLive();
    this.#updateTransport();
    this.#stats.update(now, Boolean(this.#hls));
  }

  #updateTransport() {
    const { transport } = this.#parts;
    const isHls = this.dataset.way === 'hls';
    transport.hidden = !isHls;
    if (isHls) {
      const latency = this.dataset.delay ? `, ${Number(this.dataset.delay).toFixed(1)} s latency` : '';
      transport.textContent = `HLS${this.dataset.why === 'chosen' ? '' : ' fallback'}${latency}`;
      transport.title = explainHls(this.dataset.why, this.#pathLost);
    }
  }

  #show(state, reason) {
    // While HLS plays, the state of WebRTC is not displayed.
    if (this.#hls?.state === 'playing' && !['playing', 'paused'].includes(state)) return;
    // The state is `connecting` until media arrives; after a recovered connection it is what it was before.
    const flowed = ['playing', 'paused'].includes(this.dataset.state);
    const shown = state !== 'live' ? state : flowed ? this.dataset.state : 'connecting';
    const { overlay, title, text, retry, hint } = this.#parts;
    const isHls = this.#hls?.state === 'playing';
    const missing = shown === 'paused' && (isHls ? this.#hls : this.#client)?.missing;
    const hintText = missing ? unsupported(missing, isHls) : WAITING;
    if (this.dataset.state === shown && !reason && hint.textContent === hintText) return;
    const message = explain(shown, reason, this.#hasShownFrame);
    this.dataset.state = shown;
    overlay.classList.toggle('shown', Boolean(message) && !missing);
    if (message) [title.textContent, text.textContent] = message;
    retry.hidden = shown !== 'failed';
    hint.textContent = hintText;
    hint.classList.toggle('middle', Boolean(missing));
    hint.hidden = !missing && !(['paused', 'waiting'].includes(shown) && this.#hasShownFrame);
    this.dispatchEvent(new CustomEvent('statechange', { detail: { state: shown, reason } }));
    if (shown !== 'failed') return;
    this.abortPlays(reason?.message ?? '');
    this.dispatchEvent(new Event('error'));
  }
}

// Two builds of the player may be on a page, and there is no registry where pages are rendered on a server.
if (globalThis.customElements && !customElements.get('millstream-player')) customElements.define('millstream-player', MillstreamPlayer);
