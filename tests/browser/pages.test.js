// Messages of the pages when something is wrong.

import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { chromium, hostAddress, open, pageData, playerData, portOf, publish, skip, startGateway, until, watch } from './harness.js';

let gateway, browser;

before(async () => {
  gateway = await startGateway({ MILLSTREAM_HTTP__EMBED_ORIGINS: '*' });
  browser = await chromium();
});

after(async () => {
  await browser?.close();
  await gateway?.stop();
});

const problem = (page) => page.$eval('#problem', (box) => (box.hidden ? '' : box.textContent));

async function fails(page, error) {
  const data = await until(() => pageData(page), (seen) => seen.error === error, `the error ${error}`);
  assert.notEqual(data.state, 'live');
  assert.deepEqual(page.faults, []);
}

test('the front page leads to the watch and publish pages of a stream', async (t) => {
  const page = await open(browser, gateway.origin);
  t.after(() => page.close());
  assert.equal(await page.$eval('#server', (code) => code.textContent), `${gateway.origin}/whip/live`);
  await page.$eval('#name', (input) => (input.value = 'hall/stage-1'));
  await Promise.all([page.waitForNavigation(), page.click('button[value=watch]')]);
  assert.equal(new URL(page.url()).pathname, '/watch/hall/stage-1');
  assert.equal(await page.$eval('#name', (heading) => heading.textContent), 'hall/stage-1');
  assert.deepEqual(page.faults, []);
});

test('a wrong token is explained and not tried again', async (t) => {
  const page = await publish(browser, gateway, 'locked', { token: 'wrong' });
  t.after(() => page.close());
  await fails(page, 'http-401');
  assert.equal((await pageData(page)).state, 'failed');
  assert.match(await problem(page), /publish token is missing, wrong or expired/);
});

test('the token leaves the address and stays in the tab', async (t) => {
  const page = await open(browser, `${gateway.origin}/publish/kept#token=abc`);
  t.after(() => page.close());
  assert.equal(new URL(page.url()).hash, '');
  await page.reload();
  assert.equal(await page.$eval('input[name=token]', (input) => input.value), 'abc');
  assert.equal(await page.evaluate(() => localStorage.length), 0);
});

// As when the network changes meanwhile.
for (const path of ['watch', 'embed', 'publish']) {
  test(`a page under /${path} whose script is lost on the way is loaded again`, async (t) => {
    const page = await browser.newPage();
    t.after(() => page.close());
    await page.setRequestInterception(true);
    const asked = [];
    let lost = 0;
    page.on('request', (request) => {
      if (request.isNavigationRequest()) asked.push(performance.now());
      const isModule = new URL(request.url()).pathname.startsWith(`/${path}`) && request.resourceType() === 'script';
      if (isModule && lost < 2) return void (lost += 1, request.abort('internetdisconnected'));
      return void request.continue();
    });
    await page.goto(`${gateway.origin}/${path}/lost`);
    const scripted = () => page.evaluate(() => 'scripted' in document.documentElement.dataset).catch(() => false);
    await until(scripted, Boolean, 'the script to run', 30_000);
    assert.equal(lost, 2);
    assert.equal(asked.length, 3);
    assert.ok(asked[1] - asked[0] >= 700 && asked[2] - asked[1] >= 2_200, `asked for at ${asked}`);
    // Once it runs, nothing is left of it.
    assert.equal(await page.evaluate(() => history.state?.reloads), undefined);
  });
}

test('a page whose script never comes is not loaded without end', async (t) => {
  const page = await browser.newPage();
  t.after(() => page.close());
  await page.setRequestInterception(true);
  let asked = 0;
  page.on('request', (request) => {
    asked += Number(request.isNavigationRequest());
    const isModule = request.resourceType() === 'script' && new URL(request.url()).pathname.startsWith('/watch');
    return void (isModule ? request.abort('internetdisconnected') : request.continue());
  });
  await page.goto(`${gateway.origin}/watch/lost`);
  await page.evaluate(() => history.replaceState({ reloads: 3 }, ''));
  await page.reload();
  const before = asked;
  // Longer than the longest delay.
  await new Promise((resolve) => setTimeout(resolve, 12_000));
  assert.equal(asked, before);
  await page.evaluate(() => void setTimeout(() => dispatchEvent(new Event('online')), 0));
  await until(() => asked, (count) => count === before + 1, 'the page to be loaded again with the network');
});

