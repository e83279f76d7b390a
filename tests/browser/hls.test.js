// LL-HLS: what hls.js, ffprobe and ffmpeg make of it, and the player that changes to it and back.

import assert from 'node:assert/strict';
import { execFile, spawn } from 'node:child_process';
import { createSocket } from 'node:dgram';
import { once } from 'node:events';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { createInterface } from 'node:readline';
import { before, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { chromium, isLive, open, playerData, portOf, publish, unmute, startGateway, until } from './harness.js';

const SERVER = fileURLToPath(new URL('../sources/rtsp/server.py', import.meta.url));
const run = promisify(execFile);
const API_TOKEN = 'api-token-of-the-hls-tests';

let browser;
before(async () => {
  browser = await chromium();
});
test.after(() => browser?.close());

const watchByHls = (gateway, stream) => open(browser, `${gateway.origin}/watch/${stream}?way=hls`);

/** Waits until HLS has shown so many more frames and is no further behind than it may be. */
async function playsByHls(page, t, { frames = 40, delay = 2 } = {}) {
  const start = await until(() => playerData(page), (data) => data.way === 'hls' && Number(data.frames) > 0, 'a frame');
  const wanted = Number(start.frames) + frames;
  const settled = (data) => Number(data.frames) >= wanted && Number(data.delay) > 0 && Number(data.delay) <= delay;
  const data = await until(() => playerData(page), settled, `${frames} more frames, at most ${delay} s behind`);
  t.diagnostic(`${data.codec}, ${data.delay} s behind`);
  return data;
}

const hasSound = (page) =>
  until(
    () => page.evaluate(() => document.querySelector('millstream-player').video.webkitAudioDecodedByteCount),
    (bytes) => bytes > 2_000,
    'audio',
  );

const CODECS = { H264: /^avc1/, VP9: /^vp09/, AV1: /^av01/ };

for (const codec of Object.keys(CODECS)) {
  test(`chromium plays what another one publishes as ${codec} by HLS`, async (t) => {
    const gateway = await startGateway();
    t.after(() => gateway.stop());
    const publisher = await publish(browser, gateway, 'live', { codec });
    t.after(() => publisher.close());
    await isLive(publisher);
    const page = await watchByHls(gateway, 'live');
    t.after(() => page.close());
    const data = await playsByHls(page, t);
    assert.match(data.codec, CODECS[codec]);
    await unmute(page);
    await hasSound(page);
    assert.deepEqual(page.faults, []);
  });
}

for (const media of ['h264+aac', 'h264+opus', 'mjpeg+pcma']) {
  test(`chromium plays a camera with ${media} by HLS`, async (t) => {
    const camera = spawn('/usr/bin/python3', [SERVER, '0', media], { stdio: ['ignore', 'pipe', 'inherit'] });
    t.after(() => camera.kill());
    const [port] = await once(createInterface({ input: camera.stdout }), 'line');
    const folder = await mkdtemp(path.join(tmpdir(), 'millstream-hls-'));
    t.after(() => rm(folder, { recursive: true }));
    const file = path.join(folder, 'millstream.toml');
    await writeFile(file, `[streams."door"]\nrtsp = "rtsp://127.0.0.1:${port}/cam"\non_demand = true\n`);
    const gateway = await startGateway({ MILLSTREAM_CONFIG: file });
    t.after(() => gateway.stop());
    const page = await watchByHls(gateway, 'door');
    t.after(() => page.close());
    await playsByHls(page, t, { frames: 20 });
    await unmute(page);
    await hasSound(page);
  });
}

test('ffprobe finds nothing to warn of, and ffmpeg plays it as plain HLS', async (t) => {
  const gateway = await startGateway({ MILLSTREAM_AUTH__API_TOKEN: API_TOKEN }, '--demo');
  t.after(() => gateway.stop());
  const url = `${gateway.origin}/hls/demo/index.m3u8`;
  await fetch(url);
  // The AAC is made when somebody asks for it. ffmpeg reads the initialization section again with each reload and warns
  // of what it has already, so there have to be segments enough of everything to do without.
  await fetch(`${gateway.origin}/hls/demo/aac.m3u8`);
  // What is encoded has fewer frames on a busy machine.
  let rate = Infinity;
  const measure = async () => {
    const { video } = await (await fetch(`${gateway.origin}/api/v1/streams/demo`, { headers: { Authorization: `Bearer ${API_TOKEN}` } })).json();
    rate = Math.min(rate, video.frame_rate);
  };
  for (let second = 0; second < 9; second += 1) {
    await new Promise((resolve) => setTimeout(resolve, 1_000));
    if (second > 2) await measure();
  }
  const probe = await run('ffprobe', ['-v', 'warning', '-show_streams', '-of', 'json', url], { timeout: 60_000 });
  assert.equal(probe.stderr, '');
  const codecs = JSON.parse(probe.stdout).streams.map((stream) => stream.codec_name).sort();
  // The video with either audio rendition.
  assert.deepEqual(codecs, ['aac', 'h264', 'h264', 'opus']);
  const arguments_ = ['-v', 'warning', '-i', url, '-t', '5', '-f', 'null', '-stats', '-'];
  const { stderr } = await run('ffmpeg', arguments_, { timeout: 60_000 });
  const [frames] = [...stderr.matchAll(/frame=\s*(\d+)/g)].map(([, count]) => Number(count)).slice(-1);
  await measure();
  t.diagnostic(`${frames} frames in 5 s, of a stream of at least ${rate} per second`);
  // 140 of 150.
  assert.ok(rate > 0 && frames >= (140 / 30) * Math.min(rate, 30), stderr);
});

test('audio is AAC too for players that take nothing else, while one of them plays', async (t) => {
  const gateway = await startGateway({}, '--demo');
  t.after(() => gateway.stop());
  const url = `${gateway.origin}/hls/demo/index.m3u8`;
  const transcodings = () => gateway.log.filter((line) => line.includes('"transcoding started"')).length;
  const page = await watchByHls(gateway, 'demo');
  t.after(() => page.close());
  await playsByHls(page, t);
  assert.equal(transcodings(), 0, 'Chromium takes Opus');
  const index = await (await fetch(url)).text();
  const versions = index.split('\n').filter((line) => line.startsWith('#EXT-X-STREAM-INF'));
  assert.deepEqual(
    versions.map((line) => /CODECS="avc1\.[0-9a-f]{6},(\S+?)"/.exec(line)[1]),
    ['opus', 'mp4a.40.2'],
  );
  const probe = await run(
    'ffprobe',
    ['-v', 'warning', '-show_streams', '-of', 'json', `${gateway.origin}/hls/demo/aac.m3u8`],
    { timeout: 60_000 },
  );
  assert.equal(probe.stderr, '');
  const [audio] = JSON.parse(probe.stdout).streams;
  assert.deepEqual([audio.codec_name, audio.sample_rate, audio.channels], ['aac', '48000', 2]);
  assert.equal(transcodings(), 1);
  // The beep of every second stands at the same time in both.
  const beep = async (program) => {
    const detected = await run(
      'ffmpeg',
      ['-copyts', '-i', url, '-map', `0:p:${program}:a`, '-frames:a', '200', '-af', 'silencedetect=n=-40dB:d=0.3', '-f', 'null', '-'],
      { timeout: 60_000 },
    );
    const ends = [...detected.stderr.matchAll(/silence_end: ([\d.]+)/g)].map(([, seconds]) => Number(seconds));
    // What is silent at the end "ends" there too: the beeps are those before.
    assert.ok(ends.length >= 3, detected.stderr);
    return ends.at(-2) % 1;
  };
  const [opus, aac] = [await beep(0), await beep(1)];
  const apart = Math.min(Math.abs(opus - aac), 1 - Math.abs(opus - aac));
  assert.ok(apart < 0.06, `${apart} s apart`);
  t.diagnostic(`Opus and AAC are ${(apart * 1_000).toFixed(0)} ms apart`);
});

test('a play token opens HLS by header and by query, and goes with every address', async (t) => {
  const gateway = await startGateway({ MILLSTREAM_AUTH__PLAY_TOKEN: 'to-watch' }, '--demo');
  t.after(() => gateway.stop());
  const url = `${gateway.origin}/hls/demo/index.m3u8`;
  assert.equal((await fetch(url)).status, 401);
  assert.equal((await fetch(url, { headers: { Authorization: 'Bearer to-watch' } })).status, 200);
  const index = await fetch(`${url}?token=to-watch`);
  const text = await index.text();
  assert.match(index.headers.get('cache-control'), /private/);
  const [, media] = /^(video\.m3u8\S*)$/m.exec(text);
  const playlist = await (await fetch(new URL(media, url))).text();
  const [, part] = /URI="(video-\d+\.\d+\.m4s[^"]*)",INDEPENDENT/.exec(playlist);
  assert.equal((await fetch(new URL(part, url))).status, 200);
  assert.equal((await fetch(new URL(part.split('?')[0], url))).status, 401);
});

