// Texts of the player, without a browser.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { DelayReport } from '../../player/delay-report.js';
import { QualityLimit } from '../../player/limit.js';
import { autoName, explain, explainHls, explainLimit, unsupported } from '../../player/messages.js';
import { blocked, PathLost, Refusal } from '../../player/session.js';
import { Statistics } from '../../player/statistics.js';

const answer = (...candidates) => candidates.map((candidate) => `a=candidate:${candidate}\r\n`).join('');

test('a port that seems blocked is named with its transports and addresses', () => {
  const both = blocked(answer(
    '1 1 udp 2130706431 192.0.2.1 8189 typ host',
    '2 1 udp 2130706430 2001:db8::1 8189 typ host',
    '3 1 tcp 1671430143 192.0.2.1 8189 typ host tcptype passive',
  ));
  assert.equal(both.message, 'No media connection: UDP/TCP port 8189 seems blocked');
  assert.deepEqual(both.addresses, ['192.0.2.1:8189', '[2001:db8::1]:8189']);
  assert.deepEqual(explain('retrying', both, false), [both.message, "None of the gateway's addresses could be reached: 192.0.2.1:8189, [2001:db8::1]:8189. This page keeps trying."]);
  assert.equal(explainHls('connection', both), both.message);
  const udp = blocked(answer('1 1 UDP 2130706431 192.0.2.1 8189 typ host', '1 1 UDP 1 192.0.2.1 443 typ host'));
  assert.equal(udp.message, 'No media connection: UDP ports 8189, 443 seem blocked');
  assert.equal(blocked('v=0\r\n').message, 'The media connection could not be established.');
});

test('other failures are explained as what they are', () => {
  assert.deepEqual(explain('retrying', new PathLost('The media connection was lost.'), true), ['Reconnecting…', 'The media connection was lost.']);
  assert.deepEqual(explain('retrying', new Error('x'), true), ['Reconnecting…', 'The gateway cannot be reached.']);
  assert.deepEqual(explain('retrying', new Refusal(502, 'a proxy'), true), ['Reconnecting…', 'a proxy']);
  assert.equal(explain('failed', new Refusal(401), false)[0], 'Enter the playback token');
  assert.equal(explain('waiting', new Refusal(409), true), undefined);
  assert.equal(explain('paused', null, false)[0], 'Waiting for the stream');
  assert.equal(explainHls('codec', null), 'this browser cannot play the codec of the stream over WebRTC');
  assert.equal(explainHls('connection', null), 'WebRTC did not connect');
  assert.equal(unsupported('H265'), 'The video of this stream is H.265, which your browser cannot play: only the audio is played');
  assert.equal(unsupported('VP8', true), 'The video of this stream is VP8, which HLS does not support: only the audio is played');
  assert.equal(unsupported('JPEG'), 'The video of this stream is Motion JPEG, which your browser cannot play: only the audio is played');
});

const LAYERS = [{ rid: 'f', bitrate: 2_500_000 }, { rid: 'h', bitrate: 500_000 }, { rid: 'q', bitrate: 150_000 }];
const NAMES = { f: '720p', h: '360p', q: '180p' };

/** What the player says after these events, `[at, layer, video, limitation, bitrate]`. */
function saidAfter(events, at, { isSelected = false, hasAudio = true, layers = LAYERS } = {}) {
  const limit = new QualityLimit();
  for (const [from, layer, video, limitation, bitrate] of events) {
    const quality = { layer, video, limitation, bitrate };
    // It is updated all the time, and the bitrates of layers change.
    for (const at of [from, from + 250]) limit.update(quality, layers, at);
  }
  const report = limit.report(isSelected, at);
  return explainLimit(report, { shown: NAMES[report?.rid], best: '720p', hasAudio });
}

