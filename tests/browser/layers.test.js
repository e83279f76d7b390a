// Simulcast: a publisher sends three layers, viewers change between them.

import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import {
  chromium,
  open,
  playerData,
  plays,
  publishSimulcast,
  startGateway,
  until,
  watch as openWatchPage,
  watchSimulcast,
} from './harness.js';

const API_TOKEN = 'api-token-of-the-layers';
const API = { Authorization: `Bearer ${API_TOKEN}` };

let browser;

before(async () => {
  browser = await chromium();
});

after(() => browser?.close());

/** Publishes a moving box in 1280x720 and two lower layers. */
async function publish(gateway, codec) {
  const page = await open(browser, `${gateway.origin}/publish/nothing`);
  await page.evaluate(() => {
    window.canvas = Object.assign(document.createElement('canvas'), { width: 1280, height: 720 });
    const context = window.canvas.getContext('2d');
    let n = 0;
    setInterval(() => {
      n += 1;
      context.fillStyle = `hsl(${n % 360} 60% 40%)`;
      context.fillRect(0, 0, 1280, 720);
      context.fillStyle = 'white';
      context.fillRect((n * 7) % 1280, 300, 120, 120);
    }, 33);
  });
  await publishSimulcast(page, { fps: 30, codec });
  return page;
}

/** Watches, and records when each frame was shown and how wide it was. */
async function watch(gateway) {
  const page = await open(browser, `${gateway.origin}/watch/nothing`);
  await watchSimulcast(page);
  await page.evaluate(async () => {
    const video = document.querySelector('video');
    const [, layer] = /<([^>]*)>; rel="[^"]*:layer"/.exec(window.link);
    const [, events] = /<([^>]*)>; rel="[^"]*:server-sent-events"/.exec(window.link);
    window.choose = (choice) =>
      fetch(layer, {
        method: 'POST',
        headers: { 'Content-Type': 'application/json' },
        body: JSON.stringify(choice),
      }).then((reply) => reply.status);
    const opened = await fetch(events, { method: 'POST', body: '["layers"]' });
    new EventSource(opened.headers.get('Location')).addEventListener('layers', ({ data }) => {
      [window.layers] = Object.values(JSON.parse(data));
    });
    window.frames = [];
    const note = (now, { width }) => {
      window.frames.push({ at: now, width });
      video.requestVideoFrameCallback(note);
    };
    video.requestVideoFrameCallback(note);
  });
  return page;
}

const width = (page) => page.evaluate(() => window.frames.at(-1)?.width ?? 0);

const allLayers = (publisher) =>
  until(
    () => publisher.evaluate(async () => {
      const sent = [...(await window.pc.getStats()).values()].filter((s) => s.type === 'outbound-rtp');
      return sent.filter((s) => s.framesSent > 30).length;
    }),
    (sending) => sending === 3,
    'all three layers to be sent',
  );

const CHANGES = [
  ['q', 320], ['f', 1280], ['h', 640], ['q', 320], ['h', 640],
  ['f', 1280], ['q', 320], ['f', 1280], ['h', 640], ['f', 1280],
];
/** Rounds of the changes, at least and at most; the median counts, so that one moment at which the machine was busy does not. */
const ROUNDS = 3;
const MOST_ROUNDS = 7;
/** In milliseconds. */
const LONGEST_FREEZE = 300;

const median = (values) => [...values].sort((a, b) => a - b)[values.length >> 1];