test('a player that is to go by HLS says so when there is nothing, and begins by itself', async (t) => {
  const gateway = await startGateway();
  t.after(() => gateway.stop());
  const page = await watchByHls(gateway, 'live');
  t.after(() => page.close());
  await until(() => playerData(page), (data) => data.state === 'waiting', 'the player to wait');
  const publisher = await publish(browser, gateway, 'live', { codec: 'H264' });
  t.after(() => publisher.close());
  await isLive(publisher);
  // Chromium begins nothing in a tab that nobody sees.
  await page.bringToFront();
  await playsByHls(page, t);
});

test('absurd requests are refused or bounded', async (t) => {
  const gateway = await startGateway({}, '--demo');
  t.after(() => gateway.stop());
  const get = async (name) => (await fetch(`${gateway.origin}/hls/demo/${name}`)).status;
  assert.equal(await get('index.m3u8'), 200);
  for (const [name, status] of [
    ['video.m3u8?_HLS_msn=99999999999', 400],
    ['video.m3u8?_HLS_msn=18446744073709551616', 400],
    ['video.m3u8?_HLS_msn=-1', 400],
    ['video.m3u8?_HLS_part=3', 400],
    ['video.m3u8?_HLS_skip=no', 400],
    ['video.m3u8?_HLS_msn=0&_HLS_part=9999', 200],
    ['video-999999.m4s', 404],
    ['video-0.999999.m4s', 404],
    ['aac-1.m4s', 404],
    ['video-init-99.mp4', 404],
    ['..%2f..%2fetc%2fpasswd', 404],
    ['video.m3u', 404],
  ]) {
    assert.equal(await get(name), status, name);
  }
  assert.equal((await fetch(`${gateway.origin}/hls/nothing/index.m3u8`)).status, 404);
  assert.equal((await fetch(`${gateway.origin}/hls/demo/index.m3u8`, { method: 'POST' })).status, 405);
});