test('a quality that the path limits is explained with what the path carries, if that is known', () => {
  const best = [0, 'f', 'all', 'none', 2_400_000];
  const down = [10_000, 'h', 'all', 'bandwidth', 812_000];
  const carries = 'Your connection allows about 0.8 Mbit/s: showing 360p';
  assert.equal(saidAfter([], 10_000), '');
  assert.equal(saidAfter([best], 10_000), '');
  assert.equal(saidAfter([best, down], 12_000), '', 'for a moment');
  assert.equal(saidAfter([best, down], 13_000), carries);
  assert.equal(saidAfter([best, down, [15_000, 'f', 'all', 'none', 2_400_000]], 20_000), '', 'over');
  // A session starts with the lowest layer: what arrives says nothing of the path.
  const start = [0, 'q', 'all', 'bandwidth', 140_000];
  assert.equal(saidAfter([start], 2_000), '');
  assert.equal(saidAfter([start], 3_000), 'Your connection is too slow for 720p: showing 180p');
  assert.equal(saidAfter([start, [2_000, 'h', 'all', 'bandwidth', 160_000]], 3_000), 'Your connection is too slow for 720p: showing 360p');
  // A step up within what the path carried changes only the layer; one beyond it shows that the figure is outdated.
  const lowest = [11_000, 'q', 'all', 'bandwidth', 700_000];
  assert.equal(saidAfter([best, down, lowest, [20_000, 'h', 'all', 'bandwidth', 200_000]], 21_000), 'Your connection allows about 0.7 Mbit/s: showing 360p');
  assert.equal(saidAfter([best, [9_000, 'q', 'all', 'bandwidth', 90_000], [20_000, 'h', 'all', 'bandwidth', 160_000]], 21_000), 'Your connection is too slow for 720p: showing 360p');
  assert.equal(saidAfter([best, [9_000, 'q', 'all', 'bandwidth', 90_000]], 21_000), 'Your connection allows about 90 kbit/s: showing 180p');
  // Loss: more arrived than the best layer needs.
  assert.equal(saidAfter([best, [9_000, 'h', 'all', 'bandwidth', 2_600_000]], 21_000), 'Your connection is too slow for 720p: showing 360p');
  assert.equal(saidAfter([best, [9_000, 'h', 'all', 'bandwidth', null]], 21_000), 'Your connection is too slow for 720p: showing 360p');
  // Missing video is reported at once.
  const none = [10_000, 'q', 'none', 'bandwidth', 60_000];
  assert.equal(saidAfter([best, none], 10_000), 'Audio only until your connection is better');
  assert.equal(saidAfter([best, none], 10_000, { hasAudio: false }), 'No video until your connection is better');
  assert.equal(saidAfter([best, [10_000, null, 'reference_frames', 'bandwidth', 900_000]], 10_000, { layers: [] }), 'Fewer frames per second until your connection is better');
  assert.equal(saidAfter([best, [10_000, null, 'key_frames', 'bandwidth', 60_000]], 10_000, { layers: [] }), 'Still pictures only until your connection is better');
});

test('video that is sent again is back when a frame of it is decoded, or is not expected any more', () => {
  const limit = new QualityLimit();
  const event = (video, limitation) => ({ layer: null, video, limitation, bitrate: 60_000 });
  const none = event('none', 'bandwidth');
  const all = event('all', 'none');
  const seen = (quality, at, isInGap) => {
    limit.update(quality, [], at, isInGap);
    return [limit.isWithoutVideo(at), limit.report(false, at)?.video];
  };
  assert.deepEqual(seen(all, 0, true), [false, undefined], 'nothing was withheld');
  assert.deepEqual(seen(none, 1_000, false), [true, 'none']);
  assert.deepEqual(seen(all, 2_000, true), [true, 'none'], 'no frame yet');
  assert.deepEqual(seen(all, 3_000, false), [false, undefined], 'a frame');
  assert.deepEqual(seen(all, 4_000, true), [false, undefined], 'another gap');
  assert.deepEqual(seen(none, 10_000, true), [true, 'none']);
  assert.deepEqual(seen(all, 12_000, true), [true, 'none']);
  assert.deepEqual(seen(all, 16_900, true), [true, 'none']);
  assert.deepEqual(seen(all, 17_000, true), [false, undefined], 'it has other reasons');
  assert.deepEqual(seen(none, 20_000, true), [true, 'none']);
  assert.deepEqual(seen(null, 21_000, true), [false, undefined], 'the session has ended');
});

