// The player element as a media element: properties, methods, events, keys, captions, the copied statistics.

import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import path from 'node:path';
import { after, before, test } from 'node:test';
import { chromium, firefox, isLive, open, playerData, plays, PROJECT, publish, startGateway, until } from './harness.js';

// Pages in the background are slowed down, so the publisher has a browser of its own.
let gateway, sender, browser, fox;

before(async () => {
  gateway = await startGateway({ MILLSTREAM_HTTP__EMBED_ORIGINS: '*' });
  sender = await chromium();
  browser = await chromium();
  fox = await firefox();
  await isLive(await publish(sender, gateway, 'element'));
});

after(async () => {
  await Promise.allSettled([sender?.close(), browser?.close(), fox?.close()]);
  await gateway?.stop();
});

/** A page with an element of these attributes, whose events are collected in `window.events`. */
async function place(browser, attributes, { origin } = gateway) {
  const page = await open(browser, `${origin}/no-such-page`);
  await page.evaluate(async (attributes) => {
    await import('/player.js');
    const player = document.createElement('millstream-player');
    window.events = [];
    const media = [
      'abort', 'canplay', 'canplaythrough', 'durationchange', 'emptied', 'loadeddata', 'loadedmetadata', 'loadstart', 'pause', 'play',
      'playing', 'progress', 'ratechange', 'resize', 'stalled', 'suspend', 'timeupdate', 'volumechange', 'waiting',
    ];
    for (const name of [...media, 'error', 'ended', 'statechange']) {
      player.addEventListener(name, () => window.events.push(name));
    }
    for (const [name, value] of Object.entries(attributes)) player.setAttribute(name, value);
    document.body.replaceChildren(player);
    window.player = player;
  }, attributes);
  return page;
}

const SOURCE = { src: '/whep/element' };
const events = (page) => page.evaluate(() => window.events);

/** What a `<video>` has and the element has not, but for what makes no sense with a source that is an endpoint. */
const missing = (page) =>
  page.evaluate(() => {
    const without = new Set([
      // Attributes without a meaning for a live stream.
      'loop', 'preload', 'loading', 'crossOrigin', 'width', 'height', 'preservesPitch',
      // Encryption, output devices and tracks that are not those of WebRTC.
      'setMediaKeys', 'mediaKeys', 'onencrypted', 'onwaitingforkey', 'setSinkId', 'sinkId', 'captureStream', 'remote', 'disableRemotePlayback',
      'audioTracks', 'videoTracks', 'controlsList', 'fastSeek', 'getStartDate', 'seekToNextFrame', 'allowedToPlay',
    ]);
    const isOwn = (name) => !/^(webkit|moz|on)/.test(name) && !without.has(name) && name !== 'constructor';
    const names = [HTMLVideoElement, HTMLMediaElement].flatMap(({ prototype }) => Object.getOwnPropertyNames(prototype));
    return names.filter((name) => isOwn(name) && !(name in window.player));
  });

for (const [name, start] of [['Chromium', () => browser], ['Firefox', () => fox]]) {
  test(`the element has the properties and methods of a video element in ${name}`, async (t) => {
    const page = await place(start(), SOURCE);
    t.after(() => page.close());
    assert.deepEqual(await missing(page), []);
    const initial = await page.evaluate(() => {
      const { player } = window;
      const { paused, ended, muted, volume, readyState, networkState, autoplay, controls, poster, currentTime, error, srcObject, src } = player;
      return { paused, ended, muted, volume, readyState, networkState, autoplay, controls, poster, currentTime, error, srcObject, src, state: player.dataset.state };
    });
    assert.deepEqual(initial, {
      paused: true, ended: false, muted: false, volume: 1, readyState: 0, networkState: 0, autoplay: false, controls: false, poster: '',
      currentTime: 0, error: null, srcObject: null, src: `${gateway.origin}/whep/element`, state: 'idle',
    });
    // Properties are attributes and the other way round.
    const reflected = await page.evaluate(() => {
      const { player } = window;
      Object.assign(player, { controls: true, poster: '/favicon.svg', muted: true, volume: 0.5, token: 'x' });
      return [player.hasAttribute('controls'), player.getAttribute('poster'), player.muted, player.volume, player.getAttribute('token')];
    });
    assert.deepEqual(reflected, [true, '/favicon.svg', true, 0.5, 'x']);
    assert.deepEqual(page.faults, []);
  });

  test(`the element loads nothing before play(), and sends the events of a video element in ${name}`, async (t) => {
    const page = await place(start(), { ...SOURCE, muted: '' });
    t.after(() => page.close());
    assert.equal((await playerData(page)).state, 'idle');
    assert.equal(await page.evaluate(() => window.player.client), null);
    const label = () => page.evaluate(() => window.player.shadowRoot.querySelector('.mute').getAttribute('aria-label'));
    assert.equal(await label(), 'Unmute');
    const [pausedAtOnce, resolved] = await page.evaluate(async () => {
      const started = window.player.play();
      const { paused } = window.player;
      return [paused, await started.then(() => 'played', String)];
    });
    assert.deepEqual([pausedAtOnce, resolved], [false, 'played']);
    await plays(page, 10);
    assert.equal(await label(), 'Unmute');
    for (const event of ['play', 'loadstart', 'loadedmetadata', 'loadeddata', 'canplay', 'playing', 'resize', 'timeupdate', 'statechange']) {
      await until(() => events(page), (seen) => seen.includes(event), event);
    }
    const playing = await page.evaluate(() => {
      const { paused, readyState, videoWidth, currentTime } = window.player;
      return { paused, readyState, videoWidth, advances: currentTime > 0, isStream: window.player.srcObject instanceof MediaStream };
    });
    assert.deepEqual([playing.paused, playing.advances, playing.isStream], [false, true, true]);
    assert.ok(playing.readyState >= 2 && playing.videoWidth > 0, JSON.stringify(playing));
    await page.evaluate(() => {
      window.events.length = 0;
      window.player.pause();
    });
    await until(() => events(page), (seen) => seen.includes('pause'), 'the event pause');
    assert.equal(await page.evaluate(() => window.player.paused), true);
    await page.evaluate(() => window.player.play());
    await until(() => events(page), (seen) => seen.includes('playing'), 'the event playing');
    await page.evaluate(() => (window.player.volume = 0.3));
    await until(() => events(page), (seen) => seen.includes('volumechange'), 'the event volumechange');
    // One event each.
    assert.deepEqual((await events(page)).filter((name) => ['play', 'pause'].includes(name)), ['pause', 'play']);
    assert.deepEqual(page.faults, []);
  });
}