for (const codec of ['VP8', 'H264']) {
  test(`a viewer goes up and down the layers of a simulcast in ${codec} without a freeze`, async (t) => {
    const gateway = await startGateway();
    t.after(() => gateway.stop());
    const publisher = await publish(gateway, codec);
    t.after(() => publisher.close());
    await allLayers(publisher);
    const page = await watch(gateway);
    t.after(() => page.close());
    await until(() => width(page), (seen) => seen === 1280, 'the best layer without a selection');
    const layers = await until(
      () => page.evaluate(() => window.layers),
      (seen) => seen?.length === 3,
      'the event with the layers',
    );
    assert.deepEqual(layers.map(({ rid, width, height }) => [rid, width, height]), [
      ['f', 1280, 720],
      ['h', 640, 360],
      ['q', 320, 180],
    ]);
    const changes = CHANGES.map(([rid, wanted]) => ({ rid, wanted, freezes: [] }));
    const waits = [];
    // Each change is judged by what was shown since the one before.
    let from = await page.evaluate(() => window.frames.length - 1);
    // A machine that was busy for longer than a round is given more of them; all of them count.
    for (let round = 1; round <= MOST_ROUNDS; round += 1) {
      for (const { rid, wanted, freezes } of changes) {
        const asked = Date.now();
        assert.equal(await page.evaluate((rid) => window.choose({ mediaId: '0', rid }), rid), 200);
        await until(() => width(page), (seen) => seen === wanted, `layer ${rid}`);
        waits.push(Date.now() - asked);
        await new Promise((resolve) => setTimeout(resolve, 500));
        const { freeze, last } = await page.evaluate((from) => {
          const shown = window.frames.slice(from);
          const gaps = shown.slice(1).map(({ at }, index) => at - shown[index].at);
          return { freeze: Math.max(...gaps), last: window.frames.length - 1 };
        }, from);
        freezes.push(freeze);
        from = last;
      }
      const isSettled = round >= ROUNDS && round % 2 === 1;
      if (isSettled && changes.every(({ freezes }) => median(freezes) < LONGEST_FREEZE)) break;
    }
    const medians = changes.map(({ freezes }) => median(freezes));
    const rounds = changes[0].freezes.length;
    t.diagnostic(`${codec}, ${rounds} rounds: longest freeze ${Math.max(...medians).toFixed(0)} ms by the median, `
      + `${Math.max(...changes.flatMap(({ freezes }) => freezes)).toFixed(0)} ms once; `
      + `a change takes ${Math.min(...waits)} to ${Math.max(...waits)} ms`);
    for (const [index, { rid, freezes }] of changes.entries()) {
      assert.ok(medians[index] < LONGEST_FREEZE, `change ${index + 1}, to ${rid}: ${freezes.map(Math.round)} ms`);
    }
    const sessions = await page.evaluate(async () =>
      [...(await window.pc.getStats()).values()].filter((s) => s.type === 'inbound-rtp').length);
    assert.equal(sessions, 1);
    // Without a selection the best layer again; then selection by size.
    assert.equal(await page.evaluate(() => window.choose({ maxHeight: 400 })), 200);
    await until(() => width(page), (seen) => seen === 640, 'the best within a height');
    assert.equal(await page.evaluate(() => window.choose({})), 200);
    await until(() => width(page), (seen) => seen === 1280, 'the best');
    assert.equal(await page.evaluate(() => window.choose({ rid: 'x' })), 422);
    // The selected layer ends: another one is displayed.
    assert.equal(await page.evaluate(() => window.choose({ rid: 'h' })), 200);
    await until(() => width(page), (seen) => seen === 640, 'the middle layer');
    await publisher.evaluate(async () => {
      const [sender] = window.pc.getSenders();
      const parameters = sender.getParameters();
      parameters.encodings.find(({ rid }) => rid === 'h').active = false;
      await sender.setParameters(parameters);
    });
    await until(() => width(page), (seen) => seen === 1280, 'the best instead of the one that is gone');
  });
}

