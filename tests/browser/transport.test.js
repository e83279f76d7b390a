// Decisions of the player with simulated time: whether a stream is live, and which transport to use. No browser.

import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';

const source = readFileSync(new URL('../../player/transport.js', import.meta.url));
const { chooseTransport, Flow, isLive, LIVE_TIMEOUT, hlsRetryDelay } = await import(`data:text/javascript;base64,${source.toString('base64')}`);

test('a stream with video is live while frames of it are shown, one without while there is audio', () => {
  const at = 100_000;
  const cases = [
    [{ hasVideo: true, frameAt: at - 100, audioAt: 0 }, true],
    [{ hasVideo: true, frameAt: at - 1_999, audioAt: at }, false],
    [{ hasVideo: true, frameAt: 0, audioAt: at }, false],
    [{ hasVideo: false, frameAt: 0, audioAt: at - 100 }, true],
    [{ hasVideo: false, frameAt: 0, audioAt: at - 1_999 }, false],
    [{ hasVideo: false, frameAt: 0, audioAt: 0 }, false],
    // The gateway withholds the video: audio, or a key frame within ten seconds where there is none, is all there is.
    [{ hasVideo: true, isWithoutVideo: true, frameAt: at - 30_000, audioAt: at - 100 }, true],
    [{ hasVideo: true, isWithoutVideo: true, frameAt: at - 5_000, audioAt: at - 5_000 }, false],
    [{ hasVideo: true, isWithoutVideo: true, frameAt: at - 10_000, audioAt: 0 }, true],
    [{ hasVideo: true, isWithoutVideo: true, frameAt: at - 15_000, audioAt: 0 }, false],
    [{ hasVideo: true, isWithoutVideo: true, frameAt: 0, audioAt: 0 }, false],
  ];
  for (const [seen, expected] of cases) assert.equal(isLive(seen, at), expected, JSON.stringify(seen));
  assert.ok(LIVE_TIMEOUT < 2_000, 'it is reported within two seconds');
});

const QUIET = { decoded: true, cut: false, lost: false, undecodable: false };
const WATCHING = {
  setting: 'auto', using: 'webrtc', why: '', session: 'live', granted: true, waited: 60_000, status: undefined,
  pathLost: false, reachable: true, missing: '', flow: QUIET, flowing: 0, stalled: 0, tried: Infinity, failures: 0,
};
const chosen = (view) => {
  const { use, why } = chooseTransport({ ...WATCHING, ...view });
  return why ? `${use} for ${why}` : use;
};

test('HLS is used where WebRTC brings nothing and HLS can bring more, and nowhere else', () => {
  const connecting = { session: 'connecting' };
  const cases = {
    'all is well': [{}, 'webrtc'],
    'a connection that is on its way': [{ ...connecting, waited: 500 }, 'webrtc'],
    'a connection that is not made': [{ ...connecting, waited: 1_000 }, 'hls for connection'],
    'a connection that is not made, for audio alone': [{ ...connecting, waited: 1_000, missing: 'H264' }, 'hls for codec'],
    'a connection for audio alone that is on its way': [{ ...connecting, waited: 500, missing: 'H264' }, 'webrtc'],
    'an offer that waits for a publisher': [{ ...connecting, granted: false, waited: 20_000 }, 'webrtc'],
    'nobody publishes': [{ session: 'retrying', status: 409 }, 'webrtc'],
    'the gateway is busy': [{ session: 'retrying', status: 503 }, 'webrtc'],
    'media does not get through': [{ session: 'retrying', pathLost: true }, 'hls for connection'],
    'the gateway is gone': [{ session: 'retrying' }, 'webrtc'],
    'no codec in common': [{ session: 'retrying', status: 406 }, 'hls for codec'],
    'no codec in common, by another word': [{ session: 'retrying', status: 422 }, 'hls for codec'],
    'a wrong token': [{ session: 'failed', status: 401 }, 'webrtc'],
    // K4.
    'audio alone of a stream with video': [{ missing: 'H264' }, 'hls for codec'],
    'video that no decoder takes': [{ flow: { ...QUIET, decoded: false, undecodable: true } }, 'hls for codec'],
    'video that is decoded no more': [{ flow: { ...QUIET, undecodable: true } }, 'hls for silence'],
    'video that is sent and does not arrive': [{ flow: { ...QUIET, lost: true } }, 'hls for silence'],
    'a path that is cut': [{ flow: { ...QUIET, cut: true } }, 'hls for silence'],
    'a path that is cut, and HTTP too': [{ flow: { ...QUIET, cut: true }, reachable: false }, 'webrtc'],
    'HLS is forbidden': [{ setting: 'off', missing: 'H264' }, 'webrtc'],
    'HLS alone is allowed': [{ setting: 'only', session: 'idle' }, 'hls for chosen'],
    'HLS was tried a moment ago': [{ missing: 'H264', tried: 1_000, failures: 1 }, 'webrtc'],
    'HLS was tried in vain some time ago': [{ missing: 'H264', tried: 3_000, failures: 1 }, 'hls for codec'],
    'HLS was tried in vain often': [{ missing: 'H264', tried: 20_000, failures: 9 }, 'webrtc'],
  };
  for (const [name, [view, expected]] of Object.entries(cases)) assert.equal(chosen(view), expected, name);
  assert.deepEqual([0, 1, 2, 3, 20].map(hlsRetryDelay), [2_000, 2_000, 4_000, 8_000, 30_000]);
});

