// A viewer in a network of its own behind a token bucket: its layer follows what the path carries.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import {
  addNamespace,
  chromium,
  chromiumInNamespace,
  open,
  portOf,
  publishSimulcast,
  run,
  skip,
  startGateway,
  undoing,
  until,
  watchSimulcast,
} from './harness.js';

const NAME = `mq${process.pid}`;
const [GATEWAY, VIEWER] = ['10.213.8.1', '10.213.8.2'];
const API_TOKEN = 'api-token-of-the-quality';
const CODEC = process.env.QUALITY_CODEC ?? 'VP8';

/** Sets the rate towards the viewer, with 300 ms of queue. */
const limit = (rate) =>
  run('tc', 'qdisc', 'replace', 'dev', `${NAME}a`, 'root', 'tbf', 'rate', rate, 'burst', '3kb', 'latency', '300ms');

/** Publishes moving boxes in three layers. */
async function publish(browser, origin) {
  const page = await open(browser, `${origin}/publish/nothing`);
  await page.evaluate(() => {
    const [width, height] = [960, 540];
    window.canvas = Object.assign(document.createElement('canvas'), { width, height });
    const context = window.canvas.getContext('2d');
    let n = 0;
    setInterval(() => {
      n += 1;
      context.fillStyle = `hsl(${n % 360} 60% 40%)`;
      context.fillRect(0, 0, width, height);
      for (let box = 0; box < 60; box += 1) {
        context.fillStyle = `hsl(${(n * 7 + box * 31) % 360} 80% 50%)`;
        context.fillRect((n * (3 + (box % 7)) + box * 97) % width, (box * 53 + n * (box % 5)) % height, 70, 50);
      }
    }, 50);
  });
  await publishSimulcast(page, { fps: 20, codec: CODEC });
  return page;
}

async function watch(browser, origin) {
  const page = await open(browser, `${origin}/watch/nothing`);
  await watchSimulcast(page);
  return page;
}

/** What the viewer shows, and how long it was frozen so far. */
const shown = (page) =>
  page.evaluate(async () => {
    const report = [...(await window.pc.getStats()).values()];
    const video = report.find(({ type, kind }) => type === 'inbound-rtp' && kind === 'video') ?? {};
    const { frameWidth = 0, framesDecoded = 0, freezeCount = 0, totalFreezesDuration = 0 } = video;
    return { width: frameWidth, frames: framesDecoded, freezes: freezeCount, frozen: totalFreezesDuration };
  });

test('the layer of Chromium follows a path of 5, 0.8 and 5 Mbit/s', async (t) => {
  const undo = undoing(t);
  addNamespace(undo, NAME, GATEWAY, VIEWER);
  try {
    limit('5mbit');
  } catch (error) {
    return skip(t, `this kernel has no token bucket filter: ${error.stderr}`);
  }
  const gateway = await startGateway({
    MILLSTREAM_HTTP__LISTEN: `${GATEWAY}:0`,
    MILLSTREAM_WEBRTC__LISTEN: `${GATEWAY}:0`,
    MILLSTREAM_WEBRTC__TCP: 'false',
    MILLSTREAM_AUTH__API_TOKEN: API_TOKEN,
  });
  undo(() => gateway.stop());
  const near = await chromium();
  undo(() => near.close());
  const far = await chromiumInNamespace(undo, NAME);
  const origin = `http://${GATEWAY}:${portOf(gateway.http)}`;

  const api = async (what) => {
    const answer = await fetch(`${origin}/api/v1/${what}`, { headers: { Authorization: `Bearer ${API_TOKEN}` } });
    return answer.json();
  };
  const publisher = await publish(near, origin);
  const layers = async () => (await api('streams/simulcast')).layers ?? [];
  await until(layers, (all) => all.filter(({ active }) => active).length === 3, 'three layers', 60_000);

  const began = Date.now();
  const viewer = await watch(far, origin);
  const quality = async () => (await api('sessions')).sessions.find(({ role }) => role === 'viewer')?.quality;
  const measured = [];
  /** Waits until the viewer shows a layer of this width; notes what it shows until then. */
  const shows = (width, what, timeout) =>
    until(
      async () => {
        const now = { at: Date.now() - began, ...(await shown(viewer)), ...(await quality()) };
        measured.push(now);
        return now;
      },
      (now) => width(now.width),
      what,
      timeout,
    );
  const top = await shows((width) => width === 960, 'the best layer', 30_000);
  t.diagnostic(`best layer after ${top.at} ms`);
  await new Promise((resolve) => setTimeout(resolve, 5_000));

  const before = await shown(viewer);
  limit('800kbit');
  const dropped = Date.now() - began;
  const lower = await shows((width) => width > 0 && width < 960, 'a lower layer', 20_000);
  await new Promise((resolve) => setTimeout(resolve, 8_000));
  const settled = await shown(viewer);
  t.diagnostic(`lower layer after ${lower.at - dropped} ms: ${JSON.stringify(await quality())}`);
  t.diagnostic(`${settled.freezes - before.freezes} freezes, ${((settled.frozen - before.frozen) * 1_000).toFixed(0)} ms`);
  assert.ok(settled.frames > before.frames + 60, 'frames go on');
  assert.ok(settled.width < 960);

  limit('5mbit');
  const back = Date.now() - began;
  const again = await shows((width) => width === 960, 'the best layer again', 40_000);
  t.diagnostic(`best layer again after ${again.at - back} ms: ${JSON.stringify(await quality())}`);
  t.diagnostic(`layers of the publisher: ${JSON.stringify(await layers())}`);
  const steps = measured.filter(({ width }, index) => index === 0 || width !== measured[index - 1].width);
  for (const step of steps) t.diagnostic(JSON.stringify(step));
  assert.deepEqual(publisher.faults, []);
  assert.deepEqual(viewer.faults, []);
});
