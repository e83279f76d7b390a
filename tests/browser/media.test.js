// Real browsers publish to and watch from a real gateway.

import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import {
  chromium, firefox, isLive, open, pageData, playerData, plays, playsByWebRtc, publish, PUBLISH_TOKEN, skip, unmute, startGateway, until, watch,
} from './harness.js';

// A publisher and a viewer each have a browser of their own: pages in the background are slowed down.
let gateway, sender, viewer, fox;

before(async () => {
  gateway = await startGateway();
  sender = await chromium();
  viewer = await chromium();
  fox = await firefox();
});

after(async () => {
  await Promise.allSettled([sender?.close(), viewer?.close(), fox?.close()]);
  await gateway?.stop();
});

const canDecode = (page, codec) =>
  page.evaluate((name) => RTCRtpReceiver.getCapabilities('video').codecs.some((c) => c.mimeType === name), `video/${codec}`);
const canEncode = (page, codec) =>
  page.evaluate((name) => RTCRtpSender.getCapabilities('video').codecs.some((c) => c.mimeType === name), `video/${codec}`);

/** Publishes from one browser and watches in another; asserts moving video and audible audio. */
async function seesAndHears(t, { from, to, codec, stream }) {
  const publisher = await publish(from, gateway, stream, { codec });
  t.after(() => publisher.close());
  if (!(await canEncode(publisher, codec))) return skip(t, `the publishing browser has no ${codec} encoder`);
  await isLive(publisher);

  const page = await watch(to, gateway, stream);
  t.after(() => page.close());
  if (!(await canDecode(page, codec))) return skip(t, `the watching browser has no ${codec} decoder`);
  await until(() => playerData(page), (data) => data.state === 'playing', 'the player to play');
  await unmute(page);
  await plays(page, 40);
  const data = await playsByWebRtc(page, codec);
  assert.equal(data.sessions, '1');
  await until(() => playerData(page), ({ audioEnergy }) => Number(audioEnergy) > 0, 'audio');
  assert.deepEqual([...publisher.faults, ...page.faults], []);
  t.diagnostic(`first frame after ${data.firstFrame} ms`);
}

for (const codec of ['VP8', 'H264']) {
  test(`chromium plays video and audio of chromium in ${codec}`, (t) =>
    seesAndHears(t, { from: sender, to: viewer, codec, stream: `chromium-${codec}` }));

  test(`firefox plays video and audio of chromium in ${codec}`, (t) =>
    seesAndHears(t, { from: sender, to: fox, codec, stream: `firefox-${codec}` }));
}

for (const codec of ['VP9', 'AV1']) {
  test(`chromium plays video and audio of chromium in ${codec}`, (t) =>
    seesAndHears(t, { from: sender, to: viewer, codec, stream: `chromium-${codec}` }));
}

/** Keeps the answers that a page sets. */
const keepAnswers = () => {
  window.answers = [];
  const set = RTCPeerConnection.prototype.setRemoteDescription;
  RTCPeerConnection.prototype.setRemoteDescription = function (description) {
    window.answers.push(description.sdp);
    return set.call(this, description);
  };
};

test('the pages agree on requests for lost audio packets', async (t) => {
  const publisher = await publish(sender, gateway, 'requests', { before: keepAnswers });
  t.after(() => publisher.close());
  await isLive(publisher);
  for (const browser of [viewer, fox]) {
    const page = await open(browser, `${gateway.origin}/watch/requests`, keepAnswers);
    t.after(() => page.close());
    await plays(page);
    for (const agreed of [publisher, page]) {
      const [answer] = await agreed.evaluate(() => window.answers);
      assert.match(answer.split('m=').find((section) => section.startsWith('audio ')), /a=rtcp-fb:\d+ nack\r/);
    }
  }
});

test('a stream without audio plays', async (t) => {
  const publisher = await publish(sender, gateway, 'silent', { audio: 'none' });
  t.after(() => publisher.close());
  await isLive(publisher);
  const page = await watch(viewer, gateway, 'silent');
  t.after(() => page.close());
  await plays(page);
});

test('a stream without video plays', async (t) => {
  const publisher = await open(sender, `${gateway.origin}/`);
  t.after(() => publisher.close());
  await publisher.evaluate(async (url, token) => {
    const connection = (window.connection = new RTCPeerConnection());
    const [track] = (await navigator.mediaDevices.getUserMedia({ audio: true })).getAudioTracks();
    connection.addTransceiver(track, { direction: 'sendonly' });
    await connection.setLocalDescription();
    const headers = { 'Content-Type': 'application/sdp', Authorization: `Bearer ${token}` };
    const response = await fetch(url, { method: 'POST', headers, body: connection.localDescription.sdp });
    await connection.setRemoteDescription({ type: 'answer', sdp: await response.text() });
  }, '/whip/radio', PUBLISH_TOKEN);
  const page = await watch(viewer, gateway, 'radio');
  t.after(() => page.close());
  await unmute(page);
  await until(() => playerData(page), ({ audioEnergy }) => Number(audioEnergy) > 0, 'audio');
});

test('media goes by IPv6 where the gateway listens there', async (t) => {
  const six = await startGateway({ MILLSTREAM_WEBRTC__LISTEN: '[::1]:0' });
  t.after(() => six.stop());
  const publisher = await publish(sender, six, 'six');
  t.after(() => publisher.close());
  await isLive(publisher);
  const page = await watch(viewer, six, 'six');
  t.after(() => page.close());
  await plays(page);
});

