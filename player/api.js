// The control API for the dashboard: requests, events, and how figures are written.

import { loadToken, storeToken } from './page.js';

const KEY = 'millstream-api-token';
/** Timeout of a request, in milliseconds. */
const REQUEST_TIMEOUT = 10_000;
/** Delay after which an event stream that ended is opened again, in milliseconds. */
const EVENTS_RETRY_DELAY = 3_000;

// It is kept in this tab, and sent in a header: no other site can use it, as it could a cookie.
let token = loadToken(KEY, { keepsStored: true });

export const hasToken = () => token !== '';

export function setToken(value) {
  token = value.trim();
  storeToken(KEY, token);
}

const authorization = () => (token ? { Authorization: `Bearer ${token}` } : {});

export function api(path, options = {}) {
  return fetch(`/api/v1/${path}`, { ...options, headers: authorization(), signal: AbortSignal.timeout(REQUEST_TIMEOUT) });
}

/**
 * Calls `onEvent(name, data)` for each event of the gateway, first for the recent ones. `EventSource` cannot send a token in a
 * header. Ends when `signal` is aborted.
 */
export async function followEvents(onEvent, signal) {
  let lastId = '';
  while (!signal.aborted) {
    try {
      const headers = { ...authorization(), ...(lastId && { 'Last-Event-ID': lastId }) };
      const response = await fetch('/api/v1/events', { headers, signal });
      if (response.ok) {
        for await (const { id, name, data } of readEvents(response.body)) {
          lastId = id || lastId;
          onEvent(name, JSON.parse(data));
        }
      }
    } catch {
      // The connection was lost, or the page is left.
    }
    await new Promise((resolve) => setTimeout(resolve, EVENTS_RETRY_DELAY));
  }
}

/** Reads server-sent events (HTML standard §9.2) of the form that the gateway sends. */
async function* readEvents(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let text = '';
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const blocks = (text + value).split('\n\n');
    text = blocks.pop();
    for (const block of blocks) {
      const field = (name) => new RegExp(`^${name}: (.*)$`, 'm').exec(block)?.[1] ?? '';
      if (field('event')) yield { id: field('id'), name: field('event'), data: field('data') };
    }
  }
}

export const bits = (rate) => (rate >= 1e6 ? `${(rate / 1e6).toFixed(1)} Mbit/s` : `${Math.round(rate / 1e3)} kbit/s`);

export function duration(seconds) {
  const [h, m, s] = [Math.floor(seconds / 3600), Math.floor(seconds / 60) % 60, Math.floor(seconds) % 60];
  return h ? `${h} h ${m} min` : m ? `${m} min ${s} s` : `${s} s`;
}

/** Returns what a stream carries, such as `H264 1280 × 720 30 fps · opus 48 kHz · via WHIP`. */
export function facts({ video, audio, publisher, source }) {
  const parts = [];
  if (video) {
    const size = video.height ? `${video.width} × ${video.height}` : '';
    parts.push([video.codec, size, `${video.frame_rate.toFixed(0)} fps`].filter(Boolean).join(' '));
  }
  if (audio) parts.push(`${audio.codec} ${audio.sample_rate / 1000} kHz`);
  if (publisher) parts.push(`via ${publisher.toUpperCase()}`);
  if (parts.length > 0) return parts.join(' · ');
  return source?.on_demand && source.state === 'idle' ? 'Starts with the first viewer' : 'No incoming media';
}

/** Returns the state of a stream in a word or two. */
export function stateText({ stalled, live, source }) {
  if (stalled) return 'stalled';
  if (live) return 'live';
  return source ? source.state.replace('_', ' ') : 'waiting';
}

/** Whether something has to be done: nothing arrives although it should. */
export const isFaulty = ({ stalled, live, source }) =>
  stalled || (!live && ['failed', 'standing_back'].includes(source?.state));

export const totalBitrate = ({ video, audio }) => (video?.bitrate ?? 0) + (audio?.bitrate ?? 0);

export const isLimited = ({ quality, state }) => state !== 'ended' && quality?.limitation === 'bandwidth';

export const isDelayed = ({ delay, state }) => state !== 'ended' && Boolean(delay?.alarm);

const milliseconds = (seconds) => `${Math.round(seconds * 1000)} ms`;

/** Returns the delay of a viewer and its parts from capture to display, such as `143 ms: 31 + 1 + 20 + 91`; empty if unknown. */
export function delayText(delay) {
  if (delay?.total == null) return '';
  const parts = [delay.capture_to_gateway, delay.gateway, delay.network, delay.player];
  return `${milliseconds(delay.total)}: ${parts.map((part) => (part ? Math.round(part.seconds * 1000) : '?')).join(' + ')}`;
}

/** Returns the code that shows the stream on another page. */
export function embedCode(name) {
  return `<script type="module" src="${location.origin}/player.js"></script>\n`
    + `<millstream-player src="${location.origin}/whep/${name}" autoplay muted controls></millstream-player>`;
}
