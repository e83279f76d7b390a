// The page of one stream for its operator: player, status, charts, sessions, events, and what is needed to share and publish it.

import './player.js';
import { api, bits, delayText, duration, embedCode, facts, isFaulty, stateText, totalBitrate } from './api.js';
import { ApiPage } from './api-page.js';
import { Chart } from './chart.js';
import { byId, copyOnClick, element, setText, showWarnings, streamName } from './page.js';
import { encodeQr } from './qr.js';
import { SessionTable } from './session-table.js';

/** Number of points of a chart: five minutes. */
const POINTS = 150;
/** Number of events that are kept on the page. */
const MAX_EVENTS = 100;
const SVG = 'http://www.w3.org/2000/svg';

const name = streamName();
const { origin } = location;
const charts = {
  bitrate: new Chart('Bitrate', bits, POINTS),
  viewers: new Chart('Viewers', String, POINTS),
  loss: new Chart('Packet loss, worst viewer', (loss) => `${(loss * 100).toFixed(1)} %`, POINTS),
  delay: new Chart('Delay, worst viewer', (delay) => `${Math.round(delay * 1000)} ms`, POINTS),
  rtt: new Chart('Round-trip time, worst viewer', (rtt) => `${Math.round(rtt * 1000)} ms`, POINTS),
};
let source = null;

document.title = `${name} · Millstream`;
setText(byId('name'), name);
byId('charts').append(...Object.values(charts).map(({ node }) => node));

// Sharing and publishing

const watchUrl = () => {
  const token = byId('share-token').value.trim();
  return `${origin}/watch/${name}${token && `#token=${encodeURIComponent(token)}`}`;
};
const frameCode = () =>
  `<iframe src="${origin}/embed/${name}" title="${name}" width="640" height="360" style="border: 0"\n`
  + '  allow="autoplay; fullscreen; picture-in-picture"></iframe>';

function showLink() {
  const link = byId('watch-link');
  link.href = watchUrl();
  setText(link, watchUrl());
  byId('qr').replaceChildren(qrImage(watchUrl()) ?? element('p', { class: 'quiet' }, 'The link is too long for a QR code.'));
}

/** Returns a QR code as an SVG image; null if the text is too long. */
function qrImage(text) {
  const modules = encodeQr(text);
  if (!modules) return null;
  const svg = document.createElementNS(SVG, 'svg');
  const size = modules.length + 8;
  const attributes = {
    viewBox: `-4 -4 ${size} ${size}`, role: 'img', 'aria-label': 'QR code of the link', 'shape-rendering': 'crispEdges',
  };
  for (const [key, value] of Object.entries(attributes)) svg.setAttribute(key, value);
  const path = document.createElementNS(SVG, 'path');
  path.setAttribute('d', modules.flatMap((row, y) => row.map((isDark, x) => (isDark ? `M${x} ${y}h1v1h-1z` : ''))).join(''));
  svg.append(path);
  return svg;
}

byId('share-token').addEventListener('input', showLink);
showLink();
copyOnClick(byId('copy-link'), watchUrl);
setText(byId('embed-code'), embedCode(name));
copyOnClick(byId('copy-embed'), () => embedCode(name));
copyOnClick(byId('copy-frame'), frameCode);
byId('publish-link').href = `/publish/${name}`;
setText(byId('server'), `${origin}/whip/${name}`);
copyOnClick(byId('copy-server'), () => `${origin}/whip/${name}`);

// Status

/** A stream that nobody publishes, watches or has configured. */
const UNKNOWN = {
  live: false, stalled: false, viewers: 0, hls_viewers: 0, video: null, audio: null, source: null, warnings: [], layers: [],
};

async function load() {
  const [described, running] = await Promise.all([api(`streams/${name}`), api(`sessions?limit=1000&stream=${name}`)]);
  if (described.status !== 404 && !described.ok) return described.status;
  if (!running.ok) return running.status;
  const { sessions } = await running.json();
  show(described.ok ? await described.json() : UNKNOWN, sessions);
  return 200;
}

