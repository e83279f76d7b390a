// A browser that has no decoder for the video of a stream over WebRTC, and one over HLS: Firefox without its H.264 plugin.

import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { chromium, firefox, isLive, open, playerData, publish, shownByPlayer, skip, startGateway, until, watch } from './harness.js';

let gateway, sender, fox;

before(async () => {
  gateway = await startGateway();
  sender = await chromium();
  fox = await firefox();
});

after(async () => {
  await Promise.allSettled([sender?.close(), fox?.close()]);
  await gateway?.stop();
});

/** What the browser can decode. */
const decodes = (page) =>
  page.evaluate(() => ({
    webrtc: RTCRtpReceiver.getCapabilities('video').codecs.some(({ mimeType }) => mimeType === 'video/H264'),
    hls: MediaSource.isTypeSupported('video/mp4; codecs="avc1.42c01f"'),
  }));

const flows = (frames) => (data) => data.way === 'hls' && data.state === 'playing' && Number(data.frames) > frames;

test('firefox without H.264 over WebRTC sees an H.264 stream by HLS', async (t) => {
  const publisher = await publish(sender, gateway, 'h264', { codec: 'H264' });
  t.after(() => publisher.close());
  await isLive(publisher);
  const begun = Date.now();
  const page = await watch(fox, gateway, 'h264');
  t.after(() => page.close());
  const isShown = ({ way, width, live }) => way === 'hls' && width > 0 && live;
  if (!(await decodes(page)).webrtc) {
    await until(() => shownByPlayer(page), isShown, 'the first frame by HLS', 40_000);
    t.diagnostic(`first frame by HLS ${Date.now() - begun} ms after the page was requested`);
  }
  const can = await decodes(page);
  if (can.webrtc || !can.hls) return skip(t, `H.264 by WebRTC: ${can.webrtc}, by HLS: ${can.hls}`);
  const data = await until(() => shownByPlayer(page), flows(40), 'the video by HLS', 40_000);
  assert.equal(data.why, 'codec');
  assert.ok(data.width > 0 && data.live, JSON.stringify(data));
  assert.match(data.transport, /^HLS fallback, \d\.\d s latency$/);
  if (process.env.SCREENSHOTS) await page.screenshot({ path: `${process.env.SCREENSHOTS}/codec-hls.png` });
  // The session with audio alone is over: nobody is counted twice.
  const { frames } = await shownByPlayer(page);
  await until(() => shownByPlayer(page), (now) => Number(now.frames) > Number(frames) + 60, 'it to play on');
  assert.equal((await shownByPlayer(page)).sessions, '1');
  assert.deepEqual(page.faults, []);
});

test('where HLS is forbidden, the audio of a stream whose video has no decoder is played, and the stream is not called live', async (t) => {
  const publisher = await publish(sender, gateway, 'audible', { codec: 'H264' });
  t.after(() => publisher.close());
  await isLive(publisher);
  const page = await open(fox, `${gateway.origin}/watch/audible?way=webrtc`);
  t.after(() => page.close());
  if ((await decodes(page)).webrtc) return skip(t, 'this Firefox decodes H.264 over WebRTC');
  const data = await until(() => shownByPlayer(page), ({ hint }) => hint !== '', 'the player to say why', 20_000);
  assert.equal(data.hint, 'The video of this stream is H.264, which your browser cannot play: only the audio is played');
  assert.deepEqual([data.state, data.live, data.missing], ['paused', false, 'H264']);
  const arrives = () => page.evaluate(async () => {
    const { client } = document.querySelector('millstream-player');
    return (await client.statistics())?.audioPackets ?? 0;
  });
  const before = await arrives();
  await until(arrives, (packets) => packets > before + 50, 'the audio to go on');
  if (process.env.SCREENSHOTS) await page.screenshot({ path: `${process.env.SCREENSHOTS}/codec-missing.png` });
  assert.equal((await shownByPlayer(page)).live, false);
});

test('a stream that changes to a codec without a decoder is seen by HLS, and by WebRTC when it changes back', async (t) => {
  const vp8 = await publish(sender, gateway, 'changes', { codec: 'VP8' });
  t.after(() => vp8.close());
  await isLive(vp8);
  const page = await watch(fox, gateway, 'changes');
  t.after(() => page.close());
  const can = await decodes(page);
  if (can.webrtc || !can.hls) return skip(t, `H.264 by WebRTC: ${can.webrtc}, by HLS: ${can.hls}`);
  const byWebRtc = ({ way, state, frames }) => way === 'webrtc' && state === 'playing' && Number(frames) > 20;
  await until(() => playerData(page), byWebRtc, 'VP8 by WebRTC');
  const h264 = await publish(sender, gateway, 'changes', { codec: 'H264' });
  t.after(() => h264.close());
  await until(() => playerData(page), flows(20), 'H.264 by HLS', 60_000);
  assert.equal((await playerData(page)).why, 'codec');
  await vp8.bringToFront();
  await vp8.click('#take-back');
  await until(() => playerData(page), byWebRtc, 'VP8 by WebRTC again', 60_000);
});
