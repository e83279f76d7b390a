// Texts of the player, without a browser.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { explain, explainHls, unsupported } from '../../player/messages.js';
import { blocked, PathLost, Refusal } from '../../player/session.js';

const answer = (...candidates) => candidates.map((candidate) => `a=candidate:${candidate}\r\n`).join('');

test('a port that seems blocked is named with its transports and addresses', () => {
  const both = blocked(answer(
    '1 1 udp 2130706431 192.0.2.1 8189 typ host',
    '2 1 udp 2130706430 2001:db8::1 8189 typ host',
    '3 1 tcp 1671430143 192.0.2.1 8189 typ host tcptype passive',
  ));
  assert.equal(both.message, 'No media connection: UDP/TCP port 8189 seems blocked');
  assert.deepEqual(both.addresses, ['192.0.2.1:8189', '[2001:db8::1]:8189']);
  assert.deepEqual(explain('retrying', both, false), [both.message, 'Tried 192.0.2.1:8189, [2001:db8::1]:8189. Retrying.']);
  assert.equal(explainHls('connection', both), both.message);
  const udp = blocked(answer('1 1 UDP 2130706431 192.0.2.1 8189 typ host', '1 1 UDP 1 192.0.2.1 443 typ host'));
  assert.equal(udp.message, 'No media connection: UDP ports 8189, 443 seem blocked');
  assert.equal(blocked('v=0\r\n').message, 'The media connection could not be established.');
});

test('other failures are explained as what they are', () => {
  assert.deepEqual(explain('retrying', new PathLost('The connection was lost.'), true), ['Reconnecting…', 'The connection was lost.']);
  assert.deepEqual(explain('retrying', new Error('x'), true), ['Reconnecting…', 'The gateway cannot be reached.']);
  assert.deepEqual(explain('retrying', new Refusal(502, 'a proxy'), true), ['Reconnecting…', 'a proxy']);
  assert.equal(explain('failed', new Refusal(401), false)[0], 'Enter the playback token');
  assert.equal(explain('waiting', new Refusal(409), true), undefined);
  assert.equal(explain('paused', null, false)[0], 'Waiting for the stream');
  assert.equal(explainHls('codec', null), 'codec not supported over WebRTC');
  assert.equal(explainHls('connection', null), 'no connection over WebRTC');
  assert.equal(unsupported('H265'), 'This stream is H.265, which your browser cannot play: audio only');
  assert.equal(unsupported('VP8', true), 'This stream is VP8, which HLS does not carry: audio only');
  assert.equal(unsupported('JPEG'), 'This stream is Motion JPEG, which your browser cannot play: audio only');
});
