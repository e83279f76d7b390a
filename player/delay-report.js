// When the player reports its own delay to the gateway, and what (docs/quality.md). Pure, without browser APIs. Times are in
// milliseconds of `at`; delays in seconds.

/** Interval at which the delay is measured. */
const INTERVAL = 5_000;
/** A delay that is much as it was is reported at this interval: each report is a request. The gateway forgets one after 75 s. */
const UNCHANGED_INTERVAL = 30_000;
/** A change of so many seconds that is also so large a share of the delay is reported after `CHANGED_INTERVAL`. */
const CHANGE = { seconds: 0.02, share: 0.2 };
const CHANGED_INTERVAL = 15_000;

export class DelayReport {
  #phase;
  #session = 0;
  /** Counts at the beginning of the interval. */
  #before = null;
  #interval = INTERVAL;
  #attemptAt = -Infinity;
  #sentAt = -Infinity;
  #sentDelay = 0;

  /** `phase`, from 0 to 1, shifts the reports: viewers who start together should not report together. */
  constructor(phase = 0) {
    this.#phase = phase;
  }

  /**
   * Takes the statistics of a session, by its number; returns a report if one is due. `isWatched`: somebody looks at the delay,
   * and wants a new one. `playouts` has, for video and audio, the seconds that all frames so far have waited in the jitter buffer
   * (`buffered` of `emitted`) and in the decoder (`decoding` of `decoded`). The audio counts while no video is played.
   */
  update({ at, playouts }, session, isWatched) {
    if (this.#session !== session) {
      this.#attemptAt = this.#sentAt = -Infinity;
      this.#interval = INTERVAL * (1 + this.#phase);
    }
    const isRestarted = playouts.some(({ emitted }, kind) => emitted < (this.#before?.playouts[kind].emitted ?? 0));
    if (this.#session !== session || isRestarted) this.pause();
    this.#session = session;
    if (playouts.every(({ buffered }) => buffered === undefined)) return null;
    const before = this.#before ??= { at, playouts };
    if (at - before.at < this.#interval) return null;
    this.#before = { at, playouts };
    this.#interval = INTERVAL;
    const kind = playouts.findIndex(({ emitted, buffered }, kind) => buffered !== undefined && emitted > before.playouts[kind].emitted);
    if (kind < 0) return null;
    const [played, old] = [playouts[kind], before.playouts[kind]];
    const decoded = played.decoded - old.decoded;
    const report = {
      jitter_buffer: Math.max(0, (played.buffered - (old.buffered ?? 0)) / (played.emitted - old.emitted)),
      decoding: decoded > 0 ? Math.max(0, (played.decoding - old.decoding) / decoded) : 0,
    };
    const change = Math.abs(report.jitter_buffer + report.decoding - this.#sentDelay);
    const isChanged = change >= CHANGE.seconds && change >= CHANGE.share * this.#sentDelay;
    const isDue = at - this.#attemptAt >= CHANGED_INTERVAL && (isChanged || at - this.#sentAt >= UNCHANGED_INTERVAL);
    if (!isDue && !isWatched) return null;
    this.#attemptAt = at;
    return report;
  }

  /** The gateway has taken the report that `update` returned `at` that time. */
  confirm(at, { jitter_buffer, decoding }) {
    [this.#sentAt, this.#sentDelay] = [at, jitter_buffer + decoding];
  }

  /** Nothing is shown for some time: what is buffered meanwhile is no delay. */
  pause() {
    this.#before = null;
  }
}
