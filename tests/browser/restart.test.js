// A gateway that is killed and started again while fifty players watch: all play again, with nobody touching anything.

import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { chromium, open, PUBLISH_TOKEN, startGateway, until } from './harness.js';

const PLAYERS = 50;
const PAGES = 5;

let browser;

before(async () => {
  browser = await chromium();
});

after(() => browser?.close());

/** Small video, so that fifty decoders are no load to speak of, by the publish page's own client. */
async function publishSmall(gateway) {
  const page = await open(browser, `${gateway.origin}/publish/nothing`);
  await page.evaluate(async (token) => {
    const { WhipClient } = await import('/whip.js');
    const canvas = Object.assign(document.createElement('canvas'), { width: 160, height: 90 });
    const context = canvas.getContext('2d');
    let n = 0;
    setInterval(() => {
      context.fillStyle = `hsl(${(n += 9) % 360} 60% 40%)`;
      context.fillRect(0, 0, 160, 90);
    }, 100);
    window.client = new WhipClient('/whip/small', canvas.captureStream(10), { token, codec: 'VP8' });
    window.client.start();
  }, PUBLISH_TOKEN);
  return page;
}

async function watchMany(gateway) {
  const page = await open(browser, `${gateway.origin}/watch/nothing`);
  await page.evaluate((count) => {
    document.body.replaceChildren(
      ...Array.from({ length: count }, () => {
        const player = document.createElement('millstream-player');
        Object.assign(player, { autoplay: true, muted: true, controls: true });
        player.setAttribute('src', '/whep/small');
        player.style.width = '160px';
        return player;
      }),
    );
  }, PLAYERS / PAGES);
  return page;
}

const states = async (pages) => {
  const all = await Promise.all(pages.map((page) => page.evaluate(() =>
    [...document.querySelectorAll('millstream-player')].map(({ dataset }) => ({
      state: dataset.state, frames: Number(dataset.frames ?? 0), sessions: Number(dataset.sessions ?? 0),
    })))));
  return all.flat();
};

test('fifty players play again after the gateway was killed and started', async (t) => {
  let gateway = await startGateway();
  t.after(() => gateway.stop());
  const publisher = await publishSmall(gateway);
  const pages = [];
  for (let n = 0; n < PAGES; n += 1) pages.push(await watchMany(gateway));
  const playing = (seen) => seen.length === PLAYERS && seen.every(({ state, frames }) => state === 'playing' && frames > 5);
  const summary = async () => states(pages);
  const before = await until(summary, playing, 'all of them to play', 60_000);
  await gateway.stop('SIGKILL');
  await new Promise((resolve) => setTimeout(resolve, 3_000));
  const { http, webrtc } = gateway;
  gateway = await startGateway({ MILLSTREAM_HTTP__LISTEN: http, MILLSTREAM_WEBRTC__LISTEN: webrtc });
  const opened = Date.now();
  const again = (seen) => seen.every(({ state, sessions }, index) => state === 'playing' && sessions > before[index].sessions);
  await until(summary, again, 'all of them to play again', 60_000);
  t.diagnostic(`measured: all ${PLAYERS} play again ${((Date.now() - opened) / 1_000).toFixed(1)} s after the port opened`);
  for (const page of [publisher, ...pages]) assert.deepEqual(page.faults, []);
});
