// The page of one stream, and how the dashboard is updated in place.

import assert from 'node:assert/strict';
import { createRequire } from 'node:module';
import { after, before, test } from 'node:test';
import { chromium, isLive, open, plays, press, publish, startGateway, until, watch } from './harness.js';

const API_TOKEN = 'api-token-of-the-streams';
const JSQR = createRequire(import.meta.url).resolve('jsqr');

let browser, sender, gateway;

before(async () => {
  browser = await chromium();
  sender = await chromium();
  gateway = await startGateway({ MILLSTREAM_AUTH__API_TOKEN: API_TOKEN }, '--demo');
  await isLive(await publish(sender, gateway, 'hall/stage-1'));
});

after(async () => {
  await Promise.allSettled([browser?.close(), sender?.close()]);
  await gateway?.stop();
});

const openStream = (name) => open(browser, `${gateway.origin}/streams/${name}#token=${API_TOKEN}`);
const textOf = (page, selector) => page.$eval(selector, (element) => element.innerText);

/** What is read from the QR code on the page. */
async function scanned(page) {
  const { default: jsqr } = await import(JSQR);
  const image = await (await page.$('#qr svg')).screenshot({ encoding: 'base64' });
  const { data, width, height } = await page.evaluate(async (image) => {
    const bytes = Uint8Array.from(atob(image), (letter) => letter.charCodeAt(0));
    const bitmap = await createImageBitmap(new Blob([bytes], { type: 'image/png' }));
    const context = new OffscreenCanvas(bitmap.width, bitmap.height).getContext('2d');
    context.drawImage(bitmap, 0, 0);
    return { data: [...context.getImageData(0, 0, bitmap.width, bitmap.height).data], width: bitmap.width, height: bitmap.height };
  }, image);
  return jsqr(Uint8ClampedArray.from(data), width, height)?.data;
}

test('the page of a stream shows video, figures, sessions and events', async (t) => {
  const viewer = await watch(browser, gateway, 'hall/stage-1');
  const page = await openStream('hall/stage-1');
  t.after(() => page.close());
  assert.equal(new URL(page.url()).hash, '', 'the token leaves the address');
  await plays(page, 5);
  await until(() => textOf(page, '#status'), (seen) => /live/.test(seen) && /VP8/.test(seen) && /via WHIP/.test(seen), 'the facts');
  await until(() => textOf(page, '#charts'), (seen) => /Bitrate\s+[\d.]+ [kM]bit\/s/.test(seen) && /Viewers\s+2/.test(seen) && /Round-trip time, worst viewer\s+\d+ ms/.test(seen), 'the figures');
  await until(() => page.$$eval('#charts path', (paths) => paths[0].getAttribute('d')), (line) => /^M[\d. ]+L/.test(line), 'a line');
  await until(() => textOf(page, '#sessions'), (seen) => /publisher/.test(seen) && (seen.match(/viewer/g) ?? []).length === 2, 'the sessions');
  await until(() => textOf(page, '#events'), (seen) => /stream live, via WHIP/.test(seen) && /viewer \w+ connected/.test(seen), 'the events');
  // A viewer who leaves is an event, without a wait for the next update.
  await viewer.close({ runBeforeUnload: true });
  await until(() => textOf(page, '#events'), (seen) => /viewer \w+ ended/.test(seen), 'the end of the viewer');
  await until(() => textOf(page, '#charts'), (seen) => /Viewers\s+1\b/.test(seen), 'one viewer less');
  assert.deepEqual(page.faults, []);
});

test('a stream is shared by link, QR code and code for other pages', async (t) => {
  const page = await openStream('hall/stage-1');
  t.after(() => page.close());
  await page.setViewport({ width: 1280, height: 1600 });
  const link = `${gateway.origin}/watch/hall/stage-1`;
  assert.equal(await page.$eval('#watch-link', ({ href }) => href), link);
  assert.equal(await scanned(page), link);
  await page.type('#share-token', 'a b');
  assert.equal(await page.$eval('#watch-link', ({ href }) => href), `${link}#token=a%20b`);
  assert.equal(await scanned(page), `${link}#token=a%20b`);
  assert.match(await textOf(page, '#embed-code'), /<millstream-player src="http:\/\/localhost:\d+\/whep\/hall\/stage-1" autoplay muted controls>/);
  assert.equal(await textOf(page, '#server'), `${gateway.origin}/whip/hall/stage-1`);
});

test('a source is stopped and started on its page, and has nothing to publish', async (t) => {
  const page = await openStream('demo');
  t.after(() => page.close());
  await until(() => textOf(page, '#source'), (seen) => /PIPELINE/.test(seen) && /live for/.test(seen), 'the source', 60_000);
  assert.equal(await page.$eval('#obs-card', (card) => card.checkVisibility()), false);
  await press(page, '#source-switch');
  await until(() => textOf(page, '#source'), (seen) => /stopped/.test(seen), 'the source to stop');
  await press(page, '#source-switch');
  await until(() => textOf(page, '#source'), (seen) => /live for/.test(seen), 'the source to start', 60_000);
});

test('the page asks for the token, and shows what needs none', async (t) => {
  const page = await open(browser, `${gateway.origin}/watch/x`);
  t.after(() => page.close());
  await page.evaluate(() => sessionStorage.clear());
  await page.goto(`${gateway.origin}/streams/hall/stage-1`);
  await plays(page, 5);
  assert.equal(await page.$eval('#status', ({ hidden }) => hidden), true);
  await page.type('#api-token', 'wrong');
  await page.click('#board-token button');
  await until(() => textOf(page, '#board-note'), (note) => /does not permit/.test(note), 'the refusal');
  await page.$eval('#api-token', (input) => (input.value = ''));
  await page.type('#api-token', API_TOKEN);
  await page.click('#board-token button');
  await until(() => page.$eval('#status', ({ hidden }) => hidden), (hidden) => !hidden, 'the status');
  // Only this tab has it.
  assert.equal(await page.evaluate(() => localStorage.length + document.cookie.length), 0);
});

test('the dashboard is updated in place: focus, selection and order stay', async (t) => {
  const page = await open(browser, `${gateway.origin}/#token=${API_TOKEN}`);
  t.after(() => page.close());
  const card = '[aria-label="hall/stage-1"]';
  await page.waitForSelector(card);
  await page.evaluate((card) => {
    const node = document.querySelector(card);
    window.first = node;
    node.querySelector('a.button').focus();
    getSelection().selectAllChildren(node.querySelector('h3 a'));
    window.updates = 0;
    new MutationObserver(() => (window.updates += 1)).observe(node, { subtree: true, characterData: true, childList: true, attributes: true });
  }, card);
  await until(() => page.evaluate(() => window.updates), (count) => count >= 3, 'updates');
  // Another stream comes, and moves nothing that is there already.
  const publisher = await publish(sender, gateway, 'another');
  await until(() => textOf(page, '#streams'), (seen) => /another/.test(seen), 'the other stream');
  const [isSame, focused, selected] = await page.evaluate((card) =>
    [window.first === document.querySelector(card), document.activeElement.textContent, String(getSelection())], card);
  assert.deepEqual([isSame, focused, selected], [true, 'Watch', 'hall/stage-1']);
  await publisher.close({ runBeforeUnload: true });
  assert.deepEqual(page.faults, []);
});