test('a codec that the browser cannot send is explained and not tried again', async (t) => {
  const page = await publish(browser, gateway, 'codec', { codec: 'THEORA' });
  t.after(() => page.close());
  await fails(page, 'Error');
  assert.equal((await pageData(page)).state, 'failed');
  assert.match(await problem(page), /cannot send THEORA/);
});

test('a missing camera is explained', async (t) => {
  const bare = await chromium({ camera: false });
  t.after(() => bare.close());
  const page = await publish(bare, gateway, 'bare');
  await fails(page, 'NotFoundError');
  assert.match(await problem(page), /The camera or microphone was not found/);
});

/** Whether a row of the player above its texts has one colour; `null` if the screenshot is of nothing. */
async function isPlain(page) {
  const box = await page.$eval('millstream-player', (player) => {
    const { x, y, width, height } = player.getBoundingClientRect();
    return { x, y: y + height * 0.15, width, height: 2 };
  });
  const screenshot = await page.screenshot({ clip: box, encoding: 'base64' });
  return page.evaluate(async (screenshot) => {
    const bytes = Uint8Array.from(atob(screenshot), (letter) => letter.charCodeAt(0));
    const image = await createImageBitmap(new Blob([bytes], { type: 'image/png' }));
    const context = new OffscreenCanvas(image.width, image.height).getContext('2d');
    context.drawImage(image, 0, 0);
    const { data } = context.getImageData(0, 0, image.width, 1);
    return data.every((value, index) => value === data[index % 4]);
  }, screenshot);
}

test('no black square stands behind what the player says', async (t) => {
  const locked = await startGateway({ MILLSTREAM_AUTH__PLAY_TOKEN: 'play-token-of-the-pages' });
  t.after(() => locked.stop());
  for (const [at, state] of [[gateway, 'waiting'], [locked, 'failed']]) {
    const page = await watch(browser, at, 'square');
    t.after(() => page.close());
    await until(() => playerData(page), (data) => data.state === state, `the player to be ${state}`);
    // Chromium draws its placeholder, two black pixels square, some time after the video element has its stream.
    for (let round = 0; round < 15; round += 1) {
      assert.equal(await isPlain(page), true, state);
      await new Promise((resolve) => setTimeout(resolve, 100));
    }
  }
});

test('a media port that is blocked is named, in the player and in the log of the gateway', async (t) => {
  // Nothing listens at the announced address.
  const cut = await startGateway({
    MILLSTREAM_WEBRTC__LISTEN: '127.0.0.1:0',
    MILLSTREAM_WEBRTC__ANNOUNCE: '192.0.2.1',
    MILLSTREAM_AUTH__API_TOKEN: 'api-token-of-the-pages',
  }, '--demo');
  t.after(() => cut.stop());
  const port = portOf(cut.webrtc);
  const page = await open(browser, `${cut.origin}/watch/demo?way=webrtc`);
  t.after(() => page.close());
  const texts = () => page.evaluate(() => {
    const part = (name) => document.querySelector('millstream-player').shadowRoot.querySelector(name);
    return [part('.overlay').classList.contains('shown'), part('.title').textContent, part('.text').textContent];
  });
  const [shown, title, text] = await until(texts, ([, title]) => /port/.test(title), 'the player to name the port', 40_000);
  assert.equal(shown, true);
  assert.equal(title, `No media connection: UDP/TCP port ${port} seems blocked`);
  assert.equal(text, `None of the gateway's addresses could be reached: 192.0.2.1:${port}. This page keeps trying.`);
  if (process.env.SCREENSHOTS) await page.screenshot({ path: `${process.env.SCREENSHOTS}/blocked.png` });

  const headers = { Authorization: 'Bearer api-token-of-the-pages' };
  const sessions = async () => (await (await fetch(`${cut.origin}/api/v1/sessions`, { headers })).json()).sessions;
  const [ended] = (await until(sessions, (all) => all.some(({ state }) => state === 'ended'), 'the session to end'))
    .filter(({ state }) => state === 'ended');
  assert.equal(ended.cause, 'no_checks');
  assert.match(ended.explanation, new RegExp(`announced ICE candidate addresses: 192\\.0\\.2\\.1:${port}`));
  const warned = cut.log.filter((line) => line.includes('"WARN"') && line.includes('session failed'));
  assert.ok(warned.some((line) => line.includes(`192.0.2.1:${port}`) && line.includes('no_checks')), cut.log.join('\n'));
});