test('the types of the package name what the element has', async (t) => {
  const page = await place(browser, SOURCE);
  t.after(() => page.close());
  const types = await readFile(path.join(PROJECT, 'player/npm/index.d.ts'), 'utf8');
  const [, members] = /class MillstreamPlayer [^]*?\{\n([^]*?)\n\}/.exec(types);
  const names = [...members.matchAll(/^  (?:readonly )?(\w+)(?:[(:]|<K)/gm)].map(([, name]) => name);
  assert.ok(names.length > 35, names.join());
  assert.deepEqual(await page.evaluate((names) => names.filter((name) => !(name in window.player)), names), []);
});

test('promises of play() end as those of a video element', async (t) => {
  const page = await place(browser, { src: '/whep/nothing-there', muted: '' });
  t.after(() => page.close());
  const outcome = await page.evaluate(async () => {
    const { player } = window;
    const late = () => new Promise((resolve) => setTimeout(resolve, 2_000, 'pending'));
    const outcomeOf = (promise) => Promise.race([promise.then(() => 'played', ({ name }) => name), late()]);
    const first = outcomeOf(player.play());
    player.pause();
    const outcomes = [await first];
    const second = outcomeOf(player.play());
    player.src = '/whep/other';
    outcomes.push(await second);
    player.removeAttribute('src');
    return [...outcomes, await outcomeOf(player.play())];
  });
  assert.deepEqual(outcome, ['AbortError', 'AbortError', 'NotSupportedError']);
});

test('a request that is rejected for good is an error of the element', async (t) => {
  const closed = await startGateway({ MILLSTREAM_AUTH__PLAY_TOKEN: 'ticket' });
  t.after(() => closed.stop());
  const page = await place(browser, { src: '/whep/x', autoplay: '', muted: '' }, closed);
  t.after(() => page.close());
  await until(() => events(page), (seen) => seen.includes('error'), 'the event error');
  assert.deepEqual(await page.evaluate(() => [window.player.error.code, window.player.paused]), [4, true]);
});

test('what the viewer has paused stays paused in another session', async (t) => {
  const page = await place(browser, { ...SOURCE, muted: '', autoplay: '', controls: '' });
  t.after(() => page.close());
  await plays(page, 5);
  await page.evaluate(() => {
    window.player.pause();
    window.player.client.stop();
    window.player.client.start();
  });
  await until(() => page.evaluate(() => window.player.client.state), (state) => state === 'live', 'another session');
  await new Promise((resolve) => setTimeout(resolve, 1_000));
  assert.equal(await page.evaluate(() => window.player.paused), true);
});

test('autoplay that the browser blocks goes on muted', async (t) => {
  // Without a gesture on the page, Chromium plays only what is muted.
  const strict = await chromium({ more: ['--autoplay-policy=document-user-activation-required'] });
  t.after(() => strict.close());
  const page = await open(strict, `${gateway.origin}/embed/element?muted=0`);
  // What puppeteer evaluates counts as a gesture.
  const debug = await page.createCDPSession();
  const expression = `(({ muted, paused, dataset: { state } }) => ({ muted, paused, state }))(document.querySelector('millstream-player'))`;
  const read = async () => (await debug.send('Runtime.evaluate', { expression, returnByValue: true, userGesture: false })).result.value;
  const { muted, paused } = await until(read, ({ muted, state }) => muted && state === 'playing', 'it to play muted');
  assert.deepEqual([muted, paused], [true, false]);
});

test('the element is used by keyboard, and says what it is', async (t) => {
  const page = await place(browser, { ...SOURCE, autoplay: '', muted: '', controls: '' });
  t.after(() => page.close());
  await plays(page, 5);
  assert.deepEqual(await page.evaluate(() => ['role', 'aria-label', 'tabindex'].map((name) => window.player.getAttribute(name))), ['region', 'Video player', '0']);
  await page.evaluate(() => window.player.focus());
  const read = (name) => page.evaluate((name) => window.player[name], name);
  for (const [key, name, value] of [[' ', 'paused', true], ['k', 'paused', false], ['m', 'muted', false], ['m', 'muted', true]]) {
    await page.keyboard.press(key);
    await until(() => read(name), (seen) => seen === value, `${key} to make ${name} ${value}`);
  }
  await page.keyboard.press('ArrowDown');
  assert.ok(Math.abs((await read('volume')) - 0.95) < 0.001);
  await page.keyboard.press('i');
  const isPanelShown = () => page.evaluate(() => !window.player.shadowRoot.querySelector('.stats').hidden);
  assert.equal(await isPanelShown(), true);
  // Every button has a name, and the focus reaches all that are shown.
  const names = await page.evaluate(() =>
    [...window.player.shadowRoot.querySelectorAll('button')].map((button) => button.getAttribute('aria-label') || button.textContent.trim()));
  assert.ok(names.every(Boolean), JSON.stringify(names));
  // Space on a button is a click on it, and not two.
  await page.evaluate(() => window.player.shadowRoot.querySelector('.play').focus());
  await page.keyboard.press(' ');
  await until(() => read('paused'), (paused) => paused, 'the button to pause');
});

test('captions have a button where the stream has them', async (t) => {
  const page = await place(browser, { ...SOURCE, autoplay: '', muted: '', controls: '' });
  t.after(() => page.close());
  const button = () => page.evaluate(() => {
    const { hidden, ariaPressed } = window.player.shadowRoot.querySelector('.captions');
    return [hidden, ariaPressed, [...window.player.textTracks].map(({ mode }) => mode)];
  });
  assert.deepEqual(await button(), [true, 'false', []]);
  await page.evaluate(() => window.player.addTextTrack('captions', 'English', 'en'));
  await until(button, ([hidden]) => !hidden, 'the button');
  await page.evaluate(() => window.player.focus());
  await page.keyboard.press('c');
  await until(button, ([, pressed, [mode]]) => pressed === 'true' && mode === 'showing', 'captions to be shown');
  await page.keyboard.press('c');
  await until(button, ([, pressed, [mode]]) => pressed === 'false' && mode === 'hidden', 'captions to be hidden');
});

test('the statistics are copied as text', async (t) => {
  const context = browser.defaultBrowserContext();
  await context.overridePermissions(gateway.origin, ['clipboard-read', 'clipboard-write', 'clipboard-sanitized-write']);
  const page = await place(browser, { ...SOURCE, autoplay: '', muted: '', controls: '' });
  t.after(() => page.close());
  await plays(page, 40);
  await page.bringToFront();
  await page.evaluate(() => window.player.shadowRoot.querySelector('.stats-toggle').click());
  const rows = () => page.evaluate(() => window.player.shadowRoot.querySelectorAll('.stats dt').length);
  await until(rows, (count) => count > 5, 'the rows');
  const copyButton = await page.evaluateHandle(() => window.player.shadowRoot.querySelector('.copy-stats'));
  await copyButton.click();
  const text = await until(() => page.evaluate(() => navigator.clipboard.readText()), (text) => text, 'the text');
  assert.match(text, /^Transport: WebRTC\nResolution: \d+ × \d+\nCodec: VP8\n[^]*Player: http[^]*\/whep\/element\nState: playing\nBrowser: Mozilla/);
});

test('the big button plays, and the poster is shown until then', async (t) => {
  const page = await place(browser, { ...SOURCE, muted: '', controls: '', poster: '/favicon.svg' });
  t.after(() => page.close());
  const shown = () => page.evaluate(() => ['.start', '.poster', '.bar'].map((part) => window.player.shadowRoot.querySelector(part).checkVisibility()));
  assert.deepEqual(await shown(), [true, true, false]);
  await page.click('millstream-player');
  await plays(page, 5);
  assert.deepEqual(await shown(), [false, false, true]);
});

test('a frame page follows the parameters of its URL', async (t) => {
  const page = await open(browser, `${gateway.origin}/embed/element?autoplay=0&controls=0&way=webrtc#token=secret`);
  t.after(() => page.close());
  const read = () => page.evaluate(() => {
    const player = document.querySelector('millstream-player');
    const { width, height } = player.getBoundingClientRect();
    return [player.autoplay, player.controls, player.muted, player.getAttribute('hls'), player.token, player.dataset.state, width === innerWidth && height === innerHeight];
  });
  assert.deepEqual(await read(), [false, false, true, 'off', 'secret', 'idle', true]);
  const other = await open(browser, `${gateway.origin}/embed/element`);
  t.after(() => other.close());
  await plays(other, 5);
  assert.deepEqual([...page.faults, ...other.faults], []);
});
