// The publish page: settings, preview, and one WHIP session.
//
// All settings can be preset in the URL: `?codec=VP8&height=480&bitrate=1000&sound=none`, the token as
// `#token=...`. `?auto=camera` (or `auto=screen`) goes live without a click when the page is loaded again, once the user has
// gone live here by a click. The first time it needs that click, also with a token that this tab has kept: otherwise
// whoever sends a link, or a page that the user visits, could watch a camera that the browser permits this site to use.
// Attributes of the root element show the state of the page:
//
//   data-state     idle, preview, connecting, live, retrying, failed
//   data-error     why the page is not live: the name of the capture error, `http-STATUS`, `ended`, `unconfirmed` if
//                  the link goes live by itself and needs a click first, or `TakenOver` if another publisher has
//                  taken over the stream
//   data-sessions  sessions that the gateway has accepted from this page
//   data-frames    video frames encoded

import { byId, copyOnClick, storeToken, streamName, loadToken } from './page.js';
import { capture, explainCapture, sendableCodecs, WhipClient } from './whip.js';

const TOKEN = 'millstream.publish-token';
const stream = streamName();
const root = document.documentElement;
const form = byId('settings');
const choice = form.elements;
const preview = byId('preview');
const watchUrl = () => `${location.origin}/watch/${stream}`;

let media = null;
let client = null;
let statsTimer = 0;

document.title = `Publish ${stream} · Millstream`;
byId('name').textContent = stream;

// Settings

function presetFromAddress() {
  const query = new URLSearchParams(location.search);
  const auto = query.get('auto');
  if (auto) query.set('source', auto);
  for (const codec of sendableCodecs()) choice.codec.add(new Option(codec, codec));
  for (const name of ['source', 'height', 'bitrate', 'codec', 'sound']) {
    const value = query.get(name);
    if (value === null) continue;
    choice[name].value = value;
    // Values that are not in the list are accepted too (`bitrate=600`); invalid ones are reported later.
    if (choice[name].value !== value && choice[name].add) choice[name].add(new Option(value, value, true, true));
    if (name === 'source') listAudioSources();
  }
  choice.token.value = loadToken(TOKEN);
  return auto;
}

async function listDevices() {
  const devices = (await navigator.mediaDevices?.enumerateDevices()) ?? [];
  const named = (kind) => devices.filter((d) => d.kind === kind && d.deviceId && d.label);
  const chosen = choice.camera.value;
  choice.camera.replaceChildren(
    new Option('Default camera', ''),
    ...named('videoinput').map((d) => new Option(d.label, d.deviceId, false, d.deviceId === chosen)),
  );
  listAudioSources(named('audioinput').filter((d) => d.deviceId !== 'default' && d.deviceId !== 'communications'));
}

function listAudioSources(microphones = []) {
  const chosen = choice.sound.value;
  const screen = choice.source.value === 'screen';
  byId('camera-row').hidden = screen;
  choice.sound.replaceChildren(
    ...(screen ? [new Option('Screen audio', 'screen')] : []),
    new Option('Default microphone', 'microphone'),
    ...microphones.map((d) => new Option(d.label, `microphone:${d.deviceId}`)),
    new Option('No audio', 'none'),
  );
  if ([...choice.sound.options].some((o) => o.value === chosen)) choice.sound.value = chosen;
}

// Capture

async function openMedia() {
  closeMedia();
  showProblem(null);
  const [sound, microphone = ''] = choice.sound.value.split(/:(.*)/s);
  try {
    media = await capture({
      source: choice.source.value,
      camera: choice.camera.value,
      sound,
      microphone,
      height: Number(choice.height.value),
    });
  } catch (error) {
    root.dataset.error = error.name;
    showProblem(explainCapture(error, choice.source.value));
    return false;
  }
  for (const track of media.getTracks()) track.addEventListener('ended', () => captureEnded(track));
  preview.srcObject = media;
  byId('empty').hidden = true;
  setState('preview');
  await listDevices();
  return true;
}

function closeMedia() {
  media?.getTracks().forEach((track) => track.stop());
  media = preview.srcObject = null;
  byId('empty').hidden = false;
}

/** Handles the end of capture: sharing was stopped in the browser, or the device was disconnected. */
function captureEnded(track) {
  if (!media?.getTracks().includes(track)) return;
  stop();
  root.dataset.error = 'ended';
  showProblem({ title: 'The capture of camera, microphone or screen has ended', text: 'Sharing was stopped, or the device was disconnected.' });
}

// Publishing

/**
 * Remembers that the user went live here by a click. The state of the history entry is there again when the page is loaded
 * again, and is not when another page leads here: session storage would be.
 */
function rememberConfirmation() {
  history.replaceState({ confirmed: true }, '');
}

const isConfirmed = () => history.state?.confirmed === true;

async function goLive() {
  if (!media && !(await openMedia())) return;
  storeToken(TOKEN, choice.token.value);
  showProblem(null);
  client = new WhipClient(`/whip/${stream}`, media, {
    token: choice.token.value,
    codec: choice.codec.value,
    bitrate: Number(choice.bitrate.value) * 1000,
  });
  client.addEventListener('state', onClientState);
  client.start();
}

