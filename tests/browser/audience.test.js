// A publisher is killed under many watching players: nobody sees black or "Live", nobody is sent anything that is old, and
// all go on with the next publisher. `PLAYERS` sets their number: 20 for the long form.

import assert from 'node:assert/strict';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { after, before, test } from 'node:test';
import { makeClip, REDUCED_BLOCKS } from './clip.js';
import { chromium, open, startGateway, until } from './harness.js';
import { assertNotLiveForLong, observe, startEncoder, WAITING } from './observer.js';

const PLAYERS = Number(process.env.PLAYERS ?? 5);
const API_TOKEN = 'api-token-of-the-audience';
const API = { Authorization: `Bearer ${API_TOKEN}` };
/** Longer than the interval of replays for players that request key frames, in milliseconds. */
const AWAY = 10_000;

let browser, folder, clip;

before(async () => {
  folder = await mkdtemp(path.join(tmpdir(), 'millstream-audience-'));
  clip = path.join(folder, 'clip.h264');
  await makeClip(clip, { seconds: 10, keyFrameInterval: 2, bitrate: '400k', reduced: true });
  browser = await chromium();
});

after(async () => {
  await browser?.close();
  if (folder) await rm(folder, { recursive: true });
});

const sleep = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

/** Video packets that each player has received, and its attributes. */
const received = (page) =>
  page.evaluate(() => Promise.all([...document.querySelectorAll('millstream-player')].map(async (player) => ({
    ...player.dataset,
    packets: (await player.client.statistics()).videoPackets,
  }))));

const watched = (page) => page.evaluate(() => window.watched);

test(`a publisher is killed under ${PLAYERS} players`, { timeout: 240_000 }, async (t) => {
  const gateway = await startGateway({ MILLSTREAM_WEBRTC__LISTEN: '127.0.0.1:0', MILLSTREAM_AUTH__API_TOKEN: API_TOKEN });
  t.after(() => gateway.stop());
  const isLive = async () => (await (await fetch(`${gateway.origin}/api/v1/streams/live`, { headers: API })).json()).live;
  const encoder = await startEncoder(t, gateway, clip);
  const page = await open(browser, `${gateway.origin}/watch/live`);
  t.after(() => page.close());
  const byHls = [];
  page.on('request', (request) => /\/hls\/live\//.test(request.url()) && byHls.push(request.url()));
  await page.setViewport({ width: 1600, height: 1000 });
  await page.evaluate((count) => {
    const first = document.querySelector('millstream-player');
    const players = Array.from({ length: count }, () => {
      const player = document.createElement('millstream-player');
      Object.assign(player, { autoplay: true, muted: true, controls: true });
      player.setAttribute('src', first.getAttribute('src'));
      return player;
    });
    const grid = document.createElement('div');
    grid.style = 'display: grid; grid-template-columns: repeat(5, 1fr); gap: 4px';
    grid.append(...players);
    first.remove();
    document.body.replaceChildren(grid);
  }, PLAYERS);
  const play = (all) => all.length === PLAYERS && all.every(({ state, way, frames }) => state === 'playing' && way === 'webrtc' && Number(frames) > 30);
  await until(() => received(page), play, 'all to play by WebRTC', 60_000);
  await page.evaluate(observe, REDUCED_BLOCKS);
  await until(() => watched(page), (all) => all.every(({ frames }) => frames.length > 30), 'frames of all', 60_000);
  assert.equal(await isLive(), true);
  // Where many players begin at once on a busy machine, some begin by HLS.
  byHls.length = 0;
  const sessions = (await received(page)).map(({ sessions }) => sessions);

  encoder.kill();
  await sleep(2_000);
  const before = await received(page);
  await sleep(AWAY);
  const seen = await watched(page);
  for (const [index, { samples, frames }] of seen.entries()) {
    const last = frames.at(-1);
    // A sample may read the frame right before its callback.
    const since = samples.filter(({ at }) => at > last + 150);
    assert.ok(since.length > 30, `player ${index}: ${since.length} samples`);
    assert.notEqual(since[0].number, null, `player ${index}: black`);
    assert.deepEqual([...new Set(since.map(({ number }) => number))], [since[0].number], `player ${index}: the last frame stays`);
    assertNotLiveForLong(samples);
    const said = samples.find(({ at, hint }) => at > last && hint === WAITING);
    assert.ok(said, `player ${index} says that it waits`);
    assert.ok(since.filter(({ at }) => at > said.at).every(({ hint, live, veil }) => hint === WAITING && !live && !veil));
  }
  const { warnings } = await (await fetch(`${gateway.origin}/api/v1/streams/live`, { headers: API })).json();
  assert.ok(warnings.some((text) => /^No media has arrived from the publisher for \d+ s\.$/.test(text)), JSON.stringify(warnings));
  // What players request meanwhile is not answered with old frames.
  const then = await received(page);
  assert.deepEqual(then.map(({ packets }) => packets), before.map(({ packets }) => packets), 'no video after two seconds');
  assert.deepEqual(byHls, [], 'HLS is not tried for a stream that is not live');

  const counts = (await watched(page)).map(({ frames }) => frames.length);
  const next = await startEncoder(t, gateway, clip);
  const goesOn = (all) => all.every(({ frames }, index) => frames.length > counts[index] + 30);
  const back = await until(() => watched(page), goesOn, 'all to go on', 60_000);
  const delays = back.map(({ frames }, index) => Math.round(frames[counts[index]] - next.frame0)).sort((a, b) => a - b);
  t.diagnostic(`back after the first key frame was sent: ${delays[0]} / ${delays[PLAYERS >> 1]} / ${delays.at(-1)} ms (min / median / max)`);
  for (const { samples, frames } of back) {
    assertNotLiveForLong(samples);
    assert.ok(samples.filter(({ at }) => at > frames[0]).every(({ number }) => number !== null), 'no black in between');
  }
  const data = await received(page);
  assert.deepEqual([...new Set(data.map(({ way, state }) => `${way} ${state}`))], ['webrtc playing']);
  assert.deepEqual(data.map(({ sessions }) => sessions), sessions, 'the same sessions');
  assert.equal(await isLive(), true);
  assert.deepEqual(byHls, []);
  assert.deepEqual(page.faults, []);
});

test('a stream whose publisher has ended is not live in the API, and its viewers stay', async (t) => {
  const gateway = await startGateway({ MILLSTREAM_WEBRTC__LISTEN: '127.0.0.1:0', MILLSTREAM_AUTH__API_TOKEN: API_TOKEN });
  t.after(() => gateway.stop());
  const get = async (path) => (await fetch(`${gateway.origin}/api/v1/${path}`, { headers: API })).json();
  await startEncoder(t, gateway, clip);
  const page = await open(browser, `${gateway.origin}/watch/live`);
  t.after(() => page.close());
  await until(() => received(page), ([{ frames }]) => Number(frames) > 10, 'it to play');
  const { sessions } = await get('sessions');
  const { id } = sessions.find(({ role }) => role === 'publisher');
  await fetch(`${gateway.origin}/api/v1/sessions/${id}`, { method: 'DELETE', headers: API });
  const stream = await until(() => get('streams/live'), ({ live }) => live === false, 'the stream not to be live');
  assert.deepEqual([stream.video, stream.audio, stream.publisher, stream.viewers], [null, null, null, 1]);
});
