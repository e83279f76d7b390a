// A viewer in a network of its own, whose address changes under it as behind a NAT that forgets: the session goes on.

import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { test } from 'node:test';
import {
  addNamespace,
  chromiumInNamespace,
  open,
  playerData,
  plays,
  portOf,
  runInNamespace,
  skip,
  startGateway,
  undoing,
  until,
} from './harness.js';

const NAME = `ms${process.pid}`;
const [GATEWAY, FIRST, SECOND] = ['10.213.7.1', '10.213.7.2', '10.213.7.3'];

/** From here on what comes from the first address comes from the second one, and answers find their way back. */
function move() {
  const rules = `
    table ip moved {
      chain out { type filter hook output priority raw; udp sport 1-65535 ip saddr ${FIRST} notrack ip saddr set ${SECOND} counter; }
      chain in { type filter hook prerouting priority raw; meta l4proto udp ip daddr ${SECOND} notrack ip daddr set ${FIRST} counter; }
    }`;
  execFileSync('ip', ['netns', 'exec', NAME, 'nft', '-f', '-'], { input: rules });
}

// C-14.
test('a session goes on when the address of its viewer changes', async (t) => {
  const undo = undoing(t);
  addNamespace(undo, NAME, GATEWAY, FIRST, SECOND);
  try {
    runInNamespace(NAME, 'nft', 'list', 'ruleset');
  } catch (error) {
    return skip(t, `this kernel has no nf_tables: ${error.stderr}`);
  }
  const gateway = await startGateway(
    { MILLSTREAM_HTTP__LISTEN: `${GATEWAY}:0`, MILLSTREAM_WEBRTC__LISTEN: `${GATEWAY}:0`, MILLSTREAM_WEBRTC__TCP: 'false' },
    '--demo',
  );
  undo(() => gateway.stop());
  const browser = await chromiumInNamespace(undo, NAME);
  const origin = `http://${GATEWAY}:${portOf(gateway.http)}`;
  const page = await open(browser, `${origin}/watch/demo`);
  await plays(page, 30);
  const log = () => gateway.log.join('\n');
  assert.match(log(), new RegExp(`viewer connected.*${FIRST.replaceAll('.', '\\.')}|${FIRST.replaceAll('.', '\\.')}.*viewer connected`));
  const before = await playerData(page);
  move();
  const after = await until(
    () => playerData(page),
    ({ frames }) => Number(frames) > Number(before.frames) + 150,
    'the video to go on from the other address',
    30_000,
  );
  assert.equal(after.sessions, '1');
  assert.equal(after.way, 'webrtc');
  const counted = [...runInNamespace(NAME, 'nft', 'list', 'ruleset').matchAll(/counter packets (\d+)/g)].map(([, packets]) => Number(packets));
  assert.equal(counted.length, 2);
  // Checks and reports one way, media the other.
  assert.ok(counted[0] > 10 && counted[1] > 200, `${counted} packets by the other address`);
  const frozen = await page.evaluate(async () => {
    const report = await document.querySelector('millstream-player').client.connection.getStats();
    return [...report.values()].find((s) => s.type === 'inbound-rtp' && s.kind === 'video')?.totalFreezesDuration;
  });
  t.diagnostic(`frozen for ${(frozen * 1_000).toFixed(0)} ms`);
});