function onClientState() {
  const { state, reason, sessions } = client;
  if (root.dataset.sessions !== String(sessions)) {
    // The counters of a connection begin at 0.
    previous = null;
    root.dataset.frames = 0;
  }
  root.dataset.sessions = sessions;
  if (reason) {
    root.dataset.error = reason.status ? `http-${reason.status}` : reason.name;
    showProblem(explainRefusal(reason, state));
  } else if (state === 'live') {
    showProblem(null);
  }
  if (state !== 'idle') setState(state);
  if (state === 'failed') client = null;
}

function stop() {
  clearInterval(statsTimer);
  client?.stop();
  client = null;
  closeMedia();
  setState('idle');
}

function explainRefusal({ name, status, detail, message, addresses = [], remedy }, state) {
  if (name === 'TakenOver') {
    return { title: 'Another publisher took over the stream', text: 'This page has stopped publishing.', canTakeBack: true };
  }
  switch (status) {
    case 401:
      return { title: 'The publish token is missing, wrong or expired', text: 'The gateway prints it when it starts, unless one is configured.' };
    case 403:
      return { title: 'This token does not permit publishing this stream', text: detail ?? '' };
    case 409:
      return { title: 'Another publisher is using this stream name', text: detail ?? 'This page keeps trying until the name is free.' };
    case 422:
      return { title: 'The gateway does not support this codec', text: detail ?? 'Choose another codec.' };
    case 429:
    case 503:
      return { title: 'The gateway is busy', text: 'Publishing starts as soon as the gateway has capacity.' };
    case undefined:
      if (addresses.length > 0) return { title: message, text: remedy };
      return { title: 'Not connected to the gateway', text: state === 'failed' ? message : `${message} This page keeps trying.` };
    default:
      return { title: 'The gateway rejected the request', text: message };
  }
}

// What the page shows

const LABELS = {
  idle: 'Not live', preview: 'Preview', connecting: 'Connecting…', live: 'Live', retrying: 'Reconnecting…',
  failed: 'Not live',
};

function setState(state) {
  root.dataset.state = state;
  const running = ['connecting', 'live', 'retrying'].includes(state);
  byId('state').textContent = LABELS[state];
  byId('choices').disabled = running;
  byId('go').hidden = running;
  byId('show').hidden = running;
  byId('show').textContent = media ? 'Close preview' : 'Preview';
  byId('stop').hidden = !running;
  byId('share').hidden = state !== 'live';
  clearInterval(statsTimer);
  if (state === 'live') statsTimer = setInterval(updateStats, 1000);
}

function showProblem(problem) {
  const box = byId('problem');
  box.hidden = !problem;
  byId('take-back').hidden = !problem?.canTakeBack;
  if (!problem) return void delete root.dataset.error;
  box.querySelector('strong').textContent = problem.title;
  box.querySelector('p').textContent = problem.text;
}

let previous = null;

async function updateStats() {
  const now = await client?.statistics();
  if (!now) return;
  const seconds = previous && (now.at - previous.at) / 1000;
  root.dataset.frames = now.frames;
  byId('resolution').textContent = now.width ? `${now.width} × ${now.height} ${now.codec ?? ''}` : '–';
  if (seconds) {
    const rate = (after, before) => Math.max(0, (after - before) / seconds);
    byId('frame-rate').textContent = `${rate(now.frames, previous.frames).toFixed(0)} fps`;
    byId('bitrate').textContent = `${((rate(now.bytes, previous.bytes) * 8) / 1000).toFixed(0)} kbit/s`;
  }
  byId('rtt').textContent = now.roundTrip === undefined ? '–' : `${(now.roundTrip * 1000).toFixed(0)} ms`;
  byId('loss').textContent = now.loss === undefined ? '–' : `${(now.loss * 100).toFixed(1)} %`;
  previous = now;
}

// Start

form.addEventListener('submit', (event) => {
  event.preventDefault();
  rememberConfirmation();
  goLive();
});
byId('show').addEventListener('click', () => (media ? stop() : openMedia()));
byId('stop').addEventListener('click', stop);
byId('take-back').addEventListener('click', goLive);
form.addEventListener('change', ({ target }) => {
  if (target.name === 'source') listAudioSources();
  // A visible preview follows the settings, except for the screen, which would require another prompt.
  if (target.name === 'source') return void (media && (closeMedia(), setState('idle')));
  if (media && ['camera', 'sound', 'height'].includes(target.name) && choice.source.value === 'camera') openMedia();
});
addEventListener('pagehide', () => client && stop());
addEventListener('online', () => client?.retryNow());
copyOnClick(byId('copy-share'), watchUrl);

const link = byId('share').querySelector('a');
link.href = link.textContent = watchUrl();
listAudioSources();
setState('idle');
const auto = presetFromAddress();
if (auto && !isConfirmed()) {
  const text = 'The link that you opened would start publishing without asking. Whoever made the link can see what you publish.';
  showProblem({ title: `Publish as ${stream}?`, text });
  root.dataset.error = 'unconfirmed';
  byId('go').focus();
} else if (auto) goLive();
else if (!navigator.mediaDevices) showProblem(explainCapture({ name: 'SecurityError' }));