test('the player has a menu of the layers, by mouse and by keyboard', async (t) => {
  const gateway = await startGateway({ MILLSTREAM_AUTH__API_TOKEN: API_TOKEN });
  t.after(() => gateway.stop());
  const publisher = await publish(gateway, 'VP8');
  t.after(() => publisher.close());
  const page = await openWatchPage(browser, gateway, 'simulcast');
  t.after(() => page.close());
  await plays(page);
  await until(() => playerData(page), ({ layers }) => layers === '3', 'the layers to be known');
  const player = (work, ...more) =>
    page.evaluate(
      (work, more) => {
        const root = document.querySelector('millstream-player').shadowRoot;
        return new Function('root', 'more', `return (${work})(root, ...more)`)(root, more);
      },
      work.toString(),
      more,
    );
  const options = () => player((root) => [...root.querySelectorAll('.quality option')].map((o) => o.textContent));
  await until(options, ([automatic]) => automatic === 'Auto (720p)', 'the best layer to be named');
  assert.deepEqual(await options(), ['Auto (720p)', '720p', '360p', '180p']);
  // The first request is delayed: later ones must not overtake it.
  let held = 0;
  await page.setRequestInterception(true);
  page.on('request', (request) => {
    const isLayerRequest = request.method() === 'POST' && request.url().endsWith('/layer');
    setTimeout(() => request.continue(), isLayerRequest && (held += 1) === 1 ? 1_000 : 0);
  });
  const wide = () => player((root) => root.querySelector('video').videoWidth);
  await until(wide, (seen) => seen === 1280, 'the best layer, without a choice');
  await player((root) => root.querySelector('.quality').focus());
  for (let down = 0; down < 3; down += 1) await page.keyboard.press('ArrowDown');
  await until(wide, (seen) => seen === 320, 'the lowest layer, by keyboard');
  await player((root) => {
    const menu = root.querySelector('.quality');
    menu.value = 'h';
    menu.dispatchEvent(new Event('change'));
  });
  await until(wide, (seen) => seen === 640, 'the middle layer');
  await player((root) => root.querySelector('.play').click());
  assert.equal(await player((root) => root.querySelector('video').paused), true);
  assert.equal(await player((root) => root.querySelector('.play').getAttribute('aria-label')), 'Play');
  await page.focus('millstream-player');
  await page.keyboard.press('k');
  await until(() => player((root) => root.querySelector('video').paused), (paused) => !paused, 'to play on');
  assert.equal((await playerData(page)).sessions, '1');
  assert.ok(held >= 3, `${held} requests`);
  // The one that was held up is through by now, and changed nothing.
  await new Promise((resolve) => setTimeout(resolve, 2_000));
  assert.equal(await wide(), 640);
  // The choice outlasts the session.
  const { sessions } = await (await fetch(`${gateway.origin}/api/v1/sessions`, { headers: API })).json();
  const viewer = sessions.find(({ role }) => role === 'viewer');
  await fetch(`${gateway.origin}/api/v1/sessions/${viewer.id}`, { method: 'DELETE', headers: API });
  await until(() => playerData(page), (data) => data.sessions === '2', 'another session');
  await until(wide, (seen) => seen === 640, 'the middle layer in another session');
  assert.equal(await player((root) => root.querySelector('.quality').selectedOptions[0].text), '360p');
  if (process.env.SCREENSHOTS) await page.screenshot({ path: `${process.env.SCREENSHOTS}/layers.png` });
  // On phones too every control is in the bar.
  for (const width of [390, 320]) {
    await page.setViewport({ width, height: 640 });
    const [bar, last] = await player((root) => ['.bar', '.fullscreen'].map((part) => root.querySelector(part).getBoundingClientRect().right));
    assert.ok(last <= bar, `${width} px: the last control ends at ${last}, the bar at ${bar}`);
  }
  assert.deepEqual(page.faults, []);
});

test('players of layers on one page know them all, and leave connections for others', async (t) => {
  const gateway = await startGateway();
  t.after(() => gateway.stop());
  const publisher = await publish(gateway, 'VP8');
  t.after(() => publisher.close());
  await allLayers(publisher);
  const page = await open(browser, `${gateway.origin}/watch/nothing`, () => {
    window.sources = [];
    window.EventSource = class extends EventSource {
      constructor(...options) {
        super(...options);
        window.sources.push(this);
      }
    };
  });
  t.after(() => page.close());
  await page.evaluate(() => {
    window.players = Array.from({ length: 4 }, () => {
      const player = document.createElement('millstream-player');
      Object.assign(player, { autoplay: true, muted: true, controls: true });
      player.setAttribute('src', '/whep/simulcast');
      player.style.width = '320px';
      return player;
    });
    document.body.replaceChildren(...window.players);
  });
  const layers = () => page.evaluate(() => window.players.map(({ dataset }) => dataset.layers));
  await until(layers, (all) => all.every((count) => count === '3'), 'all players to know the layers', 40_000);
  const opened = () => page.evaluate(() => window.sources.filter(({ readyState }) => readyState !== EventSource.CLOSED).length);
  const withQuality = () => page.evaluate(() => window.players.filter(({ client }) => client.quality).length);
  await until(withQuality, (count) => count === 2, 'two players to know their quality');
  assert.equal(await opened(), 2);
  const last = () => page.evaluate(() => window.players.findLast(({ client }) => !client.quality).video.videoWidth);
  await page.evaluate(() => {
    const menu = window.players.findLast(({ client }) => !client.quality).shadowRoot.querySelector('.quality');
    menu.value = 'q';
    menu.dispatchEvent(new Event('change'));
  });
  await until(last, (seen) => seen === 320, 'the lowest layer of a player without an event stream');
  // One that goes makes room for another one, with its next poll.
  await page.evaluate(() => window.players.find(({ client }) => client.quality).remove());
  await until(opened, (count) => count === 1, 'its event stream to be closed');
  await page.evaluate(() => window.players.find(({ client }) => client && !client.quality).client.refreshLayers());
  await until(opened, (count) => count === 2, 'the event stream of another player');
  assert.deepEqual(page.faults, []);
});

