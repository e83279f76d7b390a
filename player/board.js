// The dashboard: streams and sessions from the API. It is shown when the API grants access.

import { byId, copyOnClick, storeToken, loadToken } from './page.js';

/** Interval at which the API is polled, in milliseconds. */
const POLL_INTERVAL = 2_000;
/** Number of points of a sparkline: two minutes. */
const POINTS = 60;
/** Maximum number and age (in milliseconds) of thumbnails. Each one costs a transcoding worker. */
const MAX_THUMBNAILS = 12;
const THUMBNAIL_MAX_AGE = 60_000;
const KEY = 'millstream-api-token';

const history = new Map();
const thumbnails = new Map();
let updatingThumbnails = false;
const expanded = new Set();
let token = loadToken(KEY);
let timer = 0;

async function api(path, options = {}) {
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  return fetch(`/api/v1/${path}`, { ...options, headers, signal: AbortSignal.timeout(10_000) });
}

const element = (name, attributes = {}, ...children) => {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key === 'class') made.className = value;
    else made.setAttribute(key, value);
  }
  made.append(...children.filter((child) => child !== null && child !== ''));
  return made;
};

const bits = (rate) => (rate >= 1e6 ? `${(rate / 1e6).toFixed(1)} Mbit/s` : `${Math.round(rate / 1e3)} kbit/s`);

function duration(seconds) {
  const [h, m, s] = [Math.floor(seconds / 3600), Math.floor(seconds / 60) % 60, Math.floor(seconds) % 60];
  return h ? `${h} h ${m} min` : m ? `${m} min ${s} s` : `${s} s`;
}

/** Returns a sparkline; `text` is its accessible description. */
function sparkline(values, text) {
  const space = 'http://www.w3.org/2000/svg';
  const svg = document.createElementNS(space, 'svg');
  svg.setAttribute('viewBox', '0 0 120 28');
  svg.setAttribute('class', 'spark');
  svg.setAttribute('role', 'img');
  svg.setAttribute('aria-label', text);
  const maximum = Math.max(...values, 1);
  const step = 118 / (POINTS - 1);
  const points = values.map((value, index) => {
    const x = 119 - (values.length - 1 - index) * step;
    return `${x.toFixed(1)},${(26 - (value / maximum) * 24).toFixed(1)}`;
  });
  const line = document.createElementNS(space, 'polyline');
  line.setAttribute('points', points.join(' '));
  svg.append(line);
  return svg;
}

function facts({ video, audio, publisher }) {
  const parts = [];
  if (video) {
    const size = video.height ? `${video.width} × ${video.height}` : '';
    parts.push([video.codec, size, `${video.frame_rate.toFixed(0)} fps`].filter(Boolean).join(' '));
  }
  if (audio) parts.push(`${audio.codec} ${audio.sample_rate / 1000} kHz`);
  if (publisher) parts.push(`via ${publisher.toUpperCase()}`);
  return parts.join(' · ');
}

function audience({ viewers, hls_viewers: hlsViewers }) {
  return hlsViewers ? `${viewers + hlsViewers}, of which ${hlsViewers} over HLS` : String(viewers);
}

const isLimited = ({ quality, state }) => state !== 'ended' && quality?.limitation === 'bandwidth';

/** Returns how many viewers are sent less than the best. `isPartial`: there are more sessions than these. */
function limitedText(sessions, isPartial) {
  const count = sessions.filter(isLimited).length;
  return count > 0 ? `${isPartial ? 'at least ' : ''}${count} limited by bandwidth` : '';
}

/** Returns what a viewer is sent of the video, such as `f, 720p`. */
function videoText({ layer: rid, video }, layers) {
  const names = { reference_frames: 'fewer frames', key_frames: 'key frames only', none: 'audio only' };
  if (video === 'none') return names.none;
  const layer = layers?.find((layer) => layer.rid === rid);
  return [rid, layer?.height && `${layer.height}p`, names[video]].filter(Boolean).join(', ');
}

function button(text, work, label) {
  const made = element('button', { class: 'small', type: 'button', ...(label && { 'aria-label': label }) }, text);
  made.addEventListener('click', work);
  return made;
}

function copyButton(text, what, label) {
  const made = element('button', { class: 'small', type: 'button', 'aria-label': label }, text);
  copyOnClick(made, () => what);
  return made;
}

