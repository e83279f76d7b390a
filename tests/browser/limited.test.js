// What a viewer and the dashboard are told of a quality that the path limits: a player in a network of its own behind a
// token bucket.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import {
  addNamespace,
  chromium,
  chromiumInNamespace,
  isLive,
  open,
  plays,
  portOf,
  press,
  publish,
  publishSimulcast,
  run,
  skip,
  startGateway,
  undoing,
  until,
} from './harness.js';

const NAME = `ml${process.pid}`;
const [GATEWAY, VIEWER] = ['10.213.9.1', '10.213.9.2'];
const API_TOKEN = 'api-token-of-the-limited';

/** Sets the rate towards the viewer, with 300 ms of queue. */
const limit = (rate) =>
  run('tc', 'qdisc', 'replace', 'dev', `${NAME}a`, 'root', 'tbf', 'rate', rate, 'burst', '3kb', 'latency', '300ms');

/** A gateway, a browser near it and one behind the token bucket; null if this kernel has none. */
async function setUp(t) {
  const undo = undoing(t);
  addNamespace(undo, NAME, GATEWAY, VIEWER);
  try {
    limit('5mbit');
  } catch (error) {
    skip(t, `this kernel has no token bucket filter: ${error.stderr}`);
    return null;
  }
  const gateway = await startGateway({
    MILLSTREAM_HTTP__LISTEN: '0.0.0.0:0',
    MILLSTREAM_WEBRTC__LISTEN: `${GATEWAY}:0`,
    MILLSTREAM_WEBRTC__TCP: 'false',
    MILLSTREAM_AUTH__API_TOKEN: API_TOKEN,
  });
  undo(() => gateway.stop());
  const near = await chromium();
  undo(() => near.close());
  const far = await chromiumInNamespace(undo, NAME);
  return { gateway, near, far, origin: `http://${GATEWAY}:${portOf(gateway.http)}` };
}

const sleep = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

/** What the player says. */
const said = (page) =>
  page.evaluate(() => {
    const player = document.querySelector('millstream-player');
    const [notice, menu, hint] = ['.notice', '.quality', '.hint'].map((part) => player.shadowRoot.querySelector(part));
    return {
      notice: notice?.textContent,
      role: notice?.getAttribute('role'),
      isVisible: Boolean(notice?.checkVisibility({ visibilityProperty: true }) && notice.getBoundingClientRect().width > 0),
      hint: hint.checkVisibility() ? hint.textContent : '',
      automatic: menu.options[0]?.text,
      ...player.dataset,
    };
  });

const select = (page, name) =>
  page.evaluate((name) => {
    const menu = document.querySelector('millstream-player').shadowRoot.querySelector('.quality');
    menu.selectedIndex = [...menu.options].findIndex(({ text }) => text.startsWith(name));
    menu.dispatchEvent(new Event('change'));
  }, name);

const shot = async (page, name) => {
  if (process.env.SCREENSHOTS) await page.screenshot({ path: `${process.env.SCREENSHOTS}/${name}.png` });
};

/** Screenshots of a page in both sizes. */
async function shots(page, name) {
  if (!process.env.SCREENSHOTS) return;
  for (const [width, height] of [[1280, 800], [390, 844]]) {
    await page.setViewport({ width, height });
    await sleep(300);
    await shot(page, `${name}-${width}`);
  }
}