test('viewers of a simulcast get the best layer', async (t) => {
  const publisher = await open(sender, `${gateway.origin}/`);
  t.after(() => publisher.close());
  const answer = await publisher.evaluate(async (url, token) => {
    const connection = (window.connection = new RTCPeerConnection());
    const [track] = (await navigator.mediaDevices.getUserMedia({ video: { width: 1280, height: 720 } })).getVideoTracks();
    const sendEncodings = [4, 2, 1].map((scaleResolutionDownBy, n) => ({ rid: 'qhf'[n], scaleResolutionDownBy }));
    const { sender } = connection.addTransceiver(track, { direction: 'sendonly', sendEncodings });
    // On a busy machine all layers become smaller otherwise.
    await sender.setParameters({ ...sender.getParameters(), degradationPreference: 'maintain-resolution' });
    await connection.setLocalDescription();
    const headers = { 'Content-Type': 'application/sdp', Authorization: `Bearer ${token}` };
    const response = await fetch(url, { method: 'POST', headers, body: connection.localDescription.sdp });
    const sdp = await response.text();
    await connection.setRemoteDescription({ type: 'answer', sdp });
    return sdp;
  }, '/whip/layers', PUBLISH_TOKEN);
  assert.match(answer, /a=simulcast:recv q;h;f\r\n/);
  const page = await watch(viewer, gateway, 'layers');
  t.after(() => page.close());
  await plays(page);
  const width = () => page.evaluate(
    () => document.querySelector('millstream-player').shadowRoot.querySelector('video').videoWidth,
  );
  const seen = new Set();
  await until(async () => {
    seen.add(await width());
    return width();
  }, (pixels) => pixels === 1280, 'the largest layer', 40_000);
  assert.equal((await playerData(page)).sessions, '1');
  t.diagnostic(`widths on the way: ${[...seen].join(', ')}`);
});

test('chromium plays video and audio of firefox in VP8', (t) =>
  seesAndHears(t, { from: fox, to: viewer, codec: 'VP8', stream: 'studio/fox' }));

test('a browser that publishes learns that it may send more', async (t) => {
  const page = await sender.newPage();
  t.after(() => page.close());
  await page.evaluateOnNewDocument(() => {
    window.connections = [];
    window.RTCPeerConnection = class extends RTCPeerConnection {
      constructor(...args) {
        super(...args);
        window.connections.push(this);
      }
    };
  });
  await page.goto(`${gateway.origin}/publish/raising?auto=camera&bitrate=2500#token=${PUBLISH_TOKEN}`);
  await page.click('#go');
  const estimate = () => page.evaluate(async () => {
    const reports = await window.connections[0]?.getStats() ?? new Map();
    const pair = [...reports.values()].find((r) => r.type === 'candidate-pair' && r.nominated);
    return pair?.availableOutgoingBitrate ?? 0;
  });
  // Without transport-wide feedback Chromium stays at the 300 kbit/s with which it begins.
  const reached = await until(estimate, (bitrate) => bitrate > 2_000_000, 'an estimate above 2 Mbit/s');
  t.diagnostic(`${Math.round(reached / 1000)} kbit/s`);
});

test('a viewer who comes first waits and then sees the stream begin', async (t) => {
  const page = await watch(viewer, gateway, 'early');
  t.after(() => page.close());
  const waiting = await until(() => playerData(page), (data) => data.state === 'waiting', 'the player to wait');
  assert.equal(waiting.status, '409');

  const publisher = await publish(sender, gateway, 'early');
  t.after(() => publisher.close());
  await plays(page);
});

test('a viewer keeps the session while the publisher leaves and returns', async (t) => {
  const publisher = await publish(sender, gateway, 'returning');
  t.after(() => publisher.close());
  await isLive(publisher);
  const page = await watch(viewer, gateway, 'returning');
  t.after(() => page.close());
  const before = await plays(page);

  await publisher.click('#stop');
  await until(() => playerData(page), (data) => data.state === 'paused', 'the player to notice the pause');
  await publisher.click('#go');
  await isLive(publisher);

  const after = await plays(page);
  assert.equal(after.sessions, '1');
  assert.ok(Number(after.frames) > Number(before.frames), 'the frame counter of the same session goes on');
});

test('closing the publish page ends the publication at once', async (t) => {
  const publisher = await publish(sender, gateway, 'closing');
  await isLive(publisher);
  const page = await watch(viewer, gateway, 'closing');
  t.after(() => page.close());
  await plays(page);

  await publisher.close({ runBeforeUnload: true });
  await until(() => playerData(page), (data) => data.state === 'paused', 'the player to notice the pause', 6_000);
});

test('publisher and viewer come back by themselves after the gateway was killed', async (t) => {
  let other = await startGateway();
  t.after(() => other.stop());
  const publisher = await publish(sender, other, 'phoenix');
  t.after(() => publisher.close());
  await isLive(publisher);
  const page = await watch(viewer, other, 'phoenix');
  t.after(() => page.close());
  await plays(page);

  await other.stop('SIGKILL');
  await until(() => playerData(page), (data) => data.state === 'retrying', 'the player to retry', 30_000);
  await until(() => pageData(publisher), (data) => data.state === 'retrying', 'the publisher to retry', 30_000);
  other = await startGateway({
    MILLSTREAM_HTTP__LISTEN: other.http,
    MILLSTREAM_WEBRTC__LISTEN: other.webrtc,
  });

  const data = await plays(page, 20, 40_000);
  assert.equal(data.sessions, '2');
  assert.equal((await pageData(publisher)).sessions, '2');
});
