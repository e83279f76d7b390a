// The TURN server of `deploy/compose.yaml` reaches the gateway and nothing else.

import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { readFileSync } from 'node:fs';
import path from 'node:path';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { startRelay } from './compose.js';
import { PROJECT } from './harness.js';
import { Relay, credentials } from './turn.js';

const STRANGER = fileURLToPath(new URL('stranger.js', import.meta.url));
const UNAUTHORIZED = 401;
const FORBIDDEN = 403;
const UNSUPPORTED_TRANSPORT = 442;
const QUOTA_REACHED = 486;

test('a stranger with credentials of a session reaches the gateway through the relay, and nobody else', async () => {
  const own = process.getuid() === 0 ? ['--net'] : ['--net', '--map-root-user'];
  const { stdout } = await promisify(execFile)('unshare', [...own, process.execPath, STRANGER]);
  const seen = JSON.parse(stdout);
  // Credentials come with a session only, and are valid for an hour at most.
  assert.deepEqual(seen.withoutSession, [[200, false], [200, false], [409, false], [400, false]]);
  assert.ok(seen.expires > 0 && seen.expires <= 3_600, `${seen.expires} s`);
  assert.ok(seen.name.length > 0, 'a quota is counted by the name behind the time');
  assert.equal(seen.allocated, 'ok');
  const { '10.9.0.1': gateway, ...others } = seen.permits;
  assert.equal(gateway, 'ok');
  assert.deepEqual(new Set(Object.values(others)), new Set([FORBIDDEN]), JSON.stringify(others));
  assert.deepEqual(seen.through, ['from 10.9.0.1']);
  assert.equal(seen.tcp, UNSUPPORTED_TRANSPORT);
  const granted = seen.more.filter((answer) => answer === 'ok').length;
  assert.ok(granted >= 4 && granted < 20, `${granted} more allocations`);
  assert.deepEqual(new Set(seen.more.slice(granted)), new Set([QUOTA_REACHED]));
});

test('a relayed path outlives the credentials that it was begun with, and a new one needs new ones', async (t) => {
  const secret = 'shared-with-the-relay';
  const server = await startRelay('127.0.0.1', secret);
  t.after(() => server.stop());
  const reach = (seconds) => {
    const relay = new Relay({ host: '127.0.0.1', port: server.port, ...credentials(secret, seconds, 'name') });
    t.after(() => relay.close());
    return relay;
  };
  const relay = reach(5);
  assert.equal(await relay.allocate(), 'ok');
  await new Promise((resolve) => setTimeout(resolve, 7_000));
  assert.equal(await relay.refresh(), 'ok');
  assert.equal(await reach(-2).allocate(), UNAUTHORIZED);
});

test('peers of both families are denied in the file and in its description', () => {
  for (const file of ['deploy/compose.yaml', 'docs/configuration.md']) {
    const text = readFileSync(path.join(PROJECT, file), 'utf8');
    for (const flag of [
      '--denied-peer-ip=0.0.0.0-255.255.255.255',
      '--denied-peer-ip=::-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff',
      '--no-tcp-relay',
      '--allowed-peer-ip=',
      '--user-quota=',
      '--total-quota=',
    ]) {
      assert.ok(text.includes(flag), `${flag} in ${file}`);
    }
  }
});
