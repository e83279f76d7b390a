// When the player reports its own delay to the gateway, and what (docs/quality.md). Pure, without browser APIs. Times are in
// milliseconds of `at`; delays in seconds.

/** Interval at which the delay is measured. */
const INTERVAL = 5_000;
/** A delay that is much as it was is reported at this interval: each report is a request. The gateway forgets one after 75 s. */
const UNCHANGED_INTERVAL = 30_000;
/** A change of so many seconds that is also so large a share of the delay is reported after `INTERVAL`. */
const CHANGE = { seconds: 0.02, share: 0.2 };

export class DelayReport {
  #session = 0;
  /** Counts at the beginning of the interval. */
  #before = null;
  #sentAt = -Infinity;
  #sentDelay = 0;

  /**
   * Takes the statistics of a session, by its number; returns a report if one is due. `isWatched`: somebody looks at the delay,
   * and wants a new one. `playout` has the seconds that all frames so far have waited in the jitter buffer (`buffered` of
   * `emitted`) and in the decoder (`decoding` of `decoded`).
   */
  update({ at, playout }, session, isWatched) {
    if (this.#session !== session) this.#sentAt = -Infinity;
    if (this.#session !== session || playout.emitted < (this.#before?.emitted ?? 0)) this.pause();
    this.#session = session;
    if (playout.buffered === undefined) return null;
    const before = this.#before ??= { at, ...playout };
    if (at - before.at < INTERVAL) return null;
    this.#before = { at, ...playout };
    const emitted = playout.emitted - before.emitted;
    if (emitted <= 0) return null;
    const decoded = playout.decoded - before.decoded;
    const report = {
      jitter_buffer: Math.max(0, (playout.buffered - before.buffered) / emitted),
      decoding: decoded > 0 ? Math.max(0, (playout.decoding - before.decoding) / decoded) : 0,
    };
    const delay = report.jitter_buffer + report.decoding;
    const change = Math.abs(delay - this.#sentDelay);
    const isChanged = change >= CHANGE.seconds && change >= CHANGE.share * this.#sentDelay;
    if (!isChanged && !isWatched && at - this.#sentAt < UNCHANGED_INTERVAL) return null;
    [this.#sentAt, this.#sentDelay] = [at, delay];
    return report;
  }

  /** Nothing is shown for some time: what is buffered meanwhile is no delay. */
  pause() {
    this.#before = null;
  }
}
