// Data channels: a publisher's messages, those of the API and those of viewers reach the viewers in Chromium and Firefox.

import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { chromium, firefox, open, plays, PUBLISH_TOKEN, startGateway, until, watch } from './harness.js';

const API_TOKEN = 'api-token-of-the-data-tests';

let gateway;
const browsers = {};

before(async () => {
  gateway = await startGateway({
    MILLSTREAM_AUTH__API_TOKEN: API_TOKEN,
    MILLSTREAM_WEBRTC__VIEWER_MESSAGES: 'all',
    MILLSTREAM_WEBRTC__RETAINED_MESSAGES: '3',
  });
  browsers.Chromium = await chromium();
  browsers.Firefox = await firefox();
});

after(async () => {
  await Promise.allSettled(Object.values(browsers).map((browser) => browser.close()));
  await gateway?.stop();
});

/** Publishes a moving box with the WHIP client of the pages. Its data tracks are at `client.data`. */
async function publish(browser, stream) {
  const page = await open(browser, `${gateway.origin}/`);
  await page.evaluate(
    async (endpoint, token) => {
      const { WhipClient } = await import('/whip.js');
      const canvas = Object.assign(document.createElement('canvas'), { width: 320, height: 180 });
      const context = canvas.getContext('2d');
      let n = 0;
      setInterval(() => context.fillRect((n += 3) % 320, 20, 40, 40), 40);
      window.client = new WhipClient(endpoint, canvas.captureStream(25), { token, codec: 'VP8' });
      window.received = [];
      window.score = window.client.data('score');
      window.chat = window.client.data('chat');
      window.chat.addEventListener('message', ({ data }) => window.received.push(data));
      window.client.start();
    },
    `${gateway.origin}/whip/${stream}`,
    PUBLISH_TOKEN,
  );
  await until(() => page.evaluate(() => window.client.state === 'live' && window.score.isOpen), Boolean, 'a publisher with data channels');
  return page;
}

/** The watch page, with what came on these labels in `window.received`. */
async function view(browser, stream, ...labels) {
  const page = await watch(browser, gateway, stream);
  await page.evaluate((labels) => {
    window.received = [];
    window.tracks = {};
    for (const label of labels) {
      const track = document.querySelector('millstream-player').data(label);
      window.tracks[label] = track;
      track.addEventListener('message', ({ data }) =>
        window.received.push([label, typeof data === 'string' ? data : [...new Uint8Array(data)]]));
    }
  }, labels);
  await plays(page, 5);
  return page;
}

const received = (page) => page.evaluate(() => window.received);

const post = (stream, message, token = API_TOKEN) =>
  fetch(`http://${gateway.http}/api/v1/streams/${stream}/data`, {
    method: 'POST',
    headers: { 'Content-Type': 'application/json', Authorization: `Bearer ${token}` },
    body: JSON.stringify(message),
  });

