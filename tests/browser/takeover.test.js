// Two publishers of one stream: the second takes over, the first stops and says so, and neither comes back by itself.

import assert from 'node:assert/strict';
import { createSocket } from 'node:dgram';
import { once } from 'node:events';
import { after, before, test } from 'node:test';
import {
  chromium, isLive, open, pageData, plays, portOf, publish, PUBLISH_TOKEN, startGateway, until, watch,
} from './harness.js';

const API_TOKEN = 'api-token-of-the-takeovers';
const API = { Authorization: `Bearer ${API_TOKEN}` };

let browser;

before(async () => {
  browser = await chromium();
});

after(() => browser?.close());

const sleep = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

/** How often the gateway has ended a publisher because another one took over. */
async function takeovers(gateway) {
  const text = await (await fetch(`${gateway.origin}/metrics`, { headers: API })).text();
  return Number(/^millstream_sessions_closed_total\{reason="taken_over"\} (\d+)/m.exec(text)?.[1] ?? 0);
}

const problem = (page) =>
  page.$eval('#problem', (box) => ({ hidden: box.hidden, text: box.querySelector('strong').textContent, back: !box.querySelector('button').hidden }));

/** Waits until a page says that another publisher took over. */
async function stops(page) {
  await until(() => pageData(page), ({ state, error }) => state === 'failed' && error === 'TakenOver', 'the page to stop');
  assert.deepEqual(await problem(page), { hidden: false, text: 'Another publisher took over the stream', back: true });
}

test('of two publish pages under one name the second publishes, until the first takes back', async (t) => {
  const gateway = await startGateway({ MILLSTREAM_AUTH__API_TOKEN: API_TOKEN });
  t.after(() => gateway.stop());
  const first = await publish(browser, gateway, 'stage');
  t.after(() => first.close());
  await isLive(first);
  const viewer = await watch(browser, gateway, 'stage');
  t.after(() => viewer.close());
  await plays(viewer);
  const second = await publish(browser, gateway, 'stage');
  t.after(() => second.close());
  await isLive(second);
  await stops(first);
  // Each came back by itself and took over from the other, sixteen times in twenty seconds.
  await sleep(20_000);
  assert.equal(await takeovers(gateway), 1);
  assert.equal((await pageData(first)).state, 'failed');
  assert.equal((await pageData(second)).state, 'live');
  await plays(viewer);
  if (process.env.SCREENSHOTS) await first.screenshot({ path: `${process.env.SCREENSHOTS}/taken-over.png`, fullPage: true });

  await first.bringToFront();
  await first.click('#take-back');
  await isLive(first);
  await stops(second);
  await sleep(5_000);
  assert.equal(await takeovers(gateway), 2);
  assert.equal((await pageData(first)).state, 'live');
  assert.equal((await pageData(second)).state, 'failed');
  assert.deepEqual(await first.$eval('#problem', ({ hidden }) => hidden), true, 'it says nothing of it any more');
  await plays(viewer);
  assert.deepEqual([...first.faults, ...second.faults, ...viewer.faults], []);
});

test('a publisher that was taken over while it had no network does not take back when it has', async (t) => {
  const gateway = await startGateway({ MILLSTREAM_AUTH__API_TOKEN: API_TOKEN });
  t.after(() => gateway.stop());
  const first = await publish(browser, gateway, 'stage');
  t.after(() => first.close());
  await isLive(first);
  await first.setOfflineMode(true);
  const second = await publish(browser, gateway, 'stage');
  t.after(() => second.close());
  await isLive(second);
  await until(() => pageData(first), ({ state }) => state === 'retrying', 'the first to lose its session');
  await first.setOfflineMode(false);
  await stops(first);
  await sleep(3_000);
  assert.equal(await takeovers(gateway), 1);
  assert.equal((await pageData(second)).state, 'live');
});

test('a publisher comes back by itself when its session ends for any other reason', async (t) => {
  const gateway = await startGateway({ MILLSTREAM_AUTH__API_TOKEN: API_TOKEN });
  t.after(() => gateway.stop());
  const page = await publish(browser, gateway, 'stage');
  t.after(() => page.close());
  await isLive(page);
  const { sessions } = await (await fetch(`${gateway.origin}/api/v1/sessions`, { headers: API })).json();
  await fetch(`${gateway.origin}/api/v1/sessions/${sessions[0].id}`, { method: 'DELETE', headers: API });
  await until(() => pageData(page), ({ sessions, state }) => sessions === '2' && state === 'live', 'another session');
});

/** A way for UDP to the gateway that can be closed and opened. */
async function relay(port) {
  const outer = createSocket('udp4');
  const inner = new Map();
  const way = {
    isOpen: true,
    close() {
      for (const socket of inner.values()) socket.close();
      outer.close();
    },
  };
  outer.on('message', (message, from) => {
    if (!way.isOpen) return;
    const key = `${from.address}:${from.port}`;
    let socket = inner.get(key);
    if (!socket) {
      socket = createSocket('udp4');
      inner.set(key, socket);
      socket.on('message', (answer) => way.isOpen && outer.send(answer, from.port, from.address));
    }
    socket.send(message, port, '127.0.0.1');
  });
  outer.bind(port, '127.0.0.2');
  await once(outer, 'listening');
  return way;
}

// Its DELETE is lost: the old session lives on until the new one takes the stream over.
test('a publisher that loses its network takes over from its own old session and goes on', async (t) => {
  const gateway = await startGateway({
    MILLSTREAM_AUTH__API_TOKEN: API_TOKEN,
    MILLSTREAM_WEBRTC__LISTEN: '127.0.0.1:0',
    MILLSTREAM_WEBRTC__ANNOUNCE: '127.0.0.2',
    MILLSTREAM_WEBRTC__TCP: 'false',
  });
  t.after(() => gateway.stop());
  const way = await relay(portOf(gateway.webrtc));
  t.after(() => way.close());
  const page = await open(browser, `${gateway.origin}/watch/nothing`);
  t.after(() => page.close());
  await page.goto(`${gateway.origin}/publish/stage?auto=camera&height=480&codec=VP8#token=${PUBLISH_TOKEN}`);
  // Whoever sent the link could watch: it does not go live by itself, also not after a reload.
  await until(() => pageData(page), ({ error }) => error === 'unconfirmed', 'the page to ask');
  await page.reload();
  await until(() => pageData(page), ({ error }) => error === 'unconfirmed', 'the page to ask again');
  assert.equal((await pageData(page)).state, 'idle');
  await page.click('#go');
  await isLive(page);
  await page.setRequestInterception(true);
  page.on('request', (request) => (request.method() === 'DELETE' ? request.abort() : request.continue()));
  way.isOpen = false;
  // It may be connecting again by the time that its state is read.
  const isLost = ({ state, error }) => state === 'retrying' || (state === 'connecting' && error !== undefined);
  await until(() => pageData(page), isLost, 'the page to lose its session');
  way.isOpen = true;
  await until(() => pageData(page), ({ state, sessions }) => state === 'live' && Number(sessions) > 1, 'another session', 40_000);
  await until(() => takeovers(gateway), (count) => count === 1, 'the old session to be taken over');
  const before = await pageData(page);
  await sleep(5_000);
  const after = await pageData(page);
  assert.deepEqual([after.state, after.sessions, after.error], ['live', before.sessions, undefined]);
  assert.ok(Number(after.frames) > Number(before.frames));
});
