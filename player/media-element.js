// The base of the player element: it behaves as an HTMLMediaElement (HTML standard §4.8.11), so that scripts, frameworks and
// sets of controls that know `<video>` can use it. Media is played by a `<video>` in the shadow tree, `video`, whose source
// the subclass changes whenever the transport does.

/** Properties of `video` that the element has too. What `set` lists can be assigned. */
const GET = [
  'buffered', 'duration', 'networkState', 'played', 'preservesPitch', 'readyState', 'seekable', 'seeking', 'textTracks',
  'videoHeight', 'videoWidth',
];
const SET = ['currentTime', 'defaultPlaybackRate', 'disablePictureInPicture', 'muted', 'playbackRate', 'volume'];
const METHODS = [
  'addTextTrack', 'cancelVideoFrameCallback', 'canPlayType', 'getVideoPlaybackQuality', 'requestPictureInPicture',
  'requestVideoFrameCallback',
];
/** Attributes that are properties of the same meaning. */
const FLAGS = { autoplay: 'autoplay', controls: 'controls', defaultMuted: 'muted' };
const TEXTS = { poster: 'poster', token: 'token' };
const CONSTANTS = [
  'NETWORK_EMPTY', 'NETWORK_IDLE', 'NETWORK_LOADING', 'NETWORK_NO_SOURCE',
  'HAVE_NOTHING', 'HAVE_METADATA', 'HAVE_CURRENT_DATA', 'HAVE_FUTURE_DATA', 'HAVE_ENOUGH_DATA',
];

/** Events of `video` that the element sends too. `play`, `pause` and `error` are its own; `ended` is that of a session. */
const FORWARDED_EVENTS = [
  'abort', 'canplay', 'canplaythrough', 'durationchange', 'emptied', 'enterpictureinpicture', 'leavepictureinpicture',
  'loadeddata', 'loadedmetadata', 'loadstart', 'playing', 'progress', 'ratechange', 'resize', 'seeked', 'seeking', 'stalled',
  'suspend', 'timeupdate', 'volumechange', 'waiting',
];

/** Without a DOM, as where pages are rendered on a server, the module can be imported all the same. */
const { HTMLElement: Base = class {}, HTMLMediaElement: Native = {} } = globalThis;

export class MediaElement extends Base {
  /** Playback was requested by `play()`, and not ended by `pause()` since. */
  #isRequested = false;
  /** `pause()` was called last. */
  #isPaused = false;
  #pendingPlays = [];
  #isMutedOnce = false;