test('a refused camera is explained', async (t) => {
  const strict = await chromium({ allow: false });
  t.after(() => strict.close());
  const page = await publish(strict, gateway, 'strict');
  await fails(page, 'NotAllowedError');
  assert.match(await problem(page), /was not allowed/);
});

test('an address that is not secure is explained before anything is asked', async (t) => {
  const address = hostAddress();
  if (!address) return skip(t, 'this host has no address but loopback');
  const wide = await startGateway({ MILLSTREAM_HTTP__LISTEN: '0.0.0.0:0' });
  t.after(() => wide.stop());
  const page = await open(browser, `http://${address}:${portOf(wide.http)}/publish/plain`);
  t.after(() => page.close());
  await until(() => problem(page), (text) => /needs a secure address/.test(text), 'the explanation');
});

test('a watch page that needs a token asks for it', async (t) => {
  const closed = await startGateway({ MILLSTREAM_AUTH__PLAY_TOKEN: 'ticket' });
  t.after(() => closed.stop());
  const page = await watch(browser, closed, 'members');
  t.after(() => page.close());
  const refused = await until(() => playerData(page), (data) => data.state === 'failed', 'the refusal');
  assert.equal(refused.status, '401');
  await page.type('#token', 'ticket');
  await page.click('#token-form button');
  await until(() => playerData(page), (data) => data.state === 'waiting', 'the player to wait');
  assert.equal(await page.$eval('#token-form', (form) => form.hidden), true);
});

/** In the page, before its scripts: how long after the answer to each POST request the next connection is begun. */
function noteWaits() {
  window.waits = [];
  let answered;
  const { fetch, RTCPeerConnection } = window;
  window.fetch = (url, options) => {
    const answer = fetch(url, options);
    const note = () => (answered = performance.now());
    if (options?.method === 'POST') answer.then(note, note);
    return answer;
  };
  window.RTCPeerConnection = class extends RTCPeerConnection {
    constructor(...options) {
      super(...options);
      if (answered !== undefined) window.waits.push(Math.round(performance.now() - answered));
      answered = undefined;
    }
  };
}

/** A page whose POST requests are answered by `answer`, and that notes its waits. */
async function interceptPosts(t, answer) {
  const page = await browser.newPage();
  t.after(() => page.close());
  await page.evaluateOnNewDocument(noteWaits);
  await page.setRequestInterception(true);
  page.on('request', (request) => (request.method() === 'POST' ? answer(request) : request.continue()));
  return page;
}

const waitsOf = (page, count) =>
  until(() => page.evaluate(() => window.waits), ({ length }) => length >= count, `${count + 1} attempts`);

for (const status of [409, 429, 503]) {
  test(`a player that gets ${status} retries after Retry-After`, async (t) => {
    const page = await interceptPosts(t, (request) => request.respond({ status, headers: { 'Retry-After': '1' } }));
    await page.goto(`${gateway.origin}/watch/busy`);
    for (const wait of (await waitsOf(page, 2)).slice(0, 2)) {
      assert.ok(wait >= 1000 && wait < 2000, `came back after ${wait} ms`);
    }
  });
}

test('a player whose gateway is gone backs off', async (t) => {
  const page = await interceptPosts(t, (request) => request.abort('connectionrefused'));
  // The longest wait that full jitter can draw makes the delays certain.
  await page.evaluateOnNewDocument(() => (Math.random = () => 0.999));
  await page.goto(`${gateway.origin}/watch/gone`);
  const waits = await waitsOf(page, 4);
  for (const [i, least] of [299, 479, 767, 1227].entries()) {
    assert.ok(waits[i] >= least && waits[i] < least + 600, `waited ${waits} ms`);
  }
  assert.equal((await playerData(page)).state, 'retrying');
});
