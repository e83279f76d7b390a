// The dashboard, and accessibility of all pages by axe-core.

import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { violations } from './axe.js';
import { chromium, isLive, open, playerData, plays, press, publish, startGateway, until, watch } from './harness.js';

const API_TOKEN = 'api-token-of-the-tests';

let browser;

before(async () => {
  browser = await chromium();
});

after(() => browser?.close());

const shot = async (page, name) => {
  if (process.env.SCREENSHOTS) await page.screenshot({ path: `${process.env.SCREENSHOTS}/${name}.png`, fullPage: true });
};

/** Viewers by both ways, and the delay from the camera to the gateway, in the API and in the metrics. */
async function countsBoth(t, gateway) {
  const headers = { Authorization: `Bearer ${API_TOKEN}` };
  const metrics = await (await fetch(`${gateway.origin}/metrics`, { headers })).text();
  const value = (sample) => Number(new RegExp(`^${sample.replace(/[{}]/g, '\\$&')} (.*)$`, 'm').exec(metrics)?.[1]);
  for (const transport of ['webrtc', 'hls']) {
    assert.equal(value(`millstream_stream_viewers{stream="studio/one",transport="${transport}"}`), 1, transport);
  }
  const delays = ['sum', 'count'].map((name) =>
    value(`millstream_source_delay_seconds_${name}{stream="studio/one",kind="video"}`));
  const { viewers, hls_viewers, video } = await (await fetch(`${gateway.origin}/api/v1/streams/studio/one`, { headers })).json();
  assert.deepEqual([viewers, hls_viewers], [1, 1]);
  t.diagnostic(`from the camera to the gateway: ${(video.delay * 1e3).toFixed(1)} ms, mean ${(delays[0] / delays[1] * 1e3).toFixed(1)} ms`);
  // The snapshot was encoded for this request and not stored.
  assert.ok(video.delay > 0 && video.delay < 1, `${video.delay} s`);
  assert.ok(delays[0] / delays[1] < 1, `${delays}`);
}

const board = (page) => page.evaluate(() => document.documentElement.dataset.streams);
const text = (page) => page.evaluate(() => document.getElementById('streams').innerText);

test('the dashboard shows streams, sources with their errors, and sessions that it can end', async (t) => {
  const gateway = await startGateway({ MILLSTREAM_AUTH__API_TOKEN: API_TOKEN }, '--demo');
  t.after(() => gateway.stop());
  const publisher = await publish(browser, gateway, 'studio/one');
  t.after(() => publisher.close());
  await isLive(publisher);
  const viewer = await watch(browser, gateway, 'studio/one');
  t.after(() => viewer.close());
  await plays(viewer);

  const byHls = await open(browser, `${gateway.origin}/watch/studio/one?way=hls`);
  t.after(() => byHls.close());
  // VP8 has no place in HLS: what plays is the audio.
  await until(() => playerData(byHls), ({ way, missing }) => way === 'hls' && missing === 'VP8', 'the audio by HLS');

  // The first snapshot breaks off while it arrives.
  const page = await open(browser, `${gateway.origin}/`, () => {
    const { blob } = Response.prototype;
    Response.prototype.blob = function () {
      Response.prototype.blob = blob;
      return Promise.reject(new DOMException('signal timed out', 'TimeoutError'));
    };
  });
  t.after(() => page.close());
  assert.equal(await board(page), 'closed');
  await page.type('#api-token', 'wrong');
  await page.click('#board-token button');
  await until(() => page.$eval('#board-note', (note) => note.textContent), (note) => /does not permit/.test(note), 'the refusal');
  await page.$eval('#api-token', (input) => (input.value = ''));
  await page.type('#api-token', API_TOKEN);
  await page.click('#board-token button');
  await until(() => board(page), (count) => count === '2', 'both streams');
  await until(() => text(page), (seen) => /studio\/one/.test(seen) && /VP8/.test(seen) && /kbit\/s|Mbit\/s/.test(seen), 'facts');
  await until(() => text(page), (seen) => /\b2, of which 1 over HLS/.test(seen) && /Capture delay\s+\d+ ms/.test(seen), 'viewers by both ways, and the delay');
  await countsBoth(t, gateway);
  assert.match(await text(page), /VP8: HLS does not support it/);
  const snapshot = () => page.evaluate(() => {
    const [image] = document.querySelectorAll('.thumb[data-stream="studio/one"]');
    return image && !image.hidden ? [image.naturalWidth > 0, image.src.slice(0, 22)] : null;
  });
  await until(snapshot, (seen) => seen?.[0], 'a snapshot of the stream', 60_000);
  assert.match((await snapshot())[1], /^data:image\/jpeg/);
  assert.deepEqual(page.faults, []);
  await press(page, '[aria-label="2 sessions: studio/one"]');
  await until(() => text(page), (seen) => /publisher/.test(seen) && /viewer/.test(seen), 'the sessions');
  assert.deepEqual(await violations(page), []);
  await shot(page, 'dashboard');
  await page.emulateMediaFeatures([{ name: 'prefers-color-scheme', value: 'dark' }]);
  await page.setViewport({ width: 390, height: 800 });
  await new Promise((resolve) => setTimeout(resolve, 2_500));
  assert.deepEqual(await violations(page), [], 'in the dark, on a phone');
  await shot(page, 'dashboard-dark-phone');
  const wide = await page.evaluate(() => document.documentElement.scrollWidth > innerWidth);
  assert.equal(wide, false, 'nothing sticks out on a phone');

  // By keyboard: the source of the demo is stopped, and started again.
  await press(page, '[aria-label="Stop source: demo"]');
  await until(() => text(page), (seen) => /stopped/.test(seen), 'the source to stop');
  await press(page, '[aria-label="Start source: demo"]');
  await until(() => text(page), (seen) => !/stopped/.test(seen), 'the source to start');
  // The viewer's session is ended, and the player comes back by itself.
  await press(page, '[aria-label^="End session of viewer"]');
  await until(() => text(page), (seen) => /kicked/.test(seen), 'the cause to be shown');
  await until(() => viewer.evaluate(() => document.querySelector('millstream-player').dataset.sessions), (count) => count === '2', 'the player to return');
  assert.deepEqual(page.faults, []);
});