/** A way for UDP to the gateway that can be closed and opened. */
async function gate(port) {
  const outer = createSocket('udp4');
  const inner = new Map();
  let isOpen = false;
  outer.on('message', (message, from) => {
    if (!isOpen) return;
    const key = `${from.address}:${from.port}`;
    let socket = inner.get(key);
    if (!socket) {
      socket = createSocket('udp4');
      inner.set(key, socket);
      socket.on('message', (answer) => isOpen && outer.send(answer, from.port, from.address));
    }
    socket.send(message, port, '127.0.0.1');
  });
  outer.bind(port, '127.0.0.2');
  await once(outer, 'listening');
  return {
    set(state) {
      isOpen = state;
    },
    close() {
      for (const socket of inner.values()) socket.close();
      outer.close();
    },
  };
}

test('the player shows HLS while WebRTC does not get through, and returns to WebRTC', async (t) => {
  const media = { MILLSTREAM_WEBRTC__LISTEN: '127.0.0.1:0', MILLSTREAM_WEBRTC__ANNOUNCE: '127.0.0.2' };
  const gateway = await startGateway(media, '--demo');
  t.after(() => gateway.stop());
  const way = await gate(portOf(gateway.webrtc));
  t.after(() => way.close());
  const began = Date.now();
  const page = await open(browser, `${gateway.origin}/watch/demo`);
  t.after(() => page.close());
  await until(() => playerData(page), (data) => data.way === 'hls' && Number(data.frames) > 0, 'a frame by HLS');
  t.diagnostic(`by HLS after ${Date.now() - began} ms`);
  assert.equal((await playerData(page)).why, 'connection');
  await until(() => playerData(page), (data) => Number(data.frames) > 60, 'HLS to play', 60_000);

  way.set(true);
  const opened = Date.now();
  const back = (data) => data.way === 'webrtc' && data.state === 'playing' && Number(data.frames) > 10;
  await until(() => playerData(page), back, 'WebRTC', 30_000);
  t.diagnostic(`by WebRTC ${Date.now() - opened} ms after the way was opened`);

  // And the other way round, while it plays.
  way.set(false);
  const closed = Date.now();
  await until(() => playerData(page), (data) => data.way === 'hls' && data.state === 'playing', 'HLS again', 30_000);
  t.diagnostic(`by HLS ${Date.now() - closed} ms after the way was closed`);
  assert.deepEqual(page.faults, []);
});