test('a selected layer, or one that is not known, is not called limited', () => {
  const down = [[0, 'f', 'all', 'none', 2_400_000], [10_000, 'h', 'all', 'bandwidth', 812_000]];
  assert.equal(saidAfter(down, 20_000, { isSelected: true }), '');
  assert.equal(saidAfter(down, 20_000, { layers: [] }), '');
  const none = [10_000, 'h', 'none', 'bandwidth', 60_000];
  assert.equal(saidAfter([down[0], none], 20_000, { isSelected: true }), 'Audio only until your connection is better');
  assert.equal(autoName('360p'), 'Auto (360p)');
  assert.equal(autoName(undefined), 'Auto');
});

/** Frames, six each quarter of a second, each `buffered` seconds in the jitter buffer and 10 ms in the decoder. */
const playedFor = (report, from, seconds, buffered, { session = 1, isWatched = false, frames = 0, sum = 0, isTaken = true, isAudio = false } = {}) => {
  const reports = [];
  for (let quarter = 1; quarter <= seconds * 4; quarter += 1) {
    const [at, count] = [(from + quarter / 4) * 1_000, frames + quarter * 6];
    const played = { buffered: sum + quarter * 6 * buffered, emitted: count, decoding: count * 0.01, decoded: count };
    const before = { buffered: sum, emitted: frames, decoding: frames * 0.01, decoded: frames };
    const playouts = isAudio ? [before, played] : [played, { buffered: undefined, emitted: 0, decoding: 0, decoded: 0 }];
    const due = report.update({ at, playouts }, session, isWatched);
    if (due && isTaken) report.confirm(at, due);
    if (due) reports.push([from + quarter / 4, Math.round(due.jitter_buffer * 1_000), Math.round(due.decoding * 1_000)]);
  }
  return reports;
};

test('a player reports its delay when it changes, and seldom while it stays', () => {
  const report = new DelayReport();
  assert.deepEqual(playedFor(report, 0, 60, 0.05), [[5.25, 50, 10], [35.25, 50, 10]]);
  const watched = new DelayReport();
  assert.deepEqual(playedFor(watched, 0, 16, 0.05, { isWatched: true }).map(([at]) => at), [5.25, 10.25, 15.25]);
  // 200 ms more are a change, 10 ms are none; what comes next is that of the last five seconds alone.
  const changing = new DelayReport();
  playedFor(changing, 0, 10.25, 0.05);
  const before = { frames: 41 * 6, sum: 41 * 6 * 0.05 };
  assert.deepEqual(playedFor(changing, 10.25, 10, 0.25, before), [[20.25, 250, 10]], 'fifteen seconds after the last one');
  const small = { frames: 81 * 6, sum: before.sum + 40 * 6 * 0.25 };
  assert.deepEqual(playedFor(changing, 20.25, 20, 0.26, small), []);
});

test('players that start together do not report together', () => {
  const reports = [0, 0.5, 0.99].map((phase) => playedFor(new DelayReport(phase), 0, 41, 0.05).map(([at]) => at));
  assert.deepEqual(reports, [[5.25, 35.25], [7.75, 37.75], [10.25, 40.25]]);
});

test('a report that the gateway did not take is due again', () => {
  const report = new DelayReport();
  assert.deepEqual(playedFor(report, 0, 40, 0.05, { isTaken: false }).map(([at]) => at), [5.25, 20.25, 35.25]);
  const changing = new DelayReport();
  playedFor(changing, 0, 5.25, 0.05);
  const before = { frames: 21 * 6, sum: 21 * 6 * 0.05 };
  assert.deepEqual(playedFor(changing, 5.25, 25, 0.25, { ...before, isTaken: false }).map(([at]) => at), [20.25]);
  const later = { frames: 121 * 6, sum: before.sum + 100 * 6 * 0.25 };
  assert.deepEqual(playedFor(changing, 30.25, 10, 0.25, later).map(([at]) => at), [35.25]);
});

