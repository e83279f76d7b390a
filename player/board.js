// The dashboard: streams and sessions from the API. It is shown when the API grants access.

import { api, isFaulty } from './api.js';
import { ApiPage } from './api-page.js';
import { arrange, byId, setText } from './page.js';
import { StreamCard } from './stream-card.js';

/** Streams up to this number need no search. */
const SEARCH_ABOVE = 10;
/** Maximum number and age (in milliseconds) of thumbnails. Each one costs a transcoding worker. */
const MAX_THUMBNAILS = 12;
const THUMBNAIL_MAX_AGE = 60_000;
/** Delay after which a thumbnail that failed is tried again, in milliseconds. */
const THUMBNAIL_RETRY = 5_000;

const cards = new Map();
const thumbnails = new Map();
let updatingThumbnails = false;
let streams = [];

/** What needs a person comes first, then what is live. */
const rank = (stream) => (isFaulty(stream) ? 0 : stream.live ? 1 : 2);

/** Loads missing and outdated thumbnails, one after the other. */
async function updateThumbnails() {
  if (updatingThumbnails || document.hidden) return;
  updatingThumbnails = true;
  try {
    for (const { name } of streams.filter(({ live, video }) => live && video).slice(0, MAX_THUMBNAILS)) {
      const cached = thumbnails.get(name);
      if (cached && performance.now() - cached.at < (cached.failed ? THUMBNAIL_RETRY : THUMBNAIL_MAX_AGE)) continue;
      const loaded = await loadSnapshot(name).catch(() => null);
      const url = loaded ?? cached?.url;
      thumbnails.set(name, { at: performance.now(), url, failed: !loaded });
      if (url) cards.get(name)?.showThumbnail(url);
    }
  } finally {
    updatingThumbnails = false;
  }
}

/** Returns a snapshot as a data URL; null if the gateway has none. Fails also while the picture is arriving. */
async function loadSnapshot(name) {
  const answer = await api(`streams/${name}/snapshot.jpg`);
  return answer.ok ? asDataUrl(await answer.blob()) : null;
}

const asDataUrl = (blob) =>
  new Promise((resolve, reject) => {
    const reader = new FileReader();
    [reader.onload, reader.onerror] = [() => resolve(reader.result), () => reject(reader.error)];
    reader.readAsDataURL(blob);
  });

async function load() {
  const [listed, running] = await Promise.all([api('streams'), api('sessions?limit=1000')]);
  if (!listed.ok || !running.ok) return listed.ok ? running.status : listed.status;
  const [all, { sessions, next }] = [await listed.json(), await running.json()];
  show(all, sessions, next !== null);
  updateThumbnails();
  return 200;
}

function show(all, sessions, isPartial) {
  streams = all.sort((a, b) => rank(a) - rank(b) || a.name.localeCompare(b.name));
  const byStream = grouped(sessions);
  for (const name of cards.keys()) if (!streams.some((stream) => stream.name === name)) cards.delete(name);
  for (const stream of streams) {
    const { name, live } = stream;
    if (!cards.has(name)) cards.set(name, new StreamCard(name, page.update));
    const card = cards.get(name);
    card.update(stream, byStream.get(name) ?? [], isPartial);
    if (!live) card.hideThumbnail();
    else if (thumbnails.get(name)?.url) card.showThumbnail(thumbnails.get(name).url);
  }
  byId('search-row').hidden = streams.length <= SEARCH_ABOVE;
  // Whoever sees the streams has found the way.
  const intro = byId('intro');
  if (intro.nextElementSibling) intro.parentElement.append(intro);
  arrangeCards();
  document.documentElement.dataset.streams = streams.length;
}

function grouped(sessions) {
  const groups = new Map();
  for (const session of sessions) groups.set(session.stream, [...(groups.get(session.stream) ?? []), session]);
  return groups;
}

function arrangeCards() {
  const searched = byId('search-row').hidden ? '' : byId('search').value.trim().toLowerCase();
  const found = streams.filter(({ name }) => name.toLowerCase().includes(searched));
  arrange(byId('streams'), found.map(({ name }) => cards.get(name).node));
  setText(byId('board-note'), summary(found));
}

function summary(found) {
  if (streams.length === 0) return 'No streams yet: publish a stream, or configure a camera.';
  if (found.length === 0) return 'No stream name contains this text.';
  const count = (number, text) => (number > 0 ? `${number} ${text}` : '');
  const viewers = found.reduce((sum, { viewers, hls_viewers: byHls }) => sum + viewers + byHls, 0);
  return [
    count(found.filter(isFaulty).length, 'with faults'), `${found.filter(({ live }) => live).length} of ${found.length} live`,
    `${viewers} ${viewers === 1 ? 'viewer' : 'viewers'}`,
  ].filter(Boolean).join(' · ');
}

byId('search').addEventListener('input', arrangeCards);

function onClosed() {
  cards.clear();
  byId('streams').replaceChildren();
  byId('search-row').hidden = true;
  document.documentElement.dataset.streams = 'closed';
}

const page = new ApiPage(load, { onClosed });
