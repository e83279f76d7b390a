// Data channels of a session (docs/data.md): messages by label, over the sessions that replace each other.

/** Label of the channel that every session has, so that its offer has data channels (RFC 8841). It carries no messages. */
const PLACEHOLDER_LABEL = '';
/** Messages that are kept for a label that nobody has asked for. */
const MAX_KEPT_MESSAGES = 100;

/**
 * The messages of one label. Each is a `message` event whose `data` is a string or an ArrayBuffer; `open` and `close` events
 * tell when messages can be sent.
 */
export class DataTrack extends EventTarget {
  label;
  #channels = new Set();
  #openChannel;
  /** Messages that came before the page asked for the label; null since. */
  #kept = [];

  /** `openChannel` opens a channel on the current session, if there is one. */
  constructor(label, openChannel) {
    super();
    this.label = label;
    this.#openChannel = openChannel;
  }

  /** Whether it has a channel, open or about to be. */
  get hasChannel() {
    return this.#channels.size > 0;
  }

  /** Whether messages can be sent. */
  get isOpen() {
    return [...this.#channels].some(({ readyState }) => readyState === 'open');
  }

  /**
   * Sends a string or bytes. Returns whether a channel took it: none does before the session is connected. Whether anybody
   * gets what a viewer sends is the choice of the gateway (`webrtc.viewer_messages`).
   */
  send(data) {
    if (!this.hasChannel) this.#openChannel(this);
    const channel = [...this.#channels].find(({ readyState }) => readyState === 'open');
    channel?.send(data);
    return Boolean(channel);
  }

  /** Sends the messages that were kept, in a while: the page adds its listeners first. */
  release() {
    if (!this.#kept) return;
    queueMicrotask(() => {
      const kept = this.#kept ?? [];
      this.#kept = null;
      for (const data of kept) this.#dispatch(data);
    });
  }

  /** Adds a channel of a new session, or of the gateway. */
  addChannel(channel) {
    this.#channels.add(channel);
    channel.binaryType = 'arraybuffer';
    channel.addEventListener('open', () => this.dispatchEvent(new Event('open')));
    channel.addEventListener('message', ({ data }) => this.#receive(data));
    channel.addEventListener('close', () => {
      if (this.#channels.delete(channel) && this.#channels.size === 0) this.dispatchEvent(new Event('close'));
    });
  }

  #receive(data) {
    if (!this.#kept) return this.#dispatch(data);
    this.#kept.push(data);
    if (this.#kept.length > MAX_KEPT_MESSAGES) this.#kept.shift();
  }

  #dispatch(data) {
    this.dispatchEvent(new MessageEvent('message', { data }));
  }
}

/** The data tracks of a client. They last longer than its sessions. */
export class DataTracks {
  #tracks = new Map();
  /** Labels that the page has asked for. */
  #requested = new Set();
  #pc = null;

  /** Opens the channels of a new session; before its offer. */
  attach(pc) {
    this.#pc = pc;
    const labels = [...this.#requested];
    if (labels.length === 0) pc.createDataChannel(PLACEHOLDER_LABEL);
    for (const label of labels) this.#open(this.#track(label));
    pc.addEventListener('datachannel', ({ channel }) => this.#track(channel.label).addChannel(channel));
  }

  /** The session is over. */
  detach() {
    this.#pc = null;
  }

  /** Returns the track of a label, now and in all later sessions. The current one gets a channel for it unless it has one. */
  request(label) {
    const track = this.#track(label);
    if (!this.#requested.has(label) && !track.hasChannel) this.#open(track);
    this.#requested.add(label);
    track.release();
    return track;
  }

  #track(label) {
    if (!this.#tracks.has(label)) this.#tracks.set(label, new DataTrack(label, (track) => this.#open(track)));
    return this.#tracks.get(label);
  }

  #open(track) {
    if (this.#pc) track.addChannel(this.#pc.createDataChannel(track.label));
  }
}
