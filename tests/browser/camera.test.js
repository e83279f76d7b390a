// A camera that speaks RTSP (GStreamer's server) is watched like any other stream.

import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { createInterface } from 'node:readline';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { chromium, playerData, plays, soundOn, startGateway, until, watch } from './harness.js';

const SERVER = fileURLToPath(new URL('../rtsp/server.py', import.meta.url));

test('chromium sees and hears a camera', async (t) => {
  const camera = spawn('/usr/bin/python3', [SERVER, '0', 'h264'], { stdio: ['ignore', 'pipe', 'inherit'] });
  t.after(() => camera.kill());
  const [port] = await once(createInterface({ input: camera.stdout }), 'line');

  const folder = await mkdtemp(path.join(tmpdir(), 'millstream-camera-'));
  t.after(() => rm(folder, { recursive: true }));
  const file = path.join(folder, 'millstream.toml');
  await writeFile(file, `[streams."door"]\nrtsp = "rtsp://127.0.0.1:${port}/cam"\n`);
  const gateway = await startGateway({ MILLSTREAM_CONFIG: file });
  t.after(() => gateway.stop());
  const browser = await chromium();
  t.after(() => browser.close());

  const page = await watch(browser, gateway, 'door');
  const data = await plays(page);
  assert.equal(data.codec, 'H264');
  await soundOn(page);
  await until(() => playerData(page), ({ audioEnergy }) => Number(audioEnergy) > 0, 'sound');
  t.diagnostic(`first frame after ${data.firstFrame} ms`);
});
