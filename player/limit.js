// When the player says that the gateway sends less than the best, because the path of the viewer carries no more. Pure,
// without browser APIs. Times are in milliseconds.

/**
 * A lower layer is reported after this time: sessions start with the lowest one, and most of them leave it within two
 * seconds. That video is missing is reported at once.
 */
const LOWER_LAYER_DELAY = 3_000;

/** Video that is sent again is expected to show a frame within this time. */
const RESUME_TIMEOUT = 5_000;

/** What can be sent of the video, the best first. */
const FRAMES = ['all', 'reference_frames', 'key_frames', 'none'];

/** Follows the `quality` events of a session (docs/quality.md). */
export class QualityLimit {
  #quality = null;
  #layers = [];
  /** When the limitation began. */
  #since = 0;
  /** Bits per second that the path carried when the quality was lowered last; null where nothing later agrees. */
  #carried = null;
  /** What is sent instead of continuous video, and until when that counts. */
  #withheld = { video: null, until: 0 };

  /**
   * Takes the last event, null for none, and the layers, the best first: `{ rid, bitrate }`. `isInGap`: no frame is decoded.
   */
  update(quality, layers, at, isInGap = false) {
    const before = this.#quality;
    [this.#quality, this.#layers] = [quality, layers];
    this.#updateWithheld(quality, at, isInGap);
    if (quality?.limitation !== 'bandwidth') {
      this.#carried = null;
      return;
    }
    if (before?.limitation !== 'bandwidth') this.#since = at;
    if (quality === before) return;
    // What arrives is what the path carries only while it carries too little.
    if (before && this.#isLower(quality, before)) this.#carried = quality.bitrate ?? null;
    else if (this.#layer(quality)?.bitrate > this.#carried) this.#carried = null;
  }

  #layer({ layer }) {
    return this.#layers.find(({ rid }) => rid === layer);
  }

  #isLower(quality, before) {
    const frames = FRAMES.indexOf(quality.video) - FRAMES.indexOf(before.video);
    if (frames !== 0) return frames > 0;
    const [index, indexBefore] = [quality, before].map((one) => this.#layers.indexOf(this.#layer(one)));
    return indexBefore >= 0 && index > indexBefore;
  }

  #updateWithheld(quality, at, isInGap) {
    const { limitation, video } = quality ?? {};
    if (limitation === 'bandwidth' && (video === 'key_frames' || video === 'none')) this.#withheld = { video, until: Infinity };
    else if (!quality || !isInGap) this.#withheld.until = 0;
    // The video is back when a frame of it is.
    else this.#withheld.until = Math.min(this.#withheld.until, at + RESUME_TIMEOUT);
  }

  /** Whether no continuous video is sent, or none has come since. */
  isWithoutVideo(at) {
    return at < this.#withheld.until;
  }

  /**
   * Returns what to report: `{ video, rid, carried }` with the layer that is sent and the bits per second that the path
   * carries, null if unknown. Null for nothing. A layer that the viewer has selected (`isSelected`) is not a limitation.
   */
  report(isSelected, at) {
    const quality = this.#quality;
    if (this.isWithoutVideo(at)) return { video: this.#withheld.video, rid: quality.layer, carried: null };
    if (quality?.limitation !== 'bandwidth') return null;
    const { video, layer: rid } = quality;
    if (video === 'all') {
      const index = this.#layers.findIndex((layer) => layer.rid === rid);
      if (isSelected || index < 1 || at - this.#since < LOWER_LAYER_DELAY) return null;
    }
    const isPlausible = this.#carried > 0 && !(this.#carried >= this.#layers[0]?.bitrate);
    return { video, rid, carried: isPlausible ? this.#carried : null };
  }
}
