// The fallback transport: LL-HLS over HTTP, for networks that block WebRTC and browsers that lack its codecs. It uses
// hls.js, or the browser's native HLS where hls.js cannot run (iPhones). hls.js is preferred because Chromium claims
// native HLS support but fails on live streams.

import { loadLibrary } from './library.js';
import { missingVideo } from './session.js';

/** Playback that makes no progress for this time fails, in milliseconds. */
const STALL_TIMEOUT = 8_000;
/** An attempt whose playlist does not grow for this time fails, in milliseconds: the stream has no new media. */
const PLAYLIST_TIMEOUT = 3_000;

/** Loads hls.js in advance. */
export const prepare = (playlist) => void (playlist && loadLibrary(playlist));

/** Returns the URL of the HLS playlist for a WHEP endpoint; null if it is not an endpoint of the gateway. */
export function playlistOf(endpoint) {
  const url = new URL(endpoint, document.baseURI);
  if (!/\/whep\/./.test(url.pathname)) return null;
  url.pathname = `${url.pathname.replace(/\/whep\//, '/hls/').replace(/\/$/, '')}/index.m3u8`;
  url.search = '';
  return url;
}

/**
 * Plays a playlist in a video element. `state` is `idle`, `connecting`, `playing` or `failed`; each change is a `state`
 * event. A `change` event is sent right before the content of the element changes.
 */
export class HlsClient extends EventTarget {
  state = 'idle';

  #url;
  #token;
  #play;
  #hls = null;
  #video = null;
  #timer = 0;
  #lastTime = 0;
  /** The video element is attached to HLS. */
  #attached = false;

  /** When playback made progress last; 0 for never. */
  playedAt = 0;
  /** Codec of the stream's video if the playlists lack it; else empty. */
  missing = '';

  /** `play` plays the video element once it has content. */
  constructor(url, { token = '', play } = {}) {
    super();
    this.#url = url;
    this.#token = token;
    this.#play = play;
  }

  async start(video) {
    if (this.state !== 'idle' && this.state !== 'failed') return;
    this.#setState('connecting');
    this.#failAfter(STALL_TIMEOUT);
    const Hls = await loadLibrary(this.#url);
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
      this.#hls.on(Hls.Events.MANIFEST_LOADED, (_, { networkDetails }) => {
        this.missing = missingVideo(networkDetails?.getResponseHeader?.('Link') ?? '');
      });
      this.#hls.once(Hls.Events.MANIFEST_PARSED, () => {
        if (this.state !== 'connecting') return;
        this.#removeTranscodedAudio();
        this.dispatchEvent(new Event('layers'));
      });
      this.#hls.on(Hls.Events.LEVEL_SWITCHED, () => this.dispatchEvent(new Event('quality')));
      // The video element is taken from WebRTC only when there is new media to play.
      const edges = new Map();
      this.#hls.on(Hls.Events.LEVEL_LOADED, (_, { level, details }) => {
        if (this.state !== 'connecting' || this.#attached) return;
        if (edges.size === 0) this.#failAfter(PLAYLIST_TIMEOUT);
        const before = edges.get(level);
        edges.set(level, details.edge);
        if (before === undefined || details.edge <= before) return;
        this.#attach(video);
        // Its source is attached at once or later, as the browser has it.
        this.#hls.once(Hls.Events.MEDIA_ATTACHED, () => this.#play());
        this.#hls.attachMedia(video);
        this.#play();
      });
      this.#hls.loadSource(this.#url.href);
    } else if (video.canPlayType('application/vnd.apple.mpegurl')) {
      const url = new URL(this.#url);
      if (this.#token) url.searchParams.set('token', this.#token);
      this.#attach(video);
      video.src = url;
      this.#play();
      video.addEventListener('error', this.#fail);
    } else {
      return this.#fail();
    }
    video.addEventListener('timeupdate', this.#onTimeUpdate);
  }

  stop() {
    this.#release();
    this.#setState('idle');
  }

  /** Whether the stream has video, in the playlists or not; with native HLS, only known once video is displayed. */
  get hasVideo() {
    if (this.missing) return true;
    const levels = this.#hls?.levels;
    if (!levels) return Boolean(this.#video?.videoWidth);
    return levels.some(({ videoCodec, height }) => videoCodec || height);
  }

  /** Latency in seconds, according to the playlists. */
  get delay() {
    return this.#hls?.latency || undefined;
  }

  /** Returns playback statistics. */
  statistics() {
    const quality = this.#video?.getVideoPlaybackQuality?.();
    const level = this.#hls?.levels?.[Math.max(0, this.#hls.currentLevel)];
    return {
      at: performance.now(),
      frames: quality?.totalVideoFrames ?? 0,
      bytes: 0,
      lost: quality?.droppedVideoFrames ?? 0,
      expected: quality?.totalVideoFrames ?? 0,
      width: this.#video?.videoWidth,
      height: this.#video?.videoHeight,
      codec: level?.videoCodec,
      audioCodec: level?.audioCodec,
      bitrate: level?.bitrate,
    };
  }

  /** Levels as layers, the best first: `{ rid, height, bitrate }`. A `layers` event is sent when they are known. */
  get layers() {
    const levels = this.#hls?.levels ?? [];
    return levels.map(({ height, bitrate }, index) => ({ rid: String(index), height, bitrate })).reverse();
  }

  /** The layer that is shown, `{ layer }` with its rid; null if unknown. A `quality` event is sent when it changes. */
  get quality() {
    const level = this.#hls?.currentLevel ?? -1;
    return level < 0 ? null : { layer: String(level) };
  }

  /** Selects the layer with this rid; without a rid, selection is automatic. */
  choose(rid) {
    if (this.#hls) this.#hls.nextLevel = rid ? Number(rid) : -1;
    return true;
  }

  /** Seeks to the live edge. */
  toLiveEdge() {
    const position = this.#hls?.liveSyncPosition;
    if (position && this.#video) this.#video.currentTime = position;
  }

  /** Removes AAC levels, which the gateway has to transcode and hls.js prefers, if the original audio is playable. */
  #removeTranscodedAudio() {
    const isTranscoded = ({ audioCodec }) => audioCodec?.startsWith('mp4a');
    const { levels } = this.#hls;
    if (levels.every(isTranscoded)) return;
    for (let index = levels.length - 1; index >= 0; index -= 1) {
      if (isTranscoded(levels[index])) this.#hls.removeLevel(index);
    }
  }

  #failAfter(milliseconds) {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => {
      // Playback that the viewer has paused is not stalled.
      if (this.state === 'playing' && this.#video?.paused) this.#failAfter(milliseconds);
      else this.#fail();
    }, milliseconds);
  }

  #attach(video) {
    this.#failAfter(STALL_TIMEOUT);
    this.dispatchEvent(new Event('change'));
    this.#attached = true;
    video.srcObject = null;
  }

  #onTimeUpdate = () => {
    const time = this.#video?.currentTime ?? 0;
    if (time === this.#lastTime || !this.#attached) return;
    this.#lastTime = time;
    this.playedAt = performance.now();
    this.#failAfter(STALL_TIMEOUT);
    this.#setState('playing');
  };

  #fail = () => {
    if (this.state === 'idle') return;
    this.#release();
    this.#setState('failed');
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
    video.removeEventListener('timeupdate', this.#onTimeUpdate);
    video.removeEventListener('error', this.#fail);
    if (video.hasAttribute('src')) {
      video.removeAttribute('src');
      video.load();
    }
  }

  #setState(state) {
    if (this.state === state) return;
    this.state = state;
    this.dispatchEvent(new Event('state'));
  }
}
