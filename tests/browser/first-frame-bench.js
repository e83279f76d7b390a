// From the load of the watch page to the first frame over WHEP, with the steps between: node first-frame-bench.js [LOADS]
// A publisher sends a clip with a key frame each second; the browser is warm, its cache is as for a second visit.

import { spawn } from 'node:child_process';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { FPS, makeClip } from './clip.js';
import { chromium, PUBLISH_TOKEN, startGateway, until } from './harness.js';

const LOADS = Number(process.argv[2] ?? 20);
const ENCODER = fileURLToPath(new URL(process.env.MILLSTREAM_BENCH_BIN ?? '../../target/debug/millstream-bench', import.meta.url));

/** In the page, before its scripts: notes when each step was done, in milliseconds since the navigation. */
function noteSteps() {
  const steps = (window.steps = {});
  const note = (name) => (steps[name] ??= performance.now());
  const { fetch } = window;
  window.fetch = async (url, options) => {
    const isOffer = options?.method === 'POST' && /\/whep\//.test(url);
    if (isOffer) note('offer');
    const response = await fetch(url, options);
    if (isOffer) note('answer');
    return response;
  };
  const Original = RTCPeerConnection;
  window.RTCPeerConnection = class extends Original {
    constructor(...options) {
      note('script');
      super(...options);
      this.addEventListener('iceconnectionstatechange', () => this.iceConnectionState === 'connected' && note('ice'));
      this.addEventListener('connectionstatechange', () => this.connectionState === 'connected' && note('dtls'));
    }
  };
  customElements.whenDefined('millstream-player').then(() => {
    const { video } = document.querySelector('millstream-player');
    const onFrame = (_, { width }) => (width > 2 ? note('frame') : video.requestVideoFrameCallback(onFrame));
    video.requestVideoFrameCallback(onFrame);
  });
}

const STEPS = ['script', 'offer', 'answer', 'ice', 'dtls', 'frame'];
const median = (values) => [...values].sort((a, b) => a - b)[values.length >> 1];

const folder = await mkdtemp(path.join(tmpdir(), 'millstream-first-frame-'));
const clip = path.join(folder, 'clip.h264');
await makeClip(clip, { seconds: 4, keyFrameInterval: 1 });
const gateway = await startGateway({ MILLSTREAM_WEBRTC__LISTEN: '127.0.0.1:0' });
const browser = await chromium({ camera: false });
const options = ['--http', gateway.http, '--token', PUBLISH_TOKEN, '--stream', 'clip', '--file', clip, '--fps', FPS];
const encoder = spawn(ENCODER, ['publish', ...options.map(String), '--loop'], { stdio: ['ignore', 'ignore', 'inherit'] });
try {
  const loads = [];
  for (let n = 0; n <= LOADS; n += 1) {
    const page = await browser.newPage();
    await page.evaluateOnNewDocument(noteSteps);
    await page.goto(`${gateway.origin}/watch/clip`);
    const steps = await until(() => page.evaluate(() => window.steps), ({ frame }) => frame, 'the first frame');
    await page.close();
    // The first page of a browser pays for what later ones share.
    if (n > 0) loads.push(steps);
  }
  const of = (name) => loads.map((steps) => steps[name]);
  for (const name of STEPS) console.log(`${name.padEnd(8)} median ${median(of(name)).toFixed(0)} ms, ${Math.min(...of(name)).toFixed(0)} to ${Math.max(...of(name)).toFixed(0)} ms`);
} finally {
  encoder.kill();
  await browser.close();
  await gateway.stop();
  await rm(folder, { recursive: true });
}
