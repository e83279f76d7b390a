// The layout of all pages in the sizes of phones, tablets and screens, light and dark: nothing sticks out, is clipped or lies over
// something else, and axe-core finds nothing. SCREENSHOTS names a folder for pictures of each.

import assert from 'node:assert/strict';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { after, before, test } from 'node:test';
import { violations } from './axe.js';
import { chromium, isLive, open, plays, publish, startGateway, until } from './harness.js';
import { layoutFaults } from './layout.js';

const API_TOKEN = 'api-token-of-the-layout';
const SIZES = [[320, 640], [390, 844], [768, 1024], [1280, 800], [1920, 1080]];
const LONG = 'studio-of-the-second-floor/camera-beside-the-window_with-a-long-name';

/** A camera that cannot be reached, and many that nobody watches. */
const CONFIG = [
  '[streams.broken]\nrtsp = "rtsp://127.0.0.1:9/stream"\n',
  ...Array.from({ length: 200 }, (_, n) => `[streams."door-${String(n).padStart(3, '0')}"]\nrtsp = "rtsp://127.0.0.1:9/${n}"\non_demand = true\n`),
].join('\n');

let browser, sender, gateway, folder;

before(async () => {
  folder = await mkdtemp(path.join(tmpdir(), 'millstream-layout-'));
  const config = path.join(folder, 'millstream.toml');
  await writeFile(config, CONFIG);
  browser = await chromium();
  sender = await chromium();
  const environment = { MILLSTREAM_AUTH__API_TOKEN: API_TOKEN, MILLSTREAM_HTTP__EMBED_ORIGINS: '*' };
  gateway = await startGateway(environment, '--config', config);
  for (const name of ['studio', LONG]) await isLive(await publish(sender, gateway, name));
});

after(async () => {
  await Promise.allSettled([browser?.close(), sender?.close()]);
  await gateway?.stop();
  if (folder) await rm(folder, { recursive: true });
});

const sleep = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

/** Looks at a page in all sizes, light and dark. */
async function checkLayout(page, name) {
  for (const scheme of ['light', 'dark']) {
    await page.emulateMediaFeatures([{ name: 'prefers-color-scheme', value: scheme }]);
    for (const [width, height] of SIZES) {
      await page.setViewport({ width, height });
      await sleep(400);
      if (process.env.SCREENSHOTS) await page.screenshot({ path: `${process.env.SCREENSHOTS}/${name}-${width}-${scheme}.png` });
      assert.deepEqual(await layoutFaults(page), [], `${name}, ${width} px, ${scheme}`);
    }
    assert.deepEqual(await violations(page), [], `${name}, ${scheme}`);
  }
  await page.setViewport({ width: 320, height: 640 });
  assert.deepEqual(await violations(page), [], `${name}, on a phone`);
  assert.deepEqual(page.faults, []);
}

const text = (page) => page.evaluate(() => document.getElementById('streams').innerText);

test('the dashboard with 200 streams, of which one has faults', async (t) => {
  const page = await open(browser, `${gateway.origin}/#token=${API_TOKEN}`);
  t.after(() => page.close());
  await until(() => page.evaluate(() => document.documentElement.dataset.streams), (count) => count === '203', 'all streams');
  await until(() => text(page), (seen) => /^broken\s/.test(seen), 'the stream with faults to be the first', 40_000);
  await until(() => page.evaluate(() => document.querySelectorAll('.thumb:not([hidden])').length), (count) => count === 2, 'the snapshots', 60_000);
  await checkLayout(page, 'dashboard');
  // The width is used.
  await page.setViewport({ width: 1920, height: 1080 });
  const columns = () => page.evaluate(() => new Set([...document.querySelectorAll('.stream')].map((card) => card.offsetLeft)).size);
  await until(columns, (count) => count >= 5, 'five columns');
  // A search leaves what it finds.
  await page.type('#search', 'DOOR-01');
  await until(() => page.evaluate(() => document.querySelectorAll('.stream').length), (count) => count === 10, 'what is found');
});

test('the front page without a token', async (t) => {
  const page = await open(browser, gateway.origin);
  t.after(() => page.close());
  await page.evaluate(() => sessionStorage.clear());
  await page.reload();
  await checkLayout(page, 'front');
});

for (const [title, name] of [['a live stream', 'studio'], ['a stream with a long name', LONG], ['a camera with faults', 'broken']]) {
  test(`the page of ${title}`, async (t) => {
    const page = await open(browser, `${gateway.origin}/streams/${name}#token=${API_TOKEN}`);
    t.after(() => page.close());
    await until(() => page.evaluate(() => !document.getElementById('status').hidden), Boolean, 'the status');
    if (name !== 'broken') await plays(page, 5);
    // The charts have something to show.
    await sleep(4_500);
    await checkLayout(page, `stream-${name.slice(0, 9)}`);
  });
}

for (const [name, url] of [
  ['watch', () => '/watch/studio'], ['publish', () => '/publish/studio'], ['embed', () => '/embed/studio'], ['not-found', () => '/nowhere'],
]) {
  test(`the page ${name}`, async (t) => {
    const page = await open(browser, gateway.origin + url());
    t.after(() => page.close());
    if (name === 'watch' || name === 'embed') await plays(page, 5);
    if (name === 'watch') await page.evaluate(() => document.querySelector('millstream-player').shadowRoot.querySelector('.stats-toggle').click());
    await checkLayout(page, name);
  });
}

test('the documentation', async (t) => {
  const page = await open(browser, `${gateway.origin}/docs/monitoring`);
  t.after(() => page.close());
  await checkLayout(page, 'docs');
  assert.equal(await page.$eval('#contents', ({ open }) => open), false, 'the navigation is folded on a phone');
  await page.setViewport({ width: 1280, height: 800 });
  await page.keyboard.press('/');
  await page.keyboard.type('half-open offers');
  const found = await until(() => page.$$eval('#results a', (links) => links.map(({ href }) => href)), (links) => links.length > 0, 'results');
  assert.equal(new URL(found[0]).pathname + new URL(found[0]).hash, '/docs/configuration#floods-of-offers');
  await Promise.all([page.waitForNavigation(), page.$eval('#results a', (link) => link.click())]);
  await until(() => page.$eval('h1', ({ textContent }) => textContent), (title) => title === 'Configuration', 'the page');
  assert.deepEqual(page.faults, []);
});