/** Loads missing and outdated thumbnails, one after the other. */
async function updateThumbnails(streams) {
  if (updatingThumbnails || document.hidden) return;
  updatingThumbnails = true;
  try {
    for (const { name } of streams.filter(({ live, video }) => live && video).slice(0, MAX_THUMBNAILS)) {
      const cached = thumbnails.get(name);
      if (cached && performance.now() - cached.at < THUMBNAIL_MAX_AGE) continue;
      const answer = await api(`streams/${name}/snapshot.jpg`).catch(() => null);
      // A failed snapshot is not retried at once either.
      const url = answer?.ok ? await asDataUrl(await answer.blob()) : cached?.url;
      thumbnails.set(name, { at: performance.now(), url });
      const shown = [...document.querySelectorAll('.thumb')].find((image) => image.dataset.stream === name);
      if (shown && url) Object.assign(shown, { src: url, hidden: false });
    }
  } finally {
    updatingThumbnails = false;
  }
}

const asDataUrl = (blob) =>
  new Promise((resolve) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.readAsDataURL(blob);
  });

function thumbnail(name, live) {
  const url = live ? thumbnails.get(name)?.url : undefined;
  const image = element('img', { class: 'thumb', alt: `Snapshot of ${name}`, 'data-stream': name });
  image.hidden = !url;
  if (url) image.src = url;
  return image;
}

function streamCard(stream, sessions, isPartial) {
  const { name, live, stalled, source, video, audio, warnings } = stream;
  const viewers = stream.viewers + stream.hls_viewers;
  const delay = video?.delay == null ? null : Math.round(video.delay * 1000);
  const rate = (video?.bitrate ?? 0) + (audio?.bitrate ?? 0);
  const past = history.get(name) ?? { viewers: [], rate: [], delay: [] };
  history.set(name, past);
  past.viewers = [...past.viewers, viewers].slice(-POINTS);
  past.rate = [...past.rate, rate].slice(-POINTS);
  past.delay = [...past.delay, delay ?? 0].slice(-POINTS);
  const origin = location.origin;
  const embed = `<script type="module" src="${origin}/player.js"></script>\n`
    + `<millstream-player src="${origin}/whep/${name}"></millstream-player>`;
  const state = stalled ? 'stalled' : live ? 'live' : source ? source.state.replace('_', ' ') : 'waiting';
  const own = sessions.filter((session) => session.stream === name);
  const limited = limitedText(own, isPartial);
  const card = element('article', { class: 'stream', 'data-live': String(live), 'data-stalled': String(stalled), 'aria-label': name });
  card.append(
    thumbnail(name, live),
    element('h3', {}, element('span', { class: 'dot', 'aria-hidden': 'true' }), element('a', { href: `/watch/${name}` }, name),
      element('span', { class: 'quiet' }, state)),
    element('p', { class: 'quiet' }, facts(stream) || 'No incoming media'),
    element('div', { class: 'measures' },
      element('div', {}, element('span', { class: 'quiet' }, 'Viewers'), element('span', {}, audience(stream)),
        sparkline(past.viewers, `Viewers in the last two minutes, now ${viewers}`),
        limited && element('span', { class: 'limited', title: 'Their connections carry less than the best layer' }, limited)),
      element('div', {}, element('span', { class: 'quiet' }, 'Bitrate'), element('span', {}, bits(rate)),
        sparkline(past.rate, `Bitrate in the last two minutes, now ${bits(rate)}`)),
      delay === null ? null : element('div', { title: 'Time from the capture of a frame to its arrival at the gateway' },
        element('span', { class: 'quiet' }, 'Capture delay'), element('span', {}, `${delay} ms`),
        sparkline(past.delay, `Capture delay in the last two minutes, now ${delay} ms`))),
  );
  if (source?.last_error && !live) card.append(element('p', { class: 'problem' }, source.last_error));
  if (warnings.length > 0) {
    card.append(element('ul', { class: 'warnings' }, ...warnings.map((text) => element('li', {}, text))));
  }
  const buttons = element('div', { class: 'row' },
    element('a', { class: 'button small', href: `/watch/${name}` }, 'Watch'),
    element('a', { class: 'button small', href: `/publish/${name}` }, 'Publish'),
    copyButton('Copy OBS server URL', `${origin}/whip/${name}`, `Copy OBS server URL: ${name}`),
    copyButton('Copy embed code', embed, `Copy embed code: ${name}`));
  if (source) {
    const isStopped = source.state === 'stopped';
    const work = () => api(`sources/${isStopped ? 'start' : 'stop'}/${name}`, { method: 'POST' }).then(refresh);
    buttons.append(button(isStopped ? 'Start source' : 'Stop source', work, `${isStopped ? 'Start' : 'Stop'} source: ${name}`));
  }
  if (own.length > 0) {
    const isExpanded = expanded.has(name);
    const toggle = button(`${own.length} sessions`, () => {
      if (isExpanded) expanded.delete(name);
      else expanded.add(name);
      refresh();
    }, `${own.length} sessions: ${name}`);
    toggle.setAttribute('aria-expanded', String(isExpanded));
    buttons.append(toggle);
    if (isExpanded) card.append(sessionTable(own, stream));
  }
  card.append(buttons);
  return card;
}

