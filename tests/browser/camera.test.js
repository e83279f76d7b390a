// Cameras that speak RTSP (GStreamer's server) are watched like any other stream, whatever they send.

import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { createInterface } from 'node:readline';
import { before, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { chromium, isLive, open, playerData, plays, playsByWebRtc, publish, shownByPlayer, startGateway, unmute, until, watch } from './harness.js';

const SERVER = fileURLToPath(new URL('../sources/rtsp/server.py', import.meta.url));

let browser;
before(async () => {
  browser = await chromium();
});
test.after(() => browser?.close());

/** A camera, and a gateway with the stream `door` from it. */
async function cameraAndGateway(t, media, { camera: options = [], stream = '', env = {} } = {}) {
  const camera = spawn('/usr/bin/python3', [SERVER, '0', media, ...options], { stdio: ['ignore', 'pipe', 'inherit'] });
  t.after(() => camera.kill());
  const [port] = await once(createInterface({ input: camera.stdout }), 'line');
  const folder = await mkdtemp(path.join(tmpdir(), 'millstream-camera-'));
  t.after(() => rm(folder, { recursive: true }));
  const file = path.join(folder, 'millstream.toml');
  await writeFile(file, `[streams."door"]\nrtsp = "rtsp://127.0.0.1:${port}/cam"\n${stream}`);
  const gateway = await startGateway({ MILLSTREAM_CONFIG: file, ...env });
  t.after(() => gateway.stop());
  return gateway;
}

/** Waits for a hint, and checks that the player is not live for as long as it might try other transports. */
async function isNeverLive(page, hint) {
  await until(() => shownByPlayer(page), (data) => data.hint === hint, `"${hint}"`, 20_000);
  for (let round = 0; round < 100; round += 1) {
    const { live, state, overlay } = await shownByPlayer(page);
    assert.deepEqual([live, state, overlay], [false, 'paused', ''], JSON.stringify(await shownByPlayer(page)));
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
}

const UNTRANSCODED = { MILLSTREAM_PIPELINES__TRANSCODE: 'false' };

test('the audio of a Motion JPEG camera that is not transcoded is played, and the stream is not called live', async (t) => {
  const gateway = await cameraAndGateway(t, 'mjpeg+pcma', { env: UNTRANSCODED });
  const page = await watch(browser, gateway, 'door');
  t.after(() => page.close());
  await isNeverLive(page, 'The video of this stream is Motion JPEG, which your browser cannot play: only the audio is played');
  assert.equal((await playerData(page)).missing, 'JPEG');
  await unmute(page);
  await until(() => playerData(page), ({ audioEnergy }) => Number(audioEnergy) > 0, 'audio');
  if (process.env.SCREENSHOTS) await page.screenshot({ path: `${process.env.SCREENSHOTS}/mjpeg.png` });
});

test('a Motion JPEG camera without audio that is not transcoded cannot be played, and the player says so', async (t) => {
  const gateway = await cameraAndGateway(t, 'mjpeg', { env: UNTRANSCODED });
  const page = await watch(browser, gateway, 'door');
  t.after(() => page.close());
  await until(() => shownByPlayer(page), ({ overlay }) => overlay === 'This browser cannot play the stream', 'the player to say so');
  for (let round = 0; round < 100; round += 1) {
    assert.equal((await shownByPlayer(page)).live, false);
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
});

test('the audio of a VP8 stream over HLS is played, and the stream is not called live', async (t) => {
  const gateway = await startGateway();
  t.after(() => gateway.stop());
  const publisher = await publish(browser, gateway, 'vp8', { codec: 'VP8' });
  t.after(() => publisher.close());
  await isLive(publisher);
  const page = await open(browser, `${gateway.origin}/watch/vp8?way=hls`);
  t.after(() => page.close());
  await isNeverLive(page, 'The video of this stream is VP8, which HLS does not support: only the audio is played');
  const data = await playerData(page);
  assert.deepEqual([data.way, data.missing], ['hls', 'VP8']);
  if (process.env.SCREENSHOTS) await page.screenshot({ path: `${process.env.SCREENSHOTS}/vp8-hls.png` });
});

/** The transcodings that the log says were started. */
const transcodings = (gateway) =>
  gateway.log
    .map((line) => (line.startsWith('{') ? JSON.parse(line).fields : {}))
    .filter((fields) => fields.message === 'transcoding started')
    .map((fields) => `${fields.from} to ${fields.transcode}`);

for (const [media, wanted] of [
  ['h264+pcma', []],
  ['h264+opus', []],
  ['h264+aac', ['AAC to opus']],
  ['h265', ['H265 to h264']],
  ['h264-b+aac', ['AAC to opus', 'H264 to h264']],
  ['mjpeg', ['JPEG to h264']],
]) {
  test(`chromium plays video and audio of a camera with ${media}`, async (t) => {
    const gateway = await cameraAndGateway(t, media);
    const page = await watch(browser, gateway, 'door');
    t.after(() => page.close());
    await plays(page);
    const data = await playsByWebRtc(page, 'H264');
    if (media.includes('+')) {
      await unmute(page);
      await until(() => playerData(page), ({ audioEnergy }) => Number(audioEnergy) > 0, 'audio');
    }
    assert.deepEqual(transcodings(gateway).sort(), wanted);
    assert.equal((await playerData(page)).sessions, '1', 'one session all the time');
    assert.deepEqual(page.faults, []);
    t.diagnostic(`first frame after ${data.firstFrame} ms`);
  });
}

test('a camera with digest credentials is fetched while somebody watches, and no longer', async (t) => {
  const stream = 'username = "viewer"\npassword = "s3cret"\non_demand = true\nstop_after = 1\n';
  const options = { camera: ['--credentials', 'viewer', 's3cret'], stream };
  const gateway = await cameraAndGateway(t, 'h264+pcma', options);
  const page = await watch(browser, gateway, 'door');
  await plays(page);
  await page.close();
  await until(() => gateway.log.join('\n'), (log) => log.includes('on-demand source stopped: its stream has no viewers'), 'the camera to stop');
  const again = await watch(browser, gateway, 'door');
  t.after(() => again.close());
  await plays(again);
});

test('the demo stream has moving video, and audio', async (t) => {
  const gateway = await startGateway({}, '--demo');
  t.after(() => gateway.stop());
  const page = await watch(browser, gateway, 'demo');
  t.after(() => page.close());
  await plays(page);
  const data = await playsByWebRtc(page, 'H264');
  await unmute(page);
  await until(() => playerData(page), ({ audioEnergy }) => Number(audioEnergy) > 0, 'audio');
  t.diagnostic(`first frame after ${data.firstFrame} ms`);
});