test('hls.js is loaded while a connection takes long, and not for an offer that waits', () => {
  const prepares = (view) => Boolean(chooseTransport({ ...WATCHING, session: 'connecting', ...view }).prepare);
  assert.deepEqual([200, 600].map((waited) => prepares({ waited })), [false, true]);
  assert.equal(prepares({ waited: 20_000, granted: false }), false);
  // The answer lacks the video: HLS follows as soon as the session is connected.
  assert.equal(prepares({ waited: 10, missing: 'H264' }), true);
});

test('WebRTC is used again once its media flows, and HLS that stands still is given up', () => {
  const hls = { using: 'hls', why: 'silence' };
  const cases = {
    'HLS plays': [hls, 'hls for silence'],
    'WebRTC begins again': [{ ...hls, flowing: 500 }, 'hls for silence'],
    'WebRTC flows again': [{ ...hls, flowing: 800 }, 'webrtc'],
    'WebRTC flows without the video': [{ ...hls, why: 'codec', flowing: 800 }, 'hls for codec'],
    'HLS is in want of a part': [{ ...hls, stalled: 2_000 }, 'hls for silence'],
    'HLS stands still': [{ ...hls, stalled: 9_000 }, 'webrtc'],
    'HLS stands still, and has no codec in common with WebRTC': [{ ...hls, why: 'codec', stalled: 9_000 }, 'webrtc'],
    'HLS alone is allowed': [{ ...hls, setting: 'only', why: 'chosen', flowing: 800 }, 'hls for chosen'],
  };
  for (const [name, [view, expected]] of Object.entries(cases)) assert.equal(chosen(view), expected, name);
});

/** Evaluates a session four times a second for so long; `counts` returns the counts at a time. */
function evaluations(seconds, counts) {
  const flow = new Flow(0);
  const found = [];
  for (let at = 0; at <= seconds * 1_000; at += 250) {
    flow.update({ received: 0, packets: 0, sent: 0, frames: 0, audio: 0, ...counts(at) }, at);
    const { cut, lost, undecodable } = flow.evaluate(at);
    found.push({ cut, lost, undecodable });
  }
  const ever = (name) => found.some((evaluation) => evaluation[name]);
  return { cut: ever('cut'), lost: ever('lost'), undecodable: ever('undecodable') };
}

/** 250 packets and 25 frames a second; reports of the gateway come once a second, a little late. */
const packetsBy = (at) => Math.floor(at / 4);
const reported = (at) => packetsBy(Math.floor((at - 60) / 1_000) * 1_000);
const NOTHING = { cut: false, lost: false, undecodable: false };

test('a source that leaves is no reason for HLS, however long it is away', () => {
  // Reports go on, and count no more.
  const until = (at) => Math.min(at, 10_100);
  const leaves = (at) => ({
    received: Math.floor(at / 1_000), packets: packetsBy(until(at)), frames: Math.floor(until(at) / 40),
    sent: Math.max(0, at > 11_060 ? packetsBy(10_100) : reported(at)), audio: Math.floor(until(at) / 20),
  });
  assert.deepEqual(evaluations(120, leaves), NOTHING);
  // And when it is back after a minute.
  const returns = (at) => (at < 70_000 ? leaves(at) : {
    received: Math.floor(at / 1_000), packets: packetsBy(at - 59_900), frames: Math.floor((at - 59_900) / 40),
    sent: reported(at - 59_900), audio: 0,
  });
  assert.deepEqual(evaluations(120, returns), NOTHING);
});

test('a source that has not sent anything yet is no reason for HLS', () => {
  assert.deepEqual(evaluations(60, (at) => ({ received: Math.floor(at / 2_500) })), NOTHING);
});

test('a camera that is off while its audio goes on is no reason for HLS', () => {
  const off = (at) => ({ received: at, packets: packetsBy(Math.min(at, 5_000)), frames: Math.floor(Math.min(at, 5_000) / 40),
    sent: Math.min(Math.max(0, reported(at)), packetsBy(5_000)), audio: Math.floor(at / 20) });
  assert.deepEqual(evaluations(60, off), NOTHING);
});

test('a path that is cut, one that lets nothing large through, and a decoder that gives up are distinguished', () => {
  const cut = (at) => {
    const until = Math.min(at, 10_000);
    return { received: until, packets: packetsBy(until), frames: Math.floor(until / 40), sent: Math.max(0, reported(until)) };
  };
  assert.deepEqual(evaluations(20, cut), { ...NOTHING, cut: true });
  const small = (at) => ({ received: Math.floor(at / 1_000), sent: Math.max(0, reported(at)) });
  assert.deepEqual(evaluations(20, small), { ...NOTHING, lost: true });
  const undecodable = (at) => ({ received: at, packets: packetsBy(at), sent: Math.max(0, reported(at)) });
  assert.deepEqual(evaluations(20, undecodable), { ...NOTHING, undecodable: true });
});
