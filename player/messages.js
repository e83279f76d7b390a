// Texts of the player for its states.

import { PathLost } from './session.js';

export const WAITING = 'Waiting for the stream';

/** Returns a codec as it is written: `H.264` for `H264`, `Motion JPEG` for `JPEG`. */
const codecName = (codec) => (codec === 'JPEG' ? 'Motion JPEG' : codec.replace(/^H(?=26)/, 'H.'));

/** Explains that the browser cannot play the video of the stream, or that HLS does not support it. */
export const unsupported = (codec, isHls = false) =>
  `The video of this stream is ${codecName(codec)}, which ${isHls ? 'HLS does not support' : 'your browser cannot play'}: only the audio is played`;

/** Returns title and text of the overlay for a state; undefined if the overlay is hidden. */
export function explain(state, reason, hasShownFrame) {
  const detail = reason?.detail ?? '';
  switch (state) {
    case 'connecting':
      return ['Connecting…', ''];
    case 'paused':
      return hasShownFrame ? undefined : [WAITING, 'Connected; no media has arrived yet.'];
    case 'waiting':
      return hasShownFrame ? undefined : [WAITING, 'Playback starts automatically when the stream is live.'];
    case 'retrying':
      return explainRetry(reason, detail);
    case 'failed':
      if (reason?.status === 401) return ['Enter the playback token', 'The token is missing, wrong or expired.'];
      if (reason?.status === 403) return ['This token is not valid for this stream', detail];
      return ['The gateway rejected the request', detail || reason?.message || ''];
    default:
      return undefined;
  }
}

function explainRetry(reason, detail) {
  switch (reason?.status) {
    case 404:
      return ['No such stream', detail || 'Playback starts automatically when the stream exists.'];
    case 406:
    case 422:
      return ['This browser cannot play the stream', detail || 'Browser and stream have no codec in common.'];
    case 429:
    case 503:
      return ['The gateway is busy', 'Playback starts as soon as the gateway has capacity.'];
    case undefined:
      if (!(reason instanceof PathLost)) return ['Reconnecting…', 'The gateway cannot be reached.'];
      return reason.addresses.length > 0 ? [reason.message, reason.remedy] : ['Reconnecting…', reason.message];
    default:
      return ['Reconnecting…', detail];
  }
}

/** Explains why HLS is used. `pathLost` is the last failure of the media path. */
export function explainHls(why, pathLost) {
  if (why === 'connection' && pathLost?.addresses.length > 0) return pathLost.message;
  const reasons = {
    chosen: 'HLS was selected', connection: 'WebRTC did not connect',
    codec: 'this browser cannot play the codec of the stream over WebRTC', silence: 'no media arrived over WebRTC',
  };
  return reasons[why] ?? '';
}

/** Returns the names of layers in the menu: the height, with the bitrate where the height is unknown or not unique. */
export function layerNames(layers) {
  const bitrateOf = ({ bitrate }) => `${Math.round(bitrate / 1000)} kbit/s`;
  const isUnique = ({ height }) => height && layers.filter((layer) => layer.height === height).length === 1;
  return layers.map((layer) => (isUnique(layer) ? `${layer.height}p` : [layer.height && `${layer.height}p`, bitrateOf(layer)].filter(Boolean).join(', ')));
}

const bitrateText = (bitrate) => (bitrate >= 95_000 ? `${(bitrate / 1e6).toFixed(1)} Mbit/s` : `${Math.round(bitrate / 1e3)} kbit/s`);

/**
 * Explains why the gateway sends less than the best; empty for nothing. `limit` is a report of `QualityLimit`, `shown` and
 * `best` are names of layers.
 */
export function explainLimit(limit, { shown, best, hasAudio }) {
  switch (limit?.video) {
    case 'all':
      if (!shown) return '';
      return limit.carried
        ? `Your connection allows about ${bitrateText(limit.carried)}: showing ${shown}`
        : `Your connection is too slow for ${best}: showing ${shown}`;
    case 'reference_frames':
      return 'Fewer frames per second until your connection is better';
    case 'key_frames':
      return 'Still pictures only until your connection is better';
    case 'none':
      return `${hasAudio ? 'Audio only' : 'No video'} until your connection is better`;
    default:
      return '';
  }
}

/** Returns the name of automatic selection in the menu, with the layer that is shown. */
export const autoName = (shown) => (shown ? `Auto (${shown})` : 'Auto');
