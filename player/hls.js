// The other way to watch: LL-HLS over HTTP, for networks that let no WebRTC through and browsers that lack its codecs.
// The library is hls.js, and the HLS of the browser where that cannot run (iPhones). Chromium says that it can play HLS by
// itself and then fails on live streams, so the library goes first.

const LIBRARY = new URL('hls.min.js', import.meta.url);
/** An attempt that brings no picture for so long is given up, in milliseconds. */
const PATIENCE = 8_000;
/** So is one whose playlist does not grow: a stream that stands still has nothing but what was shown already. */
const GROWS_WITHIN = 3_000;

let loading;

/** hls.js, loaded when it is needed for the first time; null where there is none. */
function library() {
  loading ??= new Promise((resolve) => {
    const script = document.createElement('script');
    script.src = LIBRARY;
    script.onload = () => resolve(globalThis.Hls ?? null);
    script.onerror = () => resolve(null);
    document.head.append(script);
  });
  return loading;
}

/** Loads what will be needed if WebRTC does not get through after all. */
export const prepare = () => void library();

/** The playlist of the stream behind a WHEP endpoint. */
export function playlistOf(endpoint) {
  const url = new URL(endpoint, document.baseURI);
  if (!/\/whep\/./.test(url.pathname)) return null;
  url.pathname = `${url.pathname.replace(/\/whep\//, '/hls/').replace(/\/$/, '')}/index.m3u8`;
  url.search = '';
  return url;
}

/**
 * Plays a playlist in a video element. `state` is `idle`, `connecting`, `playing` or `failed`; each change is a `state`
 * event. A `change` event comes right before the element shows something else than it did.
 */
export class HlsClient extends EventTarget {
  state = 'idle';

  #url;
  #token;
  #hls = null;
  #video = null;
  #timer = 0;
  #played = 0;
  /** The video element shows what comes this way. */
  #attached = false;

  /** When the time of the video element has moved last; 0 for never. */
  playedAt = 0;

  constructor(url, { token = '' } = {}) {
    super();
    this.#url = url;
    this.#token = token;
  }

  async start(video) {
    if (this.state !== 'idle' && this.state !== 'failed') return;
    this.#enter('connecting');
    this.#giveUpAfter(PATIENCE);
    const Hls = await library();
    if (this.state !== 'connecting') return;
    this.#video = video;
    if (Hls?.isSupported()) {
      this.#hls = new Hls({
        lowLatencyMode: true,
        enableWorker: false,
        backBufferLength: 10,
        maxLiveSyncPlaybackRate: 1.25,
        xhrSetup: (xhr) => {
          if (this.#token) xhr.setRequestHeader('Authorization', `Bearer ${this.#token}`);
        },
      });
      this.#hls.on(Hls.Events.ERROR, (_, error) => {
        if (error.fatal) this.#fail();
      });
      this.#hls.once(Hls.Events.MANIFEST_PARSED, () => {
        if (this.state !== 'connecting') return;
        this.#leaveOutMade();
        this.dispatchEvent(new Event('layers'));
      });
      // Only once there is something new to show is the picture of WebRTC given up.
      const edges = new Map();
      this.#hls.on(Hls.Events.LEVEL_LOADED, (_, { level, details }) => {
        if (this.state !== 'connecting' || this.#attached) return;
        if (edges.size === 0) this.#giveUpAfter(GROWS_WITHIN);
        const before = edges.get(level);
        edges.set(level, details.edge);
        if (before === undefined || details.edge <= before) return;
        this.#take(video);
        this.#hls.attachMedia(video);
        video.play().catch(() => {});
      });
      this.#hls.loadSource(this.#url.href);
    } else if (video.canPlayType('application/vnd.apple.mpegurl')) {
      const url = new URL(this.#url);
      if (this.#token) url.searchParams.set('token', this.#token);
      this.#take(video);
      video.src = url;
      video.play().catch(() => {});
      video.addEventListener('error', this.#fail);
    } else {
      return this.#fail();
    }
    video.addEventListener('timeupdate', this.#progress);
  }

  stop() {
    this.#release();
    this.#enter('idle');
  }

  /** Whether there is video in it; without hls.js, as far as it was shown. */
  get hasVideo() {
    const levels = this.#hls?.levels;
    if (!levels) return Boolean(this.#video?.videoWidth);
    return levels.some(({ videoCodec, height }) => videoCodec || height);
  }

  /** Seconds behind what is being captured, as far as playlists tell. */
  get delay() {
    return this.#hls?.latency || undefined;
  }

  /** What has been shown. */
  statistics() {
    const quality = this.#video?.getVideoPlaybackQuality?.();
    const level = this.#hls?.levels?.[Math.max(0, this.#hls.currentLevel)];
    return {
      at: performance.now(),
      frames: quality?.totalVideoFrames ?? 0,
      dropped: quality?.droppedVideoFrames ?? 0,
      width: this.#video?.videoWidth,
      height: this.#video?.videoHeight,
      codec: level?.videoCodec,
      audioCodec: level?.audioCodec,
      bitrate: level?.bitrate,
    };
  }

  /** Versions of the picture, the best first: `{ rid, height, bitrate }`. A `layers` event when they are known. */
  get layers() {
    const levels = this.#hls?.levels ?? [];
    return levels.map(({ height, bitrate }, index) => ({ rid: String(index), height, bitrate })).reverse();
  }

  /** Wants the layer of this name from now on; without a name, the one that the network allows. */
  choose(rid) {
    if (this.#hls) this.#hls.nextLevel = rid ? Number(rid) : -1;
    return true;
  }

  /** Goes to the newest that can be played. */
  toLiveEdge() {
    const at = this.#hls?.liveSyncPosition;
    if (at && this.#video) this.#video.currentTime = at;
  }

  /** Left to itself hls.js takes the AAC, which the gateway has to make for it: not where the sound plays as it is. */
  #leaveOutMade() {
    const isMade = ({ audioCodec }) => audioCodec?.startsWith('mp4a');
    const { levels } = this.#hls;
    if (levels.every(isMade)) return;
    for (let index = levels.length - 1; index >= 0; index -= 1) {
      if (isMade(levels[index])) this.#hls.removeLevel(index);
    }
  }

  #giveUpAfter(milliseconds) {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => {
      // What its viewer has halted is not lost.
      if (this.state === 'playing' && this.#video?.paused) this.#giveUpAfter(milliseconds);
      else this.#fail();
    }, milliseconds);
  }

  #take(video) {
    this.#giveUpAfter(PATIENCE);
    this.dispatchEvent(new Event('change'));
    this.#attached = true;
    video.srcObject = null;
  }

  #progress = () => {
    const at = this.#video?.currentTime ?? 0;
    if (at === this.#played || !this.#attached) return;
    this.#played = at;
    this.playedAt = performance.now();
    // A player that stands still for so long has lost the stream.
    this.#giveUpAfter(PATIENCE);
    this.#enter('playing');
  };

  #fail = () => {
    if (this.state === 'idle') return;
    this.#release();
    this.#enter('failed');
  };

  #release() {
    clearTimeout(this.#timer);
    if (this.#attached) this.dispatchEvent(new Event('change'));
    this.#attached = false;
    this.#hls?.destroy();
    this.#hls = null;
    const video = this.#video;
    this.#video = null;
    if (!video) return;
    video.removeEventListener('timeupdate', this.#progress);
    video.removeEventListener('error', this.#fail);
    if (video.hasAttribute('src')) {
      video.removeAttribute('src');
      video.load();
    }
  }

  #enter(state) {
    if (this.state === state) return;
    this.state = state;
    this.dispatchEvent(new Event('state'));
  }
}
