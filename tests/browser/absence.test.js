// A publisher goes away under a watching player: its last frame stays in sight, the player says that it waits, and goes
// on with the first frame of the next publisher.

import assert from 'node:assert/strict';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { after, before, test } from 'node:test';
import { BLOCKS, makeClip } from './clip.js';
import { chromium, open, playerData, plays, playsByWebRtc, PUBLISH_TOKEN, unmute, startGateway, until, watch } from './harness.js';
import { assertNotLiveForLong, observe, startEncoder, WAITING } from './observer.js';

const API_TOKEN = 'api-token-of-the-absence';
const API = { Authorization: `Bearer ${API_TOKEN}` };
/** Longer than a player ever took to try something else, in milliseconds. */
const AWAY = 12_000;

let browser, folder, clip;

before(async () => {
  folder = await mkdtemp(path.join(tmpdir(), 'millstream-absence-'));
  clip = path.join(folder, 'clip.h264');
  await makeClip(clip, { seconds: 10, keyFrameInterval: 2 });
  browser = await chromium();
});

after(async () => {
  await browser?.close();
  if (folder) await rm(folder, { recursive: true });
});

const sleep = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

// Media goes by loopback: the encoder lives there.
const gatewayOfEncoder = () =>
  startGateway({ MILLSTREAM_WEBRTC__LISTEN: '127.0.0.1:0', MILLSTREAM_AUTH__API_TOKEN: API_TOKEN });

/** Brightness of the middle of what is really on the screen, 0 to 255, by a screenshot. */
async function brightness(page) {
  const box = await page.$eval('millstream-player', (player) => {
    const { x, y, width, height } = player.getBoundingClientRect();
    return { x: x + width / 4, y: y + height / 4, width: width / 2, height: height / 2 };
  });
  const screenshot = await page.screenshot({ clip: box, encoding: 'base64' });
  return page.evaluate(async (screenshot) => {
    const bytes = Uint8Array.from(atob(screenshot), (letter) => letter.charCodeAt(0));
    const image = await createImageBitmap(new Blob([bytes], { type: 'image/png' }));
    const context = new OffscreenCanvas(16, 9).getContext('2d');
    context.drawImage(image, 0, 0, 16, 9);
    const { data } = context.getImageData(0, 0, 16, 9);
    return data.reduce((sum, value, index) => sum + (index % 4 === 3 ? 0 : value), 0) / (data.length * 0.75);
  }, screenshot);
}

const ENDS = {
  'is killed': ({ encoder }) => encoder.kill(),
  // The gateway knows at once.
  'has its session ended': async ({ encoder, gateway }) => {
    const { sessions } = await (await fetch(`${gateway.origin}/api/v1/sessions`, { headers: API })).json();
    const { id } = sessions.find(({ role }) => role === 'publisher');
    await fetch(`${gateway.origin}/api/v1/sessions/${id}`, { method: 'DELETE', headers: API });
    encoder.kill();
  },
};

