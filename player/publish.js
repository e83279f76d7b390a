// The publish page: settings, preview, and one WHIP session.
//
// Everything can be preset in the address: `?codec=VP8&height=480&bitrate=1000&sound=none`, the token as
// `#token=...`. `?auto=camera` (or `auto=screen`) goes live without a click, where the browser allows capture without
// asking. What the page is doing can be read from the root element:
//
//   data-state     idle, preview, connecting, live, retrying, failed
//   data-error     why it is not live: the name of the capture error, `http-STATUS`, `ended`, or `TakenOver` where another
//                  publisher has taken the stream over
//   data-sessions  sessions the gateway has granted to this page's publication
//   data-frames    video frames encoded

import { byId, copies, keepToken, streamName, takeToken } from './page.js';
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
let counting = 0;

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
    // A value that is on no list is still the user's choice (`bitrate=600`); what cannot work is reported later.
    if (choice[name].value !== value && choice[name].add) choice[name].add(new Option(value, value, true, true));
    if (name === 'source') listSounds();
  }
  choice.token.value = takeToken(TOKEN);
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
  listSounds(named('audioinput').filter((d) => d.deviceId !== 'default' && d.deviceId !== 'communications'));
}

function listSounds(microphones = []) {
  const chosen = choice.sound.value;
  const screen = choice.source.value === 'screen';
  byId('camera-row').hidden = screen;
  choice.sound.replaceChildren(
    ...(screen ? [new Option('Sound of the screen', 'screen')] : []),
    new Option('Default microphone', 'microphone'),
    ...microphones.map((d) => new Option(d.label, `microphone:${d.deviceId}`)),
    new Option('No sound', 'none'),
  );
  if ([...choice.sound.options].some((o) => o.value === chosen)) choice.sound.value = chosen;
}

// Capture

async function openMedia() {
  closeMedia();
  explain(null);
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
    explain(explainCapture(error, choice.source.value));
    return false;
  }
  for (const track of media.getTracks()) track.addEventListener('ended', () => captureEnded(track));
  preview.srcObject = media;
  byId('empty').hidden = true;
  enter('preview');
  await listDevices();
  return true;
}

function closeMedia() {
  media?.getTracks().forEach((track) => track.stop());
  media = preview.srcObject = null;
  byId('empty').hidden = false;
}

/** Sharing was ended in the browser's own bar, or the device was pulled out. */
function captureEnded(track) {
  if (!media?.getTracks().includes(track)) return;
  stop();
  root.dataset.error = 'ended';
  explain({ title: 'Capture has ended', text: 'Sharing was stopped or the device was disconnected.' });
}

// Publishing

async function goLive() {
  if (!media && !(await openMedia())) return;
  keepToken(TOKEN, choice.token.value);
  explain(null);
  client = new WhipClient(`/whip/${stream}`, media, {
    token: choice.token.value,
    codec: choice.codec.value,
    bitrate: Number(choice.bitrate.value) * 1000,
  });
  client.addEventListener('state', clientChanged);
  client.start();
}

function clientChanged() {
  const { state, reason, sessions } = client;
  root.dataset.sessions = sessions;
  if (reason) {
    root.dataset.error = reason.status ? `http-${reason.status}` : reason.name;
    explain(explainRefusal(reason, state));
  } else if (state === 'live') {
    explain(null);
  }
  if (state !== 'idle') enter(state);
  if (state === 'failed') client = null;
}

function stop() {
  clearInterval(counting);
  client?.stop();
  client = null;
  closeMedia();
  enter('idle');
}

function explainRefusal({ name, status, detail, message }, state) {
  if (name === 'TakenOver') {
    return { title: 'Another publisher took over', text: 'This page no longer sends.', canTakeBack: true };
  }
  switch (status) {
    case 401:
      return { title: 'The publish token is missing or wrong', text: 'Copy it from what the gateway printed at start.' };
    case 403:
      return { title: 'This token may not publish here', text: detail ?? '' };
    case 409:
      return { title: 'Somebody else is publishing under this name', text: detail ?? 'Trying again by itself.' };
    case 422:
      return { title: 'The gateway does not take this codec', text: detail ?? 'Choose another codec.' };
    case 429:
    case 503:
      return { title: 'The gateway is busy', text: 'Trying again by itself.' };
    case undefined:
      return { title: 'Not connected', text: state === 'failed' ? message : `${message} Trying again by itself.` };
    default:
      return { title: 'The gateway refused', text: message };
  }
}

// What the page shows

const LABELS = {
  idle: 'Not live', preview: 'Preview', connecting: 'Connecting…', live: 'Live', retrying: 'Reconnecting…',
  failed: 'Not live',
};

function enter(state) {
  root.dataset.state = state;
  const running = ['connecting', 'live', 'retrying'].includes(state);
  byId('state').textContent = LABELS[state];
  byId('choices').disabled = running;
  byId('go').hidden = running;
  byId('show').hidden = running;
  byId('show').textContent = media ? 'Close preview' : 'Preview';
  byId('stop').hidden = !running;
  byId('share').hidden = state !== 'live';
  clearInterval(counting);
  if (state === 'live') counting = setInterval(count, 1000);
}

function explain(words) {
  const box = byId('problem');
  box.hidden = !words;
  byId('take-back').hidden = !words?.canTakeBack;
  if (!words) return void delete root.dataset.error;
  box.querySelector('strong').textContent = words.title;
  box.querySelector('p').textContent = words.text;
}

let previous = null;

async function count() {
  const now = await client?.statistics();
  if (!now) return;
  const seconds = previous && (now.at - previous.at) / 1000;
  root.dataset.frames = now.frames;
  byId('picture').textContent = now.width ? `${now.width} × ${now.height} ${now.codec ?? ''}` : '–';
  if (seconds) {
    const rate = (after, before) => Math.max(0, (after - before) / seconds);
    byId('fps').textContent = `${rate(now.frames, previous.frames).toFixed(0)} /s`;
    byId('rate').textContent = `${((rate(now.bytes, previous.bytes) * 8) / 1000).toFixed(0)} kbit/s`;
  }
  byId('rtt').textContent = now.roundTrip === undefined ? '–' : `${(now.roundTrip * 1000).toFixed(0)} ms`;
  byId('loss').textContent = now.loss === undefined ? '–' : `${(now.loss * 100).toFixed(1)} %`;
  previous = now;
}

// Start

form.addEventListener('submit', (event) => {
  event.preventDefault();
  goLive();
});
byId('show').addEventListener('click', () => (media ? stop() : openMedia()));
byId('stop').addEventListener('click', stop);
byId('take-back').addEventListener('click', goLive);
form.addEventListener('change', ({ target }) => {
  if (target.name === 'source') listSounds();
  // A shown preview follows the settings; the screen would have to be asked for again.
  if (target.name === 'source') return void (media && (closeMedia(), enter('idle')));
  if (media && ['camera', 'sound', 'height'].includes(target.name) && choice.source.value === 'camera') openMedia();
});
addEventListener('pagehide', () => client && stop());
addEventListener('online', () => client?.retryNow());
copies(byId('copy-share'), watchUrl);

const link = byId('share').querySelector('a');
link.href = link.textContent = watchUrl();
listSounds();
enter('idle');
const auto = presetFromAddress();
if (auto) goLive();
else if (!navigator.mediaDevices) explain(explainCapture({ name: 'SecurityError' }));
