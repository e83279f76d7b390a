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
import { chromium, playerData, plays, unmute, startGateway, until, watch } from './harness.js';

const SERVER = fileURLToPath(new URL('../sources/rtsp/server.py', import.meta.url));

let browser;
before(async () => {
  browser = await chromium();
});
test.after(() => browser.close());

/** A camera, and a gateway with the stream `door` from it. */
async function cameraAndGateway(t, media, { camera: options = [], stream = '' } = {}) {
  const camera = spawn('/usr/bin/python3', [SERVER, '0', media, ...options], { stdio: ['ignore', 'pipe', 'inherit'] });
  t.after(() => camera.kill());
  const [port] = await once(createInterface({ input: camera.stdout }), 'line');
  const folder = await mkdtemp(path.join(tmpdir(), 'millstream-camera-'));
  t.after(() => rm(folder, { recursive: true }));
  const file = path.join(folder, 'millstream.toml');
  await writeFile(file, `[streams."door"]\nrtsp = "rtsp://127.0.0.1:${port}/cam"\n${stream}`);
  const gateway = await startGateway({ MILLSTREAM_CONFIG: file });
  t.after(() => gateway.stop());
  return gateway;
}

/** The transcodings that the log says were started. */
const transcodings = (gateway) =>
  gateway.log
    .map((line) => (line.startsWith('{') ? JSON.parse(line).fields : {}))
    .filter((fields) => fields.message === 'transcoding')
    .map((fields) => `${fields.from} to ${fields.transcode}`);

for (const [media, wanted] of [
  ['h264+pcma', []],
  ['h264+opus', []],
  ['h264+aac', ['AAC to opus']],
  ['h265', ['H265 to h264']],
  ['h264-b+aac', ['AAC to opus', 'H264 to h264']],
  ['mjpeg', ['JPEG to h264']],
]) {
  test(`chromium sees and hears a camera with ${media}`, async (t) => {
    const gateway = await cameraAndGateway(t, media);
    const page = await watch(browser, gateway, 'door');
    t.after(() => page.close());
    const data = await plays(page);
    assert.equal(data.codec, 'H264');
    if (media.includes('+')) {
      await unmute(page);
      await until(() => playerData(page), ({ audioEnergy }) => Number(audioEnergy) > 0, 'sound');
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
  await until(() => gateway.log.join('\n'), (log) => log.includes('source stopped: no viewers'), 'the camera to stop');
  const again = await watch(browser, gateway, 'door');
  t.after(() => again.close());
  await plays(again);
});

test('the demo stream is a moving picture with sound', async (t) => {
  const gateway = await startGateway({}, '--demo');
  t.after(() => gateway.stop());
  const page = await watch(browser, gateway, 'demo');
  t.after(() => page.close());
  const data = await plays(page);
  assert.equal(data.codec, 'H264');
  await unmute(page);
  await until(() => playerData(page), ({ audioEnergy }) => Number(audioEnergy) > 0, 'sound');
  t.diagnostic(`first frame after ${data.firstFrame} ms`);
});
