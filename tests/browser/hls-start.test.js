// Plain hls.js with its defaults starts without an error, whether it starts the packager or finds it running.

import assert from 'node:assert/strict';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { after, before, test } from 'node:test';
import { makeClip } from './clip.js';
import { chromium, startGateway } from './harness.js';
import { CLIP_SECONDS, measureStart } from './hls-start.js';
import { startEncoder } from './observer.js';

const STARTS = Number(process.env.STARTS ?? 3);

let browser, folder, clip;

before(async () => {
  folder = await mkdtemp(path.join(tmpdir(), 'millstream-hls-start-'));
  clip = path.join(folder, 'clip.h264');
  await makeClip(clip, { seconds: CLIP_SECONDS, keyFrameInterval: 2 });
  browser = await chromium();
});

after(async () => {
  await browser?.close();
  if (folder) await rm(folder, { recursive: true });
});

const sleep = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

test(`hls.js starts ${STARTS} times on a packager that it starts and on one that runs`, { timeout: STARTS * 60_000 }, async (t) => {
  for (let start = 0; start < STARTS; start += 1) {
    const gateway = await startGateway({ MILLSTREAM_WEBRTC__LISTEN: '127.0.0.1:0' });
    t.after(() => gateway.stop());
    const { frame0, kill } = await startEncoder(t, gateway, clip);
    // At different times after a key frame.
    await sleep(3_000 + (2_000 * start) / STARTS);
    for (const packager of ['cold', 'warm']) {
      const { first, behind, later, frames, errors } = await measureStart(browser, gateway, 'live', { frame0, seconds: 5 });
      t.diagnostic(`${packager}: first frame after ${first} ms, ${behind} ms behind, later ${later} ms`);
      assert.ok(frames > 30, `${packager}: ${frames} frames`);
      assert.deepEqual(errors.filter((error) => /fragGap|fatal/.test(error)), [], packager);
    }
    kill();
  }
});