for (const [publisherName, viewerName] of [['Chromium', 'Firefox'], ['Firefox', 'Chromium']]) {
  test(`messages of a publisher in ${publisherName} reach a viewer in ${viewerName} in order`, async (t) => {
    const stream = `from-${publisherName}`;
    const publisher = await publish(browsers[publisherName], stream);
    t.after(() => publisher.close());
    const viewer = await view(browsers[viewerName], stream, 'score');
    t.after(() => viewer.close());
    await publisher.evaluate(() => {
      for (let n = 0; n < 500; n += 1) window.score.send(`${n}`);
    });
    const all = await until(() => received(viewer), ({ length }) => length >= 500, 'all messages');
    assert.deepEqual(all, Array.from({ length: 500 }, (_, n) => ['score', `${n}`]));
    await publisher.evaluate(() => window.score.send(new Uint8Array([0, 1, 255])));
    const last = await until(() => received(viewer), ({ length }) => length > 500, 'bytes');
    assert.deepEqual(last.at(-1), ['score', [0, 1, 255]]);
    assert.deepEqual(viewer.faults, []);
  });

  test(`a viewer in ${viewerName} who joins late gets the last messages, of the API too`, async (t) => {
    const stream = `late-${publisherName}`;
    const publisher = await publish(browsers[publisherName], stream);
    t.after(() => publisher.close());
    await publisher.evaluate(() => {
      for (let n = 0; n < 10; n += 1) window.score.send(`${n}`);
    });
    assert.equal((await post(stream, { label: 'title', text: 'Final' })).status, 202);
    assert.equal((await post(stream, { label: 'title', base64: 'AAH/' }, PUBLISH_TOKEN)).status, 202);
    const read = async () => {
      const headers = { Authorization: `Bearer ${API_TOKEN}` };
      const answer = await fetch(`http://${gateway.http}/api/v1/streams/${stream}`, { headers });
      return (await answer.json()).data;
    };
    const recorded = await until(read, (data) => data.some(({ messages }) => messages === 10), 'the messages in the API');
    assert.deepEqual(recorded.map(({ label, messages }) => [label, messages]).sort(), [['score', 10], ['title', 2]]);
    // One label is asked for before the session, the other one when its messages have come.
    const viewer = await view(browsers[viewerName], stream, 'score');
    t.after(() => viewer.close());
    await until(() => received(viewer), ({ length }) => length >= 3, 'the retained messages');
    assert.deepEqual(await received(viewer), ['7', '8', '9'].map((text) => ['score', text]));
    await viewer.evaluate(() => {
      window.titles = [];
      const track = document.querySelector('millstream-player').data('title');
      track.addEventListener('message', ({ data }) => window.titles.push(typeof data === 'string' ? data : [...new Uint8Array(data)]));
    });
    const titles = await until(() => viewer.evaluate(() => window.titles), ({ length }) => length >= 2, 'the retained titles');
    assert.deepEqual(titles, ['Final', [0, 1, 255]]);
  });

  test(`a viewer in ${viewerName} is heard by the publisher and the other viewers`, async (t) => {
    const stream = `chat-${publisherName}`;
    const publisher = await publish(browsers[publisherName], stream);
    t.after(() => publisher.close());
    const pages = [];
    for (const name of [viewerName, publisherName]) pages.push(await view(browsers[name], stream, 'chat'));
    t.after(() => Promise.all(pages.map((page) => page.close())));
    await until(() => pages[0].evaluate(() => window.tracks.chat.isOpen), Boolean, 'an open channel');
    await pages[0].evaluate(() => window.tracks.chat.send(JSON.stringify({ name: 'Ann', text: 'hello <b>' })));
    for (const page of pages) {
      const [[label, text]] = await until(() => received(page), ({ length }) => length > 0, 'the message');
      const { name, text: said, from, time } = JSON.parse(text);
      assert.deepEqual([label, name, said], ['chat', 'Ann', 'hello <b>']);
      assert.match(from, /^[0-9a-f]{6}$/);
      assert.ok(Math.abs(time - Date.now() / 1000) < 60, `${time}`);
    }
    const [text] = await until(() => received(publisher), ({ length }) => length > 0, 'the message at the publisher');
    assert.equal(JSON.parse(text).text, 'hello <b>');
  });
}

// Each browser guesses its DTLS role for such a channel, and its stream ids with it (RFC 8832 section 6).
for (const name of ['Chromium', 'Firefox']) {
  test(`a channel that a page in ${name} creates between its offer and the answer is used`, async (t) => {
    const stream = `between-${name}`;
    const publisher = await publish(browsers.Chromium, stream);
    t.after(() => publisher.close());
    const page = await open(browsers[name], `${gateway.origin}/`);
    t.after(() => page.close());
    await page.evaluate(async (endpoint) => {
      window.received = [];
      const pc = new RTCPeerConnection();
      window.pc = pc;
      pc.addTransceiver('video', { direction: 'recvonly' });
      pc.createDataChannel('');
      await pc.setLocalDescription();
      const headers = { 'Content-Type': 'application/sdp' };
      const response = await fetch(endpoint, { method: 'POST', headers, body: pc.localDescription.sdp });
      window.chat = pc.createDataChannel('chat');
      window.chat.onmessage = ({ data }) => window.received.push(data);
      window.chat.onopen = () => window.chat.send('early');
      await pc.setRemoteDescription({ type: 'answer', sdp: await response.text() });
    }, `${gateway.origin}/whep/${stream}`);
    const [text] = await until(() => received(page), ({ length }) => length > 0, 'its own message');
    assert.equal(JSON.parse(text).text, 'early');
    assert.deepEqual(page.faults, []);
  });
}

test('channels go on in the session that replaces another one', async (t) => {
  const publisher = await publish(browsers.Chromium, 'again');
  t.after(() => publisher.close());
  const viewer = await view(browsers.Chromium, 'again', 'score');
  t.after(() => viewer.close());
  await viewer.evaluate(() => document.querySelector('millstream-player').load());
  await plays(viewer, 5);
  await publisher.evaluate(() => window.score.send('after'));
  const all = await until(() => received(viewer), ({ length }) => length > 0, 'a message');
  assert.deepEqual(all.at(-1), ['score', 'after']);
});