test('a lower layer is named with its reason, in the player and on the dashboard, until the path carries the best', async (t) => {
  const world = await setUp(t);
  if (!world) return;
  const { gateway, near, far, origin } = world;
  const publisher = await open(near, `${gateway.origin}/publish/nothing`);
  await publisher.evaluate(() => {
    window.canvas = Object.assign(document.createElement('canvas'), { width: 960, height: 540 });
    const context = window.canvas.getContext('2d');
    let n = 0;
    setInterval(() => {
      n += 1;
      context.fillStyle = `hsl(${n % 360} 60% 40%)`;
      context.fillRect(0, 0, 960, 540);
      for (let box = 0; box < 60; box += 1) {
        context.fillStyle = `hsl(${(n * 7 + box * 31) % 360} 80% 50%)`;
        context.fillRect((n * (3 + (box % 7)) + box * 97) % 960, (box * 53 + n * (box % 5)) % 540, 70, 50);
      }
    }, 50);
  });
  await publishSimulcast(publisher, { fps: 20, codec: 'VP8' });
  const headers = { Authorization: `Bearer ${API_TOKEN}` };
  const layers = async () => (await (await fetch(`${gateway.origin}/api/v1/streams/simulcast`, { headers })).json()).layers ?? [];
  await until(layers, (all) => all.filter(({ active, bitrate }) => active && bitrate > 0).length === 3, 'three layers', 60_000);

  const viewer = await open(far, `${origin}/watch/simulcast?way=webrtc`);
  await until(() => said(viewer), ({ automatic }) => automatic === 'Auto (540p)', 'the best layer to be named', 40_000);
  // Most sessions leave the lowest layer before it is reported.
  await sleep(4_000);
  const best = await said(viewer);
  assert.deepEqual([best.notice, best.isVisible, best.limited, best.layer], ['', false, undefined, '540p']);
  await shots(viewer, 'player');

  limit('800kbit');
  const lower = await until(() => said(viewer), ({ notice }) => notice, 'the notice', 40_000);
  t.diagnostic(JSON.stringify(lower));
  assert.match(lower.notice, /^Your connection (allows about 0\.\d Mbit\/s|is too slow for 540p): showing (270|135)p$/);
  assert.deepEqual([lower.isVisible, lower.role, lower.limited, lower.hint], [true, 'status', 'all', '']);
  assert.equal(lower.automatic, `Auto (${lower.layer})`);
  assert.ok(lower.notice.endsWith(`showing ${lower.layer}`), lower.notice);

  const dashboard = await open(near, `${gateway.origin}/#token=${API_TOKEN}`);
  const text = () => dashboard.evaluate(() => document.getElementById('streams').innerText);
  await until(text, (seen) => /\b1 limited by bandwidth/.test(seen), 'the dashboard to count the viewer');
  await press(dashboard, '[aria-label="2 sessions: simulcast"]');
  await until(text, (seen) => /viewer\s+connected\s[^\n]*?\b(h, 270p|q, 135p)\s+[\d.]+ [kM]bit\/s\s+bandwidth/.test(seen), 'its layer, bitrate and reason');
  await shots(dashboard, 'dashboard-limited');

  await viewer.evaluate(() => document.querySelector('millstream-player').shadowRoot.querySelector('.stats-toggle').click());
  const rows = () => viewer.evaluate(() => document.querySelector('millstream-player').shadowRoot.querySelector('.stats').innerText);
  await until(rows, (seen) => /Packet loss\s+\d+\.\d % \(\d+ total\)/.test(seen), 'the loss of the last seconds');
  await shots(viewer, 'player-limited');

  // What the viewer has selected is no limitation.
  await select(viewer, '135p');
  await until(() => said(viewer), ({ notice, layer }) => notice === '' && layer === '135p', 'the selected layer, without a notice');
  assert.equal((await said(viewer)).automatic, 'Auto');
  await sleep(4_000);
  assert.equal((await said(viewer)).notice, '');
  await select(viewer, 'Auto');
  await until(() => said(viewer), ({ notice }) => notice, 'the notice again', 40_000);

  limit('5mbit');
  const again = await until(() => said(viewer), ({ notice, layer }) => notice === '' && layer === '540p', 'the best layer again', 60_000);
  assert.deepEqual([again.isVisible, again.limited, again.automatic], [false, undefined, 'Auto (540p)']);
  await until(text, (seen) => !/limited|bandwidth/.test(seen), 'the dashboard to count no viewer');
  for (const page of [publisher, viewer, dashboard]) assert.deepEqual(page.faults, []);
});

test('a stream of one layer whose video does not pass says so while its audio plays', async (t) => {
  const world = await setUp(t);
  if (!world) return;
  const { gateway, near, far, origin } = world;
  const publisher = await publish(near, gateway, 'camera');
  await isLive(publisher);
  const viewer = await open(far, 'about:blank');
  const eventStreams = { requested: 0, opened: 0, read: 0 };
  viewer.on('request', (request) => {
    const { pathname } = new URL(request.url());
    if (pathname.includes('/events/')) eventStreams.read += 1;
    if (request.isInterceptResolutionHandled()) return;
    if (request.method() !== 'POST' || !pathname.endsWith('/events')) return request.continue();
    eventStreams.requested += 1;
    // On such a path a request may be lost, and take longer than an event stream is kept without a limitation.
    if (eventStreams.requested === 1) return request.abort('timedout');
    setTimeout(() => request.continue(), 4_000);
  });
  viewer.on('response', (response) => {
    if (response.request().method() === 'POST' && response.url().endsWith('/events') && response.status() === 201) eventStreams.opened += 1;
  });
  await viewer.setRequestInterception(true);
  // The event stream is closed after 3 s instead of 30.
  await viewer.evaluateOnNewDocument(() => {
    const { setTimeout } = window;
    window.setTimeout = (work, delay, ...more) => setTimeout(work, delay === 30_000 ? 3_000 : delay, ...more);
  });
  await viewer.goto(`${origin}/watch/camera?way=webrtc`);
  await plays(viewer, 100);
  await sleep(5_000);
  const before = { ...eventStreams };
  assert.equal((await said(viewer)).notice, '');

  limit('80kbit');
  const limited = await until(() => said(viewer), ({ notice }) => notice, 'the notice', 60_000);
  t.diagnostic(JSON.stringify(limited));
  assert.match(limited.notice, /^(Audio|Still pictures) only until your connection is better$/);
  assert.ok(['none', 'key_frames'].includes(limited.limited), limited.limited);
  // It is live, because its audio plays.
  let [frames, at] = ['', 0];
  await until(
    async () => {
      const now = await said(viewer);
      if (now.frames !== frames) [frames, at] = [now.frames, Date.now()];
      return now;
    },
    ({ state, hint, isVisible }) => state === 'playing' && hint === '' && isVisible && Date.now() - at > 3_000,
    'audio without video to be live',
    60_000,
  );
  await shots(viewer, 'player-audio-only');

  limit('5mbit');
  await until(() => said(viewer), ({ notice, state }) => notice === '' && state === 'playing', 'the video again', 60_000);
  await plays(viewer);
  // A session may have four event streams: the one that was closed is read again.
  await sleep(6_000);
  const closed = { ...eventStreams };
  limit('80kbit');
  await until(() => said(viewer), ({ notice }) => notice, 'the notice a second time', 60_000);
  t.diagnostic(JSON.stringify({ before, closed, eventStreams }));
  assert.equal(eventStreams.opened, Math.max(1, before.opened), 'opened once');
  assert.ok(eventStreams.read > closed.read, 'it was closed, and read again');
  for (const page of [publisher, viewer]) assert.deepEqual(page.faults, []);
});