  /** For subclasses: takes the `<video>` of the shadow tree. */
  initialize(video) {
    for (const name of FORWARDED_EVENTS) video.addEventListener(name, () => this.dispatchEvent(new Event(name)));
    video.addEventListener('play', () => {
      // The request of `play()` was announced when it was made.
      if (!this.#isRequested) this.dispatchEvent(new Event('play'));
      this.#isPaused = false;
    });
    video.addEventListener('pause', () => {
      // The browser pauses a stream whose session has ended, and what leaves the document.
      if (video.ended || !this.isConnected) return;
      [this.#isRequested, this.#isPaused] = [false, true];
      this.dispatchEvent(new Event('pause'));
    });
    video.addEventListener('playing', () => this.#settlePlays(({ resolve }) => resolve()));
  }

  /** The attribute `muted` counts once, as that of a `<video>`. */
  connectedCallback() {
    if (!this.#isMutedOnce && this.defaultMuted) this.video.muted = true;
    this.#isMutedOnce = true;
  }

  /** For subclasses: begins to load what `src` names, unless it has begun. */
  startLoading() {}

  /** For subclasses: begins anew. */
  restart() {}

  get src() {
    return this.getAttribute('src') ? new URL(this.getAttribute('src'), document.baseURI).href : '';
  }

  set src(url) {
    this.setAttribute('src', url);
  }

  get currentSrc() {
    return this.src;
  }

  /** The stream that is played; null over HLS. It cannot be assigned: the source is `src`. */
  get srcObject() {
    return this.video.srcObject;
  }

  get paused() {
    return this.video.paused && !this.#isRequested;
  }

  /** A live stream does not end. */
  get ended() {
    return false;
  }

  get playsInline() {
    return true;
  }

  /** Whether media may be played when it arrives: it is not after `pause()`. */
  get mayPlay() {
    return !this.#isPaused && (this.autoplay || this.#isRequested);
  }

  /** Plays; loads first where there is no media yet. Resolves when media is played, as that of a `<video>`. */
  play() {
    if (!this.src) return Promise.reject(new DOMException('The element has no src.', 'NotSupportedError'));
    const wasPaused = this.paused;
    [this.#isRequested, this.#isPaused] = [true, false];
    if (wasPaused) this.dispatchEvent(new Event('play'));
    const started = new Promise((resolve, reject) => this.#pendingPlays.push({ resolve, reject }));
    this.startLoading();
    this.playVideo();
    return started;
  }

  pause() {
    const { video } = this;
    // A request that waits for media ends here; `video` announces what it does itself.
    if (this.#isRequested && video.paused) this.dispatchEvent(new Event('pause'));
    [this.#isRequested, this.#isPaused] = [false, true];
    this.abortPlays('play() was interrupted by pause().');
    video.pause();
  }

  load() {
    this.abortPlays('play() was interrupted by load().');
    this.restart();
  }

  /** For subclasses: plays the media that `video` has, if it may. */
  async playVideo() {
    const { video } = this;
    const hasSource = video.srcObject || video.src || video.childElementCount > 0;
    if (!this.mayPlay || !hasSource) return;
    try {
      await video.play();
      this.#settlePlays(({ resolve }) => resolve());
    } catch (error) {
      if (error.name !== 'NotAllowedError') return;
      // Browsers play without a gesture only what is muted.
      if (this.autoplay && !video.muted) {
        video.muted = true;
        return void this.playVideo();
      }
      this.#isRequested = false;
      this.#settlePlays(({ reject }) => reject(error));
    }
  }

  /** For subclasses: rejects the promises of `play()`. */
  abortPlays(text) {
    this.#settlePlays(({ reject }) => reject(new DOMException(text, 'AbortError')));
  }

  /** For subclasses: the source has changed, which ends a request for the former one. */
  forgetPlayRequest() {
    [this.#isRequested, this.#isPaused] = [false, false];
    this.abortPlays('play() was interrupted because `src` was changed.');
  }

  #settlePlays(settle) {
    const pending = this.#pendingPlays;
    this.#pendingPlays = [];
    pending.forEach(settle);
  }
}

const define = (target, name, descriptor) =>
  Object.defineProperty(target, name, { configurable: true, enumerable: true, ...descriptor });

for (const name of GET) {
  define(MediaElement.prototype, name, { get() { return this.video[name]; } });
}
for (const name of SET) {
  define(MediaElement.prototype, name, { get() { return this.video[name]; }, set(value) { this.video[name] = value; } });
}
for (const name of METHODS) {
  define(MediaElement.prototype, name, { value(...args) { return this.video[name](...args); }, writable: true });
}
for (const [property, attribute] of Object.entries(FLAGS)) {
  define(MediaElement.prototype, property, {
    get() { return this.hasAttribute(attribute); },
    set(value) { this.toggleAttribute(attribute, Boolean(value)); },
  });
}
for (const [property, attribute] of Object.entries(TEXTS)) {
  define(MediaElement.prototype, property, {
    get() { return this.getAttribute(attribute) ?? ''; },
    set(value) { this.setAttribute(attribute, value); },
  });
}
for (const name of CONSTANTS) {
  for (const target of [MediaElement, MediaElement.prototype]) define(target, name, { value: Native[name] });
}
