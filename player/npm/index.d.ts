/** State of the player: see the attribute `data-state`. */
export type PlayerState = 'idle' | 'connecting' | 'playing' | 'paused' | 'waiting' | 'retrying' | 'failed';

export interface StateChange {
  state: PlayerState;
  /** The error that led to `retrying` or `failed`; `status` is the HTTP status of the rejected request. */
  reason?: (Error & { status?: number; detail?: string }) | null;
}

export interface Layer {
  rid: string;
  width?: number;
  height?: number;
  /** Bits per second. */
  bitrate: number;
}

export interface DataTrackEventMap {
  message: MessageEvent<string | ArrayBuffer>;
  open: Event;
  close: Event;
}

/** The messages of one data channel label. */
export interface DataTrack extends EventTarget {
  readonly label: string;
  /** Whether messages can be sent. */
  readonly isOpen: boolean;
  /** Returns whether a channel took the message. */
  send(data: string | ArrayBuffer | ArrayBufferView<ArrayBuffer>): boolean;
  addEventListener<K extends keyof DataTrackEventMap>(
    type: K,
    listener: (this: DataTrack, event: DataTrackEventMap[K]) => unknown,
    options?: boolean | AddEventListenerOptions,
  ): void;
  addEventListener(type: string, listener: EventListenerOrEventListenerObject, options?: boolean | AddEventListenerOptions): void;
}

/** One part of a delay, in seconds, and where it comes from. */
export interface DelayPart {
  readonly seconds: number;
  readonly source: string;
}

/** The delay from capture to display by its parts; null for those that are not known. */
export interface Delay {
  readonly capture_to_gateway: DelayPart | null;
  readonly gateway: DelayPart | null;
  readonly network: DelayPart | null;
  readonly player: DelayPart | null;
  /** Sum of the known parts, in seconds; null while nothing is sent. */
  readonly total: number | null;
  readonly alarm: 'high' | 'rising' | null;
}

/** A WHEP client without a user interface. */
export class WhepClient extends EventTarget {
  constructor(endpoint: string | URL, options?: { token?: string });
  readonly state: 'idle' | 'connecting' | 'live' | 'retrying' | 'failed';
  readonly reason: Error | null;
  readonly stream: MediaStream | null;
  readonly connection: RTCPeerConnection | null;
  readonly layers: Layer[];
  start(): void;
  stop(): void;
  retryNow(): void;
  /** The messages of a data channel label, of this session and later ones. */
  data(label: string): DataTrack;
  /** Selects the layer with this rid; without a rid, the gateway chooses. */
  choose(rid?: string): Promise<boolean>;
  /**
   * Reports how long media waits in the player, in seconds; `<millstream-player>` does so by itself. Resolves with the delay of the
   * session by its parts; null where the gateway takes no reports.
   */
  reportDelay(report: { jitter_buffer: number; decoding?: number }): Promise<Delay | null>;
}

export interface MillstreamPlayerEventMap extends HTMLElementEventMap {
  statechange: CustomEvent<StateChange>;
}

/** `<millstream-player>`: behaves as an HTMLMediaElement whose `src` is a WHEP endpoint. */
export class MillstreamPlayer extends HTMLElement {
  src: string;
  /** Bearer token for playback. */
  token: string;
  autoplay: boolean;
  controls: boolean;
  muted: boolean;
  defaultMuted: boolean;
  poster: string;
  volume: number;
  currentTime: number;
  playbackRate: number;
  defaultPlaybackRate: number;
  disablePictureInPicture: boolean;
  readonly currentSrc: string;
  readonly srcObject: MediaProvider | null;
  readonly paused: boolean;
  readonly ended: boolean;
  readonly seeking: boolean;
  readonly playsInline: boolean;
  readonly preservesPitch: boolean;
  readonly error: { code: number; message: string } | null;
  readonly readyState: number;
  readonly networkState: number;
  readonly duration: number;
  readonly buffered: TimeRanges;
  readonly played: TimeRanges;
  readonly seekable: TimeRanges;
  readonly textTracks: TextTrackList;
  readonly videoWidth: number;
  readonly videoHeight: number;
  /** The element that plays. */
  readonly video: HTMLVideoElement;
  /** The WHEP client; null while nothing is loaded. */
  readonly client: WhepClient | null;
  /** The messages of a data channel label, of this session and later ones. */
  data(label: string): DataTrack;
  play(): Promise<void>;
  pause(): void;
  load(): void;
  canPlayType(type: string): CanPlayTypeResult;
  addTextTrack(kind: TextTrackKind, label?: string, language?: string): TextTrack;
  getVideoPlaybackQuality(): VideoPlaybackQuality;
  requestPictureInPicture(): Promise<PictureInPictureWindow>;
  requestVideoFrameCallback(callback: VideoFrameRequestCallback): number;
  cancelVideoFrameCallback(handle: number): void;
  addEventListener<K extends keyof MillstreamPlayerEventMap>(
    type: K,
    listener: (this: MillstreamPlayer, event: MillstreamPlayerEventMap[K]) => unknown,
    options?: boolean | AddEventListenerOptions,
  ): void;
  addEventListener(type: string, listener: EventListenerOrEventListenerObject, options?: boolean | AddEventListenerOptions): void;
}

declare global {
  interface HTMLElementTagNameMap {
    'millstream-player': MillstreamPlayer;
  }
}