for (const [name, end] of Object.entries(ENDS)) {
  test(`the last frame of a publisher that ${name} stays, and the player waits and goes on`, async (t) => {
    const gateway = await gatewayOfEncoder();
    t.after(() => gateway.stop());
    const encoder = await startEncoder(t, gateway, clip);
    const page = await watch(browser, gateway, 'live');
    t.after(() => page.close());
    const byHls = [];
    page.on('request', (request) => /\/hls\/live\//.test(request.url()) && byHls.push(request.url()));
    await plays(page, 60);
    // HLS is right while a connection takes long.
    await playsByWebRtc(page);
    byHls.length = 0;
    await page.evaluate(observe, BLOCKS);
    await sleep(1_000);
    const bright = await brightness(page);
    await end({ encoder, gateway });
    const ended = Date.now();

    const screens = [];
    while (Date.now() < ended + AWAY) {
      screens.push(await brightness(page));
      if (process.env.SCREENSHOTS && screens.length === 12) await page.screenshot({ path: `${process.env.SCREENSHOTS}/absence.png` });
      await sleep(200);
    }
    const { samples, frames } = await page.evaluate(() => ({ samples: window.samples, frames: window.frames }));
    const last = frames.at(-1);
    // A sample may read the frame right before its callback.
    const since = samples.filter(({ at }) => at > last + 150);
    assert.ok(since.length > 60, `${since.length} samples`);
    assert.notEqual(since[0].number, null);
    assert.deepEqual([...new Set(since.map(({ number }) => number))], [since[0].number], 'the last frame stays');
    assertNotLiveForLong(samples);
    const said = samples.find(({ at, hint }) => at > last && hint === WAITING);
    assert.ok(said, 'it says that it waits');
    t.diagnostic(`"${WAITING}" ${(said.at - last).toFixed(0)} ms after the last frame`);
    const after = since.filter(({ at }) => at > said.at);
    assert.ok(after.every(({ hint, live, veil, state }) => hint === WAITING && !live && !veil && state === 'paused'));
    // On the screen itself nothing is darkened or covered.
    assert.ok(Math.min(...screens) > bright * 0.8, `brightness ${screens.map(Math.round)}, ${Math.round(bright)} before`);
    assert.deepEqual(byHls, [], 'HLS is not tried for a stream that is not live');

    const next = await startEncoder(t, gateway, clip);
    const count = await page.evaluate(() => window.frames.length);
    const first = await until(
      () => page.evaluate((count) => window.frames[count], count),
      Boolean,
      'the first frame of the next publisher',
    );
    t.diagnostic(`the video is back ${(first - next.frame0).toFixed(0)} ms after the first key frame was sent`);
    await plays(page, 30);
    const data = await playerData(page);
    assert.equal(data.sessions, '1', 'the same session');
    assert.equal(data.way, 'webrtc');
    const back = await page.evaluate(() => window.samples.slice(-5));
    assert.ok(back.every(({ live, hint, veil }) => live && !hint && !veil), JSON.stringify(back));
    assertNotLiveForLong(await page.evaluate(() => window.samples));
    assert.deepEqual(byHls, []);
    assert.deepEqual(page.faults, []);
  });
}

test('the last frame stays by HLS too, and what the publisher sent last is not shown again', async (t) => {
  const gateway = await gatewayOfEncoder();
  t.after(() => gateway.stop());
  const encoder = await startEncoder(t, gateway, clip);
  const page = await open(browser, `${gateway.origin}/watch/live?way=hls`);
  t.after(() => page.close());
  const playsByHls = (data) => data.way === 'hls' && data.state === 'playing' && Number(data.frames) > 60;
  await until(() => playerData(page), playsByHls, 'HLS to play', 30_000);
  await page.evaluate(observe, BLOCKS);
  encoder.kill();
  // Longer than HLS waits for more, so that it is given up and tried again.
  await sleep(20_000);
  const { samples, frames } = await page.evaluate(() => ({ samples: window.samples, frames: window.frames }));
  const last = frames.at(-1);
  const since = samples.filter(({ at }) => at > last + 150);
  assert.ok(since.length > 100, `${since.length} samples`);
  assert.notEqual(since[0].number, null);
  assert.deepEqual([...new Set(since.map(({ number }) => number))], [since[0].number], 'the last frame stays');
  assertNotLiveForLong(samples);
  assert.ok(since.slice(-100).every(({ hint, live, veil }) => hint === WAITING && !live && !veil), JSON.stringify(since.at(-1)));
  assert.ok((await brightness(page)) > 50);
  await startEncoder(t, gateway, clip);
  const again = frames.length;
  await until(() => page.evaluate(() => window.frames.length), (count) => count > again + 60, 'HLS to play again', 30_000);
  assert.equal((await playerData(page)).state, 'playing');
  assertNotLiveForLong(await page.evaluate(() => window.samples));
});

test('a stream whose video stops while its audio goes on is not called live', async (t) => {
  const gateway = await startGateway();
  t.after(() => gateway.stop());
  const publisher = await open(browser, `${gateway.origin}/publish/nothing`);
  t.after(() => publisher.close());
  await publisher.evaluate(async (token) => {
    const { WhipClient } = await import('/whip.js');
    const stream = await navigator.mediaDevices.getUserMedia({ audio: true, video: { width: 640, height: 360 } });
    window.client = new WhipClient('/whip/call', stream, { token, codec: 'VP8' });
    window.client.start();
    const sender = () => window.client.connection.getSenders().find(({ track }) => track !== null && track.kind === 'video');
    window.camera = async (on) => {
      window.sender ??= sender();
      await window.sender.replaceTrack(on ? stream.getVideoTracks()[0] : null);
    };
  }, PUBLISH_TOKEN);
  const page = await watch(browser, gateway, 'call');
  t.after(() => page.close());
  const byHls = [];
  page.on('request', (request) => /\/hls\/call\//.test(request.url()) && byHls.push(request.url()));
  await plays(page, 30);
  await playsByWebRtc(page);
  byHls.length = 0;
  await unmute(page);
  await page.evaluate(observe, BLOCKS);
  await publisher.evaluate(() => window.camera(false));
  await until(() => playerData(page), ({ state }) => state === 'paused', 'the player to notice');
  const { audioEnergy } = await playerData(page);
  await sleep(8_000);
  const samples = await page.evaluate(() => window.samples.slice(-60));
  assert.ok(samples.every(({ live, hint, veil }) => !live && hint === WAITING && !veil), JSON.stringify(samples.at(-1)));
  assertNotLiveForLong(await page.evaluate(() => window.samples));
  assert.deepEqual(byHls, []);
  const data = await playerData(page);
  assert.ok(Number(data.audioEnergy) > Number(audioEnergy), 'the audio goes on');
  await publisher.evaluate(() => window.camera(true));
  await plays(page, 30);
  assert.equal((await playerData(page)).sessions, '1');
});

for (const way of ['webrtc', 'hls']) {
  test(`a viewer who pauses the video by ${way} sees no hint to wait, and goes on`, async (t) => {
    const gateway = await gatewayOfEncoder();
    t.after(() => gateway.stop());
    await startEncoder(t, gateway, clip);
    const page = await open(browser, `${gateway.origin}/watch/live?way=${way}`);
    t.after(() => page.close());
    const playsSo = (data) => data.way === way && data.state === 'playing' && Number(data.frames) > 30;
    await until(() => playerData(page), playsSo, 'it to play', 30_000);
    await page.evaluate(observe, BLOCKS);
    const press = () =>
      page.evaluate(() => document.querySelector('millstream-player').shadowRoot.querySelector('.play').click());
    const halted = () => page.evaluate(() => document.querySelector('millstream-player').video.paused);
    await press();
    await until(halted, Boolean, 'it to halt');
    const from = await page.evaluate(() => window.samples.length);
    await sleep(11_000);
    assert.equal(await halted(), true);
    const samples = await page.evaluate((from) => window.samples.slice(from), from);
    assert.ok(samples.length > 50, `${samples.length} samples`);
    assert.ok(samples.every(({ hint, live, veil }) => !hint && !live && !veil), JSON.stringify(samples.at(-1)));
    assert.equal((await playerData(page)).way, way);
    const frames = await page.evaluate(() => window.frames.length);
    await press();
    await until(() => page.evaluate(() => window.frames.length), (count) => count > frames + 30, 'it to go on');
    assert.equal((await playerData(page)).state, 'playing');
  });
}

test('a player in a tab that nobody sees stays as it is', async (t) => {
  const gateway = await gatewayOfEncoder();
  t.after(() => gateway.stop());
  await startEncoder(t, gateway, clip);
  const page = await watch(browser, gateway, 'live');
  t.after(() => page.close());
  await plays(page, 30);
  await playsByWebRtc(page);
  const other = await browser.newPage();
  t.after(() => other.close());
  await other.bringToFront();
  const states = await page.evaluate(async () => {
    const player = document.querySelector('millstream-player');
    const seen = [];
    player.addEventListener('statechange', ({ detail }) => seen.push(detail.state));
    await new Promise((resolve) => setTimeout(resolve, 8_000));
    return { seen, hidden: document.hidden, way: player.dataset.way, state: player.dataset.state };
  });
  t.diagnostic(`document.hidden: ${states.hidden}`);
  assert.deepEqual([states.seen, states.way, states.state], [[], 'webrtc', 'playing']);
  await page.bringToFront();
  await plays(page, 30);
  assert.equal((await playerData(page)).sessions, '1');
});

// Chromium decodes frames for a tab that nobody sees, and goes on displaying two black pixels as a square.
test('a player that begins in a tab that nobody sees shows nothing before it shows a frame', async (t) => {
  const gateway = await gatewayOfEncoder();
  t.after(() => gateway.stop());
  await startEncoder(t, gateway, clip);
  const page = await browser.newPage();
  t.after(() => page.close());
  const other = await browser.newPage();
  t.after(() => other.close());
  await other.bringToFront();
  await page.goto(`${gateway.origin}/watch/live`);
  await plays(page, 30);
  const shown = () => page.evaluate(() => {
    const { video } = document.querySelector('millstream-player');
    return { hidden: document.hidden, appears: video.classList.contains('has-frame') };
  });
  const before = await shown();
  assert.deepEqual(before, { hidden: true, appears: false });
  await page.bringToFront();
  await until(shown, ({ appears }) => appears, 'the video to appear');
});