function sessionTable(sessions, { name, layers }) {
  const row = (session) => {
    const { id, role, state, cause, explanation, seconds, address, client, quality } = session;
    const known = state === 'ended' ? null : quality;
    return element('tr', {},
      element('td', {}, role),
      element('td', { ...(explanation && { title: explanation }) }, cause ?? state),
      element('td', {}, duration(seconds)),
      element('td', {}, (known && videoText(known, layers)) || '–'),
      element('td', {}, known?.received_bitrate == null ? '–' : bits(known.received_bitrate)),
      element('td', {}, isLimited(session) ? element('span', { class: 'limited' }, 'bandwidth') : '–'),
      element('td', {}, [address, client?.slice(0, 40)].filter(Boolean).join(' ')),
      element('td', {}, state === 'ended' ? '' : button('End session', () => api(`sessions/${id}`, { method: 'DELETE' }).then(refresh), `End session of ${role} ${id}`)));
  };
  const titles = { Received: 'Bitrate that arrives at the viewer, by its feedback', Limit: 'Why the viewer is not sent the best' };
  const head = ['Role', 'State', 'Duration', 'Layer', 'Received', 'Limit', 'Client', 'Action']
    .map((text) => element('th', { scope: 'col', ...(titles[text] && { title: titles[text] }) }, text));
  return element('div', { class: 'scrolls', tabindex: '0', role: 'region', 'aria-label': `Sessions of ${name}` }, element('table', {},
    element('thead', {}, element('tr', {}, ...head)), element('tbody', {}, ...sessions.map(row))));
}

async function refresh() {
  clearTimeout(timer);
  try {
    const [streams, sessions] = await Promise.all([api('streams'), api('sessions?limit=1000')]);
    if (!streams.ok || !sessions.ok) return showTokenForm(streams.status);
    const [all, { sessions: running, next }] = [await streams.json(), await sessions.json()];
    show(all, running, next !== null);
    updateThumbnails(all);
  } catch {
    byId('board-note').textContent = 'The gateway does not respond. This page keeps trying.';
  }
  timer = setTimeout(refresh, document.hidden ? POLL_INTERVAL * 5 : POLL_INTERVAL);
}

function show(streams, sessions, isPartial) {
  byId('board-token').hidden = true;
  byId('board-note').textContent = streams.length === 0 ? 'No streams yet: publish a stream, or configure a camera.' : '';
  const list = byId('streams');
  // The list is replaced, so the focus moves to the element with the same label.
  const focus = document.activeElement?.closest('#streams') ? document.activeElement.getAttribute('aria-label') : null;
  streams.sort((a, b) => Number(b.live) - Number(a.live) || a.name.localeCompare(b.name));
  list.replaceChildren(...streams.map((stream) => streamCard(stream, sessions, isPartial)));
  if (focus) [...list.querySelectorAll('[aria-label]')].find((e) => e.getAttribute('aria-label') === focus)?.focus();
  document.documentElement.dataset.streams = streams.length;
}

function showTokenForm(status) {
  byId('board-token').hidden = false;
  byId('streams').replaceChildren();
  byId('board-note').textContent = token && status !== 429 ? 'The API rejected the request: the token is wrong, or does not permit access.' : '';
  if (status === 429) byId('board-note').textContent = 'The gateway rejects requests for now, after too many requests or wrong tokens: try again later.';
  document.documentElement.dataset.streams = 'closed';
}

byId('board-token').addEventListener('submit', (event) => {
  event.preventDefault();
  token = byId('api-token').value.trim();
  storeToken(KEY, token);
  refresh();
});

if (token) refresh();
else showTokenForm(0);