test('while no video is played, a player reports the delay of the audio', () => {
  const report = new DelayReport();
  const before = { frames: 600, sum: 600 * 0.05, isAudio: true };
  assert.deepEqual(playedFor(report, 0, 6, 0.08, before), [[5.25, 80, 10]]);
});

test('a player reports nothing of the time when nobody saw it, and starts anew with each session', () => {
  const report = new DelayReport();
  assert.equal(playedFor(report, 0, 10, 0.05).length, 1);
  report.pause();
  // Ten seconds of frames waited for the page to be shown.
  const hidden = { frames: 40 * 6 + 250, sum: 40 * 6 * 0.05 + 250 * 10 };
  assert.deepEqual(playedFor(report, 20, 5.25, 0.05, hidden), []);
  assert.deepEqual(playedFor(report, 26, 5.25, 0.05, { session: 2 }), [[31.25, 50, 10]]);
  const nothing = { buffered: undefined, emitted: 0 };
  assert.equal(new DelayReport().update({ at: 0, playouts: [nothing, nothing] }, 1, true), null);
});

test('the panel has the known parts of the delay, and over HLS none', () => {
  const names = (delay, isHls) => {
    const statistics = new Statistics();
    const counts = { frames: 0, bytes: 0, lost: 0, expected: 0, delay };
    statistics.update({ at: 0, ...counts }, isHls);
    const rows = statistics.update({ at: 1_000, ...counts }, isHls);
    return rows.slice(rows.findIndex(([name]) => name === 'Round-trip time') + 1, -1);
  };
  const part = (seconds) => ({ seconds, source: 'measured' });
  const delay = { capture_to_gateway: null, gateway: part(0.001), network: part(0.02), player: part(0.0916), total: 0.1126 };
  assert.deepEqual(names(delay, false), [['Delay', '113 ms'], ['Gateway', '1 ms'], ['Network', '20 ms'], ['Player', '92 ms']]);
  assert.deepEqual(names({ ...delay, total: null }, false), []);
  assert.deepEqual(names(null, false), []);
  assert.deepEqual(names(delay, true), []);
});

test('loss is that of the last seconds, with the total', () => {
  const loss = (statistics, seconds, counts, isHls = false) =>
    statistics.update({ at: seconds * 1_000, frames: seconds * 25, bytes: 0, ...counts }, isHls)?.at(-1);
  const webrtc = new Statistics();
  assert.equal(loss(webrtc, 0, { lost: 100, expected: 1_000 }), undefined);
  assert.deepEqual(loss(webrtc, 1, { lost: 100, expected: 1_200 }), ['Packet loss', '0.0 % (100 total)']);
  assert.equal(loss(webrtc, 1.5, { lost: 100, expected: 1_300 }), undefined, 'once per second');
  assert.deepEqual(loss(webrtc, 2, { lost: 110, expected: 1_400 }), ['Packet loss', '2.5 % (110 total)']);
  for (const second of [3, 4, 5, 6]) loss(webrtc, second, { lost: 110, expected: 1_400 + (second - 2) * 200 });
  assert.deepEqual(loss(webrtc, 7, { lost: 110, expected: 2_400 }), ['Packet loss', '0.0 % (110 total)'], 'it is long ago');
  assert.deepEqual(loss(webrtc, 8, { lost: 105, expected: 2_600 }), ['Packet loss', '0.0 % (105 total)'], 'late packets');
  // Another session, and another transport.
  assert.equal(loss(webrtc, 9, { frames: 0, lost: 0, expected: 0 }), undefined);
  assert.deepEqual(loss(webrtc, 10, { frames: 5, lost: 0, expected: 0 }), ['Packet loss', '0.0 % (0 total)'], 'without packets');
  assert.equal(loss(webrtc, 11, { frames: 5, lost: 0, expected: 5 }, true), undefined);
  assert.deepEqual(loss(webrtc, 12, { frames: 30, lost: 1, expected: 30 }, true), ['Dropped frames', '4.0 % (1 total)']);
});
