// Rows of the statistics panel, from periodic statistics. Pure, without browser APIs. Times are in milliseconds.

/** Interval of the rows. */
const INTERVAL = 1_000;
/** Loss is that of this time. */
const LOSS_WINDOW = 5_000;

/** The rows of one player. */
export class Statistics {
  /** Statistics of the last seconds, the oldest first. */
  #samples = [];

  /**
   * Takes statistics; returns the rows as `[name, value]` pairs once per second, else undefined. `bytes` and `frames` are
   * counts. `lost` of `expected` packets were lost over WebRTC; frames were dropped over HLS (`isHls`), where `bitrate` is
   * that of the playlist. `delay` is that of the session in the API of the gateway, if it is known.
   */
  update(now, isHls) {
    const before = this.#samples.at(-1);
    if (before && now.at - before.at < INTERVAL) return undefined;
    // Counts start again with a session, and are others over another transport.
    if (before && (before.isHls !== isHls || now.expected < before.expected || now.frames < before.frames)) this.#samples = [];
    this.#samples.push({ ...now, isHls });
    while (this.#samples[1] && now.at - this.#samples[1].at >= LOSS_WINDOW) this.#samples.shift();
    return this.#samples.length > 1 ? this.#rows(now, this.#samples.at(-2), isHls) : undefined;
  }

  #rows(now, before, isHls) {
    const seconds = (now.at - before.at) / 1_000;
    const kilobits = isHls ? (now.bitrate ?? 0) / 1_000 : ((now.bytes - before.bytes) * 8) / seconds / 1_000;
    return [
      ['Transport', isHls ? 'LL-HLS' : 'WebRTC'],
      ['Resolution', now.width ? `${now.width} × ${now.height}` : '–'],
      ['Codec', now.codec ?? '–'],
      ['Frame rate', `${((now.frames - before.frames) / seconds).toFixed(0)} fps`],
      ['Bitrate', `${Math.max(0, kilobits).toFixed(0)} kbit/s`],
      ['Buffer', now.buffered === undefined ? '–' : `${(now.buffered * 1_000).toFixed(0)} ms`],
      ['Round-trip time', now.roundTrip === undefined ? '–' : `${(now.roundTrip * 1_000).toFixed(0)} ms`],
      ...delayRows(isHls ? null : now.delay),
      [isHls ? 'Dropped frames' : 'Packet loss', lossText(now, this.#samples[0])],
    ];
  }
}

/** Returns the known parts of the delay from capture to display, and their sum, as the gateway has them; none if it is unknown. */
function delayRows(delay) {
  if (delay?.total == null) return [];
  const milliseconds = (seconds) => `${(seconds * 1_000).toFixed(0)} ms`;
  const parts = [
    ['Capture to gateway', delay.capture_to_gateway], ['Gateway', delay.gateway], ['Network', delay.network], ['Player', delay.player],
  ];
  const known = parts.filter(([, part]) => part);
  return [['Delay', milliseconds(delay.total)], ...known.map(([name, { seconds }]) => [name, milliseconds(seconds)])];
}

/** Returns the loss since `before` as a percentage, and the total. */
function lossText(now, before) {
  const expected = now.expected - before.expected;
  // Packets that come after all are subtracted from the total (RFC 3550 §6.4.1).
  const lost = Math.max(0, now.lost - before.lost);
  const percentage = expected > 0 ? Math.min(100, (lost / expected) * 100) : 0;
  return `${percentage.toFixed(1)} % (${Math.max(0, now.lost)} total)`;
}