for (const codec of ['VP8', 'H264', 'VP9', 'AV1']) {
  test(`a snapshot of ${codec} has the size of the video`, async (t) => {
    const gateway = await startGateway({ MILLSTREAM_AUTH__API_TOKEN: API_TOKEN });
    t.after(() => gateway.stop());
    const publisher = await publish(browser, gateway, 'camera', { codec });
    t.after(() => publisher.close());
    await isLive(publisher);
    const headers = { Authorization: `Bearer ${API_TOKEN}` };
    const streams = async () => (await fetch(`${gateway.origin}/api/v1/streams/camera`, { headers })).json();
    await until(streams, ({ video }) => video?.width > 0, 'the video to start');
    const page = await open(browser, `${gateway.origin}/`);
    t.after(() => page.close());
    for (const [ending, type] of [['jpg', 'image/jpeg'], ['png', 'image/png']]) {
      const answer = await fetch(`${gateway.origin}/api/v1/streams/camera/snapshot.${ending}`, { headers });
      assert.equal(answer.status, 200, answer.ok ? '' : await answer.text());
      assert.equal(answer.headers.get('Content-Type'), type);
      const bytes = [...new Uint8Array(await answer.arrayBuffer())];
      const size = await page.evaluate(async (bytes, type) => {
        const image = await createImageBitmap(new Blob([new Uint8Array(bytes)], { type }));
        return [image.width, image.height];
      }, bytes, type);
      const { video } = await streams();
      assert.ok(Math.abs(size[0] / size[1] - video.width / video.height) < 0.02, `${size} of ${video.width}x${video.height}`);
    }
    const missing = await fetch(`${gateway.origin}/api/v1/streams/nothing/snapshot.jpg`, { headers });
    assert.equal(missing.status, 409);
  });
}

test('the watch and publish pages, and the one for wrong addresses, have no faults that axe-core finds', async (t) => {
  const gateway = await startGateway({}, '--demo');
  t.after(() => gateway.stop());
  const viewer = await watch(browser, gateway, 'demo');
  t.after(() => viewer.close());
  await plays(viewer);
  assert.deepEqual(await violations(viewer), []);
  await shot(viewer, 'watch');
  const publisher = await publish(browser, gateway, 'camera');
  t.after(() => publisher.close());
  await isLive(publisher);
  assert.deepEqual(await violations(publisher), []);
  await shot(publisher, 'publish');
  const lost = await open(browser, `${gateway.origin}/live`);
  t.after(() => lost.close());
  assert.match(await lost.evaluate(() => document.body.innerText), /Page not found[^]*\/whip\/NAME/);
  assert.deepEqual(await violations(lost), []);
  await shot(lost, 'lost');
  for (const page of [viewer, publisher, lost]) assert.deepEqual(page.faults, []);
});
