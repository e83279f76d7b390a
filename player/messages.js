// Texts of the player for its states.

import { PathLost } from './session.js';

export const WAITING = 'Waiting for the stream';

/** Returns a codec as it is written: `H.264` for `H264`, `Motion JPEG` for `JPEG`. */
const codecName = (codec) => (codec === 'JPEG' ? 'Motion JPEG' : codec.replace(/^H(?=26)/, 'H.'));

/** Explains that the browser cannot play the video of the stream, or that HLS does not carry it. */
export const unsupported = (codec, isHls = false) =>
  `This stream is ${codecName(codec)}, which ${isHls ? 'HLS does not carry' : 'your browser cannot play'}: audio only`;

/** Returns title and text of the overlay for a state; undefined if the overlay is hidden. */
export function explain(state, reason, hasShownFrame) {
  const detail = reason?.detail ?? '';
  switch (state) {
    case 'connecting':
      return ['Connecting…', ''];
    case 'paused':
      return hasShownFrame ? undefined : [WAITING, 'Connected; no media has arrived yet.'];
    case 'waiting':
      return hasShownFrame ? undefined : [WAITING, 'Playback starts automatically.'];
    case 'retrying':
      return explainRetry(reason, detail);
    case 'failed':
      if (reason?.status === 401) return ['Enter the playback token', 'The token is missing, wrong or expired.'];
      if (reason?.status === 403) return ['This token is not valid for this stream', detail];
      return ['Request rejected', detail || reason?.message || ''];
    default:
      return undefined;
  }
}

function explainRetry(reason, detail) {
  switch (reason?.status) {
    case 404:
      return ['No such stream', detail || 'Retrying.'];
    case 406:
    case 422:
      return ['This browser cannot play the stream', detail || 'It has no decoder for the codec of the stream.'];
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
    chosen: 'selected', connection: 'no connection over WebRTC', codec: 'codec not supported over WebRTC',
    silence: 'no media over WebRTC',
  };
  return reasons[why] ?? '';
}