function show(stream, sessions) {
  source = stream.source;
  for (const id of ['status', 'sessions-card', 'events-card']) byId(id).hidden = false;
  setText(byId('board-note'), '');
  Object.assign(byId('status').dataset, { live: stream.live, stalled: stream.stalled, fault: isFaulty(stream) });
  setText(byId('state'), stateText(stream));
  setText(byId('facts'), facts(stream));
  const error = stream.live ? '' : source?.last_error ?? '';
  setText(byId('source-error'), error);
  byId('source-error').hidden = !error;
  showWarnings(byId('warnings'), stream.warnings);
  byId('obs-card').hidden = Boolean(source);
  showCharts(stream, sessions);
  showSource();
  byId('no-sessions').hidden = sessions.length > 0;
  table.node.hidden = sessions.length === 0;
  table.update(sessions, stream.layers);
}

function showCharts(stream, sessions) {
  const known = sessions.filter(({ state, quality }) => state === 'connected' && quality);
  const highest = (key, of = 'quality') => {
    const values = known.map((session) => session[of]?.[key]).filter((value) => value != null);
    return values.length > 0 ? Math.max(...values) : null;
  };
  charts.bitrate.push(stream.live ? totalBitrate(stream) : null);
  charts.viewers.push(stream.viewers + stream.hls_viewers);
  charts.loss.push(highest('loss'));
  charts.rtt.push(highest('rtt'));
  charts.delay.push(highest('total', 'delay'));
}

function showSource() {
  byId('source').hidden = byId('source-row').hidden = !source;
  if (!source) return;
  const rows = [
    ['Source', source.kind.toUpperCase()],
    ['State', `${source.state.replace('_', ' ')}${source.seconds === null ? '' : ` for ${duration(source.seconds)}`}`],
    ['Restarts', source.restarts],
    ...(source.fallback ? [['Fallback', source.fallback]] : []),
    ...(source.left_out.length > 0 ? [['Left out', source.left_out.join(', ')]] : []),
  ].flat();
  const list = byId('source');
  if (list.childElementCount !== rows.length) list.replaceChildren(...rows.map((_, index) => element(index % 2 ? 'dd' : 'dt')));
  rows.forEach((text, index) => setText(list.children[index], text));
  setText(byId('source-switch'), source.state === 'stopped' ? 'Start source' : 'Stop source');
}

byId('source-switch').addEventListener('click', () => {
  api(`sources/${source?.state === 'stopped' ? 'start' : 'stop'}/${name}`, { method: 'POST' }).then(page.update, page.update);
});

// Events

/** Returns an event in words; empty for those of other streams. */
function eventText(event, data) {
  if (data.stream !== name) return '';
  if (event === 'session') {
    const parts = [`${data.role} ${data.id.slice(0, 6)}`, data.state, data.cause && `(${data.cause})`, data.address];
    return parts.filter(Boolean).join(' ');
  }
  if (event === 'viewer_delay') {
    const viewer = `viewer ${data.id.slice(0, 6)}`;
    if (!data.alarm) return `${viewer}: the delay is as usual again`;
    return `${viewer}: the delay ${data.alarm === 'high' ? 'is high' : 'has risen'}, ${delayText(data.delay)}`;
  }
  if (data.gone) return 'stream no longer exists';
  const parts = [
    `stream ${data.stalled ? 'stalled' : data.live ? 'live' : 'not live'}`, data.publisher && `via ${data.publisher.toUpperCase()}`,
    data.source && `source ${data.source.replace('_', ' ')}`, data.error,
  ];
  return parts.filter(Boolean).join(', ');
}

function onEvent(event, data) {
  const text = eventText(event, data);
  if (!text) return;
  const list = byId('events');
  list.prepend(element('li', {}, element('time', { class: 'quiet' }, new Date(data.time * 1000).toLocaleTimeString()), text));
  while (list.childElementCount > MAX_EVENTS) list.lastElementChild.remove();
}

function onClosed() {
  for (const id of ['status', 'sessions-card', 'events-card']) byId(id).hidden = true;
}

const page = new ApiPage(load, { onEvent, onClosed });
const table = new SessionTable(name, () => page.update());
byId('sessions').append(table.node);

const player = byId('player');
player.setAttribute('token', sessionStorage.getItem('millstream.play-token') ?? '');
player.setAttribute('aria-label', `Live stream ${name}`);
player.setAttribute('src', `/whep/${name}`);
