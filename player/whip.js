// A WHIP client (RFC 9725), and the capture of camera, screen and microphone.

import { Client } from './session.js';

/** Video codecs in the order of preference of "automatic": those that most viewers can decode come first. */
export const VIDEO_CODECS = ['H264', 'VP8', 'VP9', 'AV1', 'H265'];

/** Sends a MediaStream to a WHIP endpoint. */
export class WhipClient extends Client {
  #stream;
  #codec;
  #bitrate;

  /** `codec` is one of `VIDEO_CODECS`, or empty for all of them; `bitrate` is the maximum video bitrate in bit/s. */
  constructor(endpoint, stream, { token, data, codec = '', bitrate } = {}) {
    super(endpoint, { token, data });
    this.#stream = stream;
    this.#codec = codec;
    this.#bitrate = bitrate;
  }

  get replaceable() {
    return true;
  }

  prepare(pc) {
    for (const track of this.#stream.getTracks()) {
      const video = track.kind === 'video';
      const transceiver = pc.addTransceiver(track, {
        direction: 'sendonly',
        streams: [this.#stream],
        sendEncodings: video && this.#bitrate ? [{ maxBitrate: this.#bitrate }] : undefined,
      });
      if (video) transceiver.setCodecPreferences(preferred(this.#codec));
    }
  }

  /** Returns statistics from one `getStats` report; null if not connected. */
  async statistics() {
    const report = await this.connection?.getStats();
    if (!report) return null;
    const all = [...report.values()];
    const video = all.find((s) => s.type === 'outbound-rtp' && s.kind === 'video');
    const remote = all.find((s) => s.type === 'remote-inbound-rtp' && s.kind === 'video')
      ?? all.find((s) => s.type === 'remote-inbound-rtp');
    const pair = all.find((s) => s.type === 'candidate-pair' && s.nominated && s.state === 'succeeded');
    const sent = all.filter((s) => s.type === 'outbound-rtp').reduce((sum, s) => sum + (s.bytesSent ?? 0), 0);
    return {
      at: performance.now(),
      bytes: sent,
      frames: video?.framesEncoded ?? 0,
      width: video?.frameWidth,
      height: video?.frameHeight,
      codec: report.get(video?.codecId)?.mimeType?.split('/')[1],
      limited: video?.qualityLimitationReason,
      roundTrip: remote?.roundTripTime ?? pair?.currentRoundTripTime,
      loss: remote?.fractionLost,
    };
  }
}

/** Returns the names of the video codecs that this browser can send, in order of preference. */
export function sendableCodecs() {
  const names = new Set(RTCRtpSender.getCapabilities('video').codecs.map(codecName));
  return VIDEO_CODECS.filter((name) => names.has(name));
}

const codecName = (codec) => codec.mimeType.split('/')[1].toUpperCase();

/** Returns the browser's capabilities: `codec`, or all video codecs in order of preference, then others such as rtx. */
function preferred(codec) {
  const order = codec ? [codec] : VIDEO_CODECS;
  const { codecs } = RTCRtpSender.getCapabilities('video');
  const chosen = order.flatMap((name) => codecs.filter((one) => codecName(one) === name));
  if (chosen.length === 0) throw new Error(`This browser cannot send ${codec}.`);
  return [...chosen, ...codecs.filter((one) => !VIDEO_CODECS.includes(codecName(one)))];
}

/**
 * Opens camera or screen with the selected audio.
 *
 * `source` is `camera` or `screen`; `camera` and `microphone` are device ids or empty for the default; `sound` is
 * `microphone`, `screen` or `none`; `height` is the preferred height in pixels.
 */
export async function capture({ source, camera, microphone, sound, height }) {
  if (!navigator.mediaDevices) throw new DOMException('Media capture needs a secure page (https:// or localhost).', 'SecurityError');
  const microphoneConstraints = sound === 'microphone' && { deviceId: microphone ? { exact: microphone } : undefined };
  const size = { height: { ideal: height }, width: { ideal: Math.round((height * 16) / 9) }, frameRate: { ideal: 30 } };
  if (source === 'camera') {
    const deviceId = camera ? { exact: camera } : undefined;
    return navigator.mediaDevices.getUserMedia({ video: { ...size, deviceId }, audio: microphoneConstraints });
  }
  if (!navigator.mediaDevices.getDisplayMedia) throw new DOMException('This browser does not support screen capture.', 'NotSupportedError');
  const stream = await navigator.mediaDevices.getDisplayMedia({
    video: { frameRate: { ideal: 30 }, height: { max: height } },
    // Screen audio is often music or film: speech processing would degrade it.
    audio: sound === 'screen' && { echoCancellation: false, noiseSuppression: false, autoGainControl: false },
  });
  stream.getVideoTracks().forEach((track) => (track.contentHint = 'detail'));
  if (microphoneConstraints) {
    try {
      const voice = await navigator.mediaDevices.getUserMedia({ audio: microphoneConstraints });
      voice.getTracks().forEach((track) => stream.addTrack(track));
    } catch (error) {
      stream.getTracks().forEach((track) => track.stop());
      throw error;
    }
  }
  return stream;
}

/** Explains to the user why `capture` failed: `{ title, text }`. */
export function explainCapture(error, source) {
  const device = source === 'screen' ? 'screen' : 'camera or microphone';
  switch (error.name) {
    case 'SecurityError':
      return {
        title: 'This page needs a secure address (https://)',
        text: 'Browsers allow camera, microphone and screen capture only on pages opened over https://, or from '
          + `http://localhost on the gateway's own machine. This page was opened from ${location.origin}.`,
      };
    case 'NotAllowedError':
      return {
        title: `Access to the ${device} was not allowed`,
        text: source === 'screen'
          ? 'Screen selection was cancelled, or the system does not allow this browser to record the screen.'
          : 'Allow access with the camera icon in the address bar (or in the system settings), then try again.',
      };
    case 'NotFoundError':
    case 'OverconstrainedError':
      return {
        title: `The ${device} was not found`,
        text: 'Connect a device, choose another one, or choose “No audio” if there is a camera but no microphone.',
      };
    case 'NotReadableError':
    case 'AbortError':
      return {
        title: `The ${device} could not be opened`,
        text: 'Another program may be using it. Close that program and try again.',
      };
    case 'NotSupportedError':
      return { title: 'This browser cannot capture the screen', text: 'Choose the camera, or use a desktop browser.' };
    default:
      return { title: `The ${device} could not be opened`, text: `${error.name}: ${error.message}` };
  }
}