test('the menu of the layers chooses by HLS too', async (t) => {
  const gateway = await startGateway();
  t.after(() => gateway.stop());
  const publisher = await publish(gateway, 'H264');
  t.after(() => publisher.close());
  await allLayers(publisher);
  const page = await open(browser, `${gateway.origin}/watch/simulcast?way=hls`);
  t.after(() => page.close());
  await until(() => playerData(page), ({ state, way }) => state === 'playing' && way === 'hls', 'to play by HLS');
  const menu = () => page.evaluate(() => {
    const menu = document.querySelector('millstream-player').shadowRoot.querySelector('.quality');
    return { hidden: menu.hidden, names: [...menu.options].map(({ text }) => text) };
  });
  const { hidden, names } = await until(menu, ({ names }) => /^Auto \(\d+p\)$/.test(names[0]), 'the layer of HLS to be named');
  assert.deepEqual([hidden, names.slice(1)], [false, ['720p', '360p', '180p']]);
  const wide = () => page.evaluate(() => document.querySelector('millstream-player').video.videoWidth);
  for (const [name, wanted] of [['180p', 320], ['720p', 1280]]) {
    await page.evaluate((name) => {
      const menu = document.querySelector('millstream-player').shadowRoot.querySelector('.quality');
      menu.selectedIndex = [...menu.options].findIndex(({ text }) => text === name);
      menu.dispatchEvent(new Event('change'));
    }, name);
    await until(wide, (seen) => seen === wanted, `${name} by HLS`, 30_000);
  }
  assert.deepEqual(page.faults, []);
});

test('the layers are variants of HLS, in one playlist', async (t) => {
  const gateway = await startGateway();
  t.after(() => gateway.stop());
  const publisher = await publish(gateway, 'H264');
  t.after(() => publisher.close());
  await allLayers(publisher);
  const url = `${gateway.origin}/hls/simulcast/index.m3u8`;
  const index = await (await fetch(url)).text();
  const sizes = [...index.matchAll(/RESOLUTION=(\d+x\d+)/g)].map(([, size]) => size);
  assert.deepEqual(sizes, ['1280x720', '640x360', '320x180'], index);
  // A player that changes the level gets segments, never a gap.
  const playlist = async (name) => (await fetch(new URL(name, url))).text();
  assert.match(await playlist('video.m3u8'), /#EXT-X-PART:/);
  const lower = await playlist('video3.m3u8');
  assert.ok(lower.includes('#EXTINF') && !lower.includes('#EXT-X-GAP'), lower);
  const page = await open(browser, `${gateway.origin}/watch/nothing`);
  t.after(() => page.close());
  await page.evaluate(async (url) => {
    await new Promise((resolve) => {
      const script = Object.assign(document.createElement('script'), { src: '/hls.min.js', onload: resolve });
      document.head.append(script);
    });
    document.body.innerHTML = '<video autoplay muted playsinline></video>';
    // As our player does: the policy of the page forbids hls.js its worker, and it would begin anew without.
    window.hls = new window.Hls({ lowLatencyMode: true, enableWorker: false });
    window.errors = [];
    window.hls.on(window.Hls.Events.ERROR, (_, { fatal, details }) => fatal && window.errors.push(details));
    // What the player decided, should it not change its level when required.
    window.decisions = [];
    for (const event of ['LEVEL_SWITCHING', 'LEVEL_SWITCHED', 'LEVELS_UPDATED', 'BUFFER_FLUSHED', 'ERROR']) {
      window.hls.on(window.Hls.Events[event], (_, { level, details, error }) => {
        const { manualLevel, loadLevel, levels } = window.hls;
        const at = Math.round(performance.now());
        window.decisions.push([at, event, level, details, error?.message, { manualLevel, loadLevel, levels: levels.length }]);
      });
    }
    window.hls.loadSource(url);
    window.hls.attachMedia(document.querySelector('video'));
  }, url);
  const width = () => page.evaluate(() => document.querySelector('video').videoWidth);
  const time = () => page.evaluate(() => document.querySelector('video').currentTime);
  await until(() => page.evaluate(() => window.hls.levels.length), (levels) => levels === 3, 'three levels');
  for (const [level, wanted] of [[2, 1280], [0, 320], [1, 640], [2, 1280]]) {
    await page.evaluate((level) => (window.hls.nextLevel = level), level);
    await until(width, (seen) => seen === wanted, `${wanted} pixels`, 30_000).catch(async (error) => {
      const decisions = await page.evaluate(() => window.decisions.map((decision) => JSON.stringify(decision)));
      throw new Error(`${error.message}\n${index}${decisions.join('\n')}`);
    });
    const from = await time();
    await until(time, (now) => now > from + 2, 'it to play on');
  }
  assert.deepEqual(await page.evaluate(() => window.errors), []);
});
