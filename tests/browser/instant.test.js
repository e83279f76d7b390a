// How soon a viewer sees video, and how far behind it is, when the publisher sends a key frame every ten seconds
// and ignores requests for another.

import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { appendFile, mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { createInterface } from 'node:readline';
import { after, before, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { BLOCKS, FPS, makeClip } from './clip.js';
import { chromium, PUBLISH_TOKEN, startGateway } from './harness.js';

const ENCODER = fileURLToPath(
  new URL(process.env.MILLSTREAM_BENCH_BIN ?? '../../target/debug/millstream-bench', import.meta.url),
);

const STREAM = 'instant';
const INTERVAL = 10_000;
/**
 * Where in the interval viewers join, in milliseconds after the key frame. The first is what the others are held to.
 * In this order four viewers, one after the other, take three intervals.
 */
const PHASES = [100, 6_000, 3_000, 9_500];
/** Joins at each phase, at least and at most; the median counts, so that one moment at which the machine was busy does not. */
const JOINS = Number(process.env.INSTANT_JOINS ?? 3);
const MOST_JOINS = Math.max(JOINS, 9);
/** The first frame has to be decoded this long after ICE connected. */
const FIRST_FRAME = 300;
/**
 * One frame, or two refreshes of the display: a frame waits up to one refresh to be shown, and for how long is
 * accidental for the viewer and for the one that it is compared with.
 */
const TOLERANCE = 1_000 / FPS;

let gateway, browser, encoder, folder;

before(async () => {
  folder = await mkdtemp(path.join(tmpdir(), 'millstream-instant-'));
  const clip = path.join(folder, 'clip.h264');
  await makeClipOfEqualIntervals(clip, 2);
  // The encoder lives on loopback.
  gateway = await startGateway({ MILLSTREAM_WEBRTC__LISTEN: '127.0.0.1:0' });
  browser = await chromium({ camera: false });
  encoder = await startEncoder(clip);
});

after(async () => {
  await browser?.close();
  encoder?.stop();
  await gateway?.stop();
  if (folder) await rm(folder, { recursive: true });
});

/**
 * Each interval is encoded by itself. An encoder makes its first key frame smaller than later ones, which take Chromium
 * 150 ms longer to show, and half of the viewers at a phase would be compared with one who had the other.
 */
async function makeClipOfEqualIntervals(clip, count) {
  const seconds = INTERVAL / 1000;
  for (let n = 0; n < count; n += 1) {
    const part = `${clip}.${n}`;
    await makeClip(part, { seconds, keyFrameInterval: seconds, first: n * seconds * FPS });
    await appendFile(clip, await readFile(part));
  }
}

/** Plays the clip without end; `frame0` is when its first frame left. */
async function startEncoder(clip) {
  const options = ['--http', gateway.http, '--token', PUBLISH_TOKEN, '--stream', STREAM, '--file', clip, '--fps', FPS];
  const child = spawn(ENCODER, ['publish', ...options, '--loop'].map(String), { stdio: ['ignore', 'pipe', 'inherit'] });
  const line = await new Promise((resolve, reject) => {
    createInterface({ input: child.stdout }).once('line', resolve);
    child.once('error', reject);
    child.once('exit', (code) => reject(new Error(`the encoder exited with ${code}`)));
  });
  const { frame0_ms: frame0, frames } = JSON.parse(line);
  return { frame0, frames, stop: () => child.kill() };
}

const sleep = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

/** One viewer in a new page, whose player starts at a phase of the key frame interval. */
async function join(phase) {
  const page = await browser.newPage();
  try {
    await page.evaluateOnNewDocument(noteConnection);
    await page.goto(gateway.origin);
    await page.evaluate(() => import('/player.js'));
    const since = (Date.now() - encoder.frame0) % INTERVAL;
    await sleep((phase - since + INTERVAL) % INTERVAL);
    return await page.evaluate(watch, { stream: STREAM, frame0: encoder.frame0, frames: encoder.frames, fps: FPS, blocks: BLOCKS });
  } finally {
    await page.close();
  }
}

/** In the page, before its scripts: notes when ICE is connected. */
function noteConnection() {
  const Original = RTCPeerConnection;
  globalThis.RTCPeerConnection = class extends Original {
    constructor(...options) {
      super(...options);
      this.addEventListener('iceconnectionstatechange', () => {
        if (this.iceConnectionState === 'connected') globalThis.iceConnected ??= performance.now();
      });
      this.addEventListener('connectionstatechange', () => {
        if (this.connectionState === 'connected') globalThis.dtlsConnected ??= performance.now();
      });
    }
  };
}

/**
 * In the page: watches for three seconds and measures. Each frame is read after its moment was noted; that this takes
 * time from decoding makes the figures worse, not better.
 */
async function watch({ stream, frame0, frames, fps, blocks }) {
  const { x, y, size, bits } = blocks;
  const canvas = new OffscreenCanvas((bits + 1) * 8, 8).getContext('2d', { willReadFrequently: true });
  const player = document.createElement('millstream-player');
  Object.assign(player, { autoplay: true, muted: true, controls: true });
  player.setAttribute('src', `/whep/${stream}`);
  const joined = performance.now();
  document.body.replaceChildren(player);
  const { video } = player;

  /** Delay of the frame that is shown, in milliseconds; undefined where its number cannot be read. */
  const readDelay = () => {
    // One call, lest the bits be those of two frames. The clock is read after it: a page that is held up in between
    // then makes the delay too long, where the other order would read frames from the future.
    canvas.drawImage(video, x, y, (bits + 1) * size, size, 0, 0, (bits + 1) * 8, 8);
    const now = performance.timeOrigin + performance.now();
    const { data, width } = canvas.getImageData(0, 0, (bits + 1) * 8, 8);
    const read = Array.from({ length: bits + 1 }, (_, bit) => Number(data[4 * (4 * width + bit * 8 + 4)] > 128));
    const number = read.slice(0, bits).reduce((sum, bit) => 2 * sum + bit, 0);
    if (read.reduce((sum, bit) => sum ^ bit, 0) || number >= frames) return undefined;
    const round = (frames * 1000) / fps;
    const delay = (now - frame0 - (number * 1000) / fps) % round;
    // Two clocks that disagree must show as such, not as the delay of a whole round.
    return delay > round - 1_000 ? delay - round : delay;
  };
  const shown = [];
  let [unread, inFirstSecond] = [0, 0];
  await new Promise((resolve) => {
    const onFrame = (_, { presentedFrames }) => {
      const now = performance.now();
      const at = now - globalThis.iceConnected;
      const delay = readDelay();
      if (delay === undefined) unread += 1;
      shown.push({ at, delay });
      if (at <= 1_000) inFirstSecond = presentedFrames;
      if (at >= 3_300) resolve();
      else video.requestVideoFrameCallback(onFrame);
    };
    video.requestVideoFrameCallback(onFrame);
    setTimeout(resolve, 8_000);
  });

  const around = (moment, width) => {
    const near = shown.filter(({ at, delay }) => Math.abs(at - moment) < width && delay !== undefined);
    return near.reduce((sum, { delay }) => sum + delay, 0) / near.length;
  };
  const report = [...(await player.client.connection.getStats()).values()];
  const inbound = report.find((s) => s.type === 'inbound-rtp' && s.kind === 'video') ?? {};
  return {
    phase: (performance.timeOrigin + globalThis.iceConnected - frame0) % 10_000,
    dtls: globalThis.dtlsConnected - globalThis.iceConnected,
    ice: globalThis.iceConnected - joined,
    first: shown[0]?.at,
    // Within four frames of the live edge from here on.
    caughtUp: shown.findLast(({ delay }) => delay > 4_000 / fps)?.at ?? 0,
    inFirstSecond,
    longestGap: Math.max(...shown.slice(1).map(({ at }, index) => at - shown[index].at)),
    unread,
    leastDelay: Math.min(...shown.map(({ delay }) => delay ?? Infinity)),
    after1: around(1_000, 150),
    after3: around(3_000, 300),
    decoded: inbound.framesDecoded,
    dropped: inbound.framesDropped,
    keyFrames: inbound.keyFramesDecoded,
    freezes: inbound.freezeCount,
    nacks: inbound.nackCount,
    plis: inbound.pliCount,
    lost: inbound.packetsLost,
    decodeMs: (1000 * inbound.totalDecodeTime) / inbound.framesDecoded,
    buffered: (1000 * inbound.jitterBufferDelay) / inbound.jitterBufferEmittedCount,
    decoder: inbound.decoderImplementation,
  };
}

const rounded = (join) =>
  Object.fromEntries(Object.entries(join).map(([k, v]) => [k, typeof v === 'number' ? Math.round(v * 10) / 10 : v]));
/** What a join did not yield counts as late. */
const median = (joins, name) =>
  joins.map((join) => (Number.isFinite(join[name]) ? join[name] : Infinity)).sort((a, b) => a - b)[joins.length >> 1];

test('a viewer between key frames sees video at once and is no further behind', async (t) => {
  // The first page of a browser pays for what later ones share.
  await join(PHASES[0]);
  const joins = new Map(PHASES.map((phase) => [phase, []]));
  let results;
  // A machine that was busy for longer than a join is given more of them; all of them count.
  for (let n = 1; n <= MOST_JOINS; n += 1) {
    for (const phase of PHASES) {
      const result = await join(phase);
      joins.get(phase).push(result);
      t.diagnostic(JSON.stringify(rounded(result)));
    }
    results = PHASES.map((phase) => {
      const names = ['first', 'after1', 'after3', 'caughtUp', 'inFirstSecond', 'dropped', 'freezes'];
      return { phase, ...Object.fromEntries(names.map((name) => [name, median(joins.get(phase), name)])) };
    });
    const isSettled = n >= JOINS && n % 2 === 1;
    if (isSettled && results.every(({ first, after1 }) => first <= FIRST_FRAME && after1 <= results[0].after1 + TOLERANCE)) break;
  }
  for (const result of results) t.diagnostic(`median ${JSON.stringify(rounded(result))}`);

  const [reference] = results;
  for (const { phase, first, after1 } of results) {
    const viewer = `a viewer who joined ${phase} ms after the key frame`;
    assert.ok(first <= FIRST_FRAME, `${viewer} saw the first frame ${first} ms after ICE connected`);
    assert.ok(
      after1 <= reference.after1 + TOLERANCE,
      `${viewer} was ${after1} ms behind after one second, the one at the key frame ${reference.after1} ms`,
    );
  }
});
