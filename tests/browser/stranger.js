// Prints, as JSON, what a stranger can reach through the gateway and the relay of `deploy/compose.yaml`, both started with
// the settings of that file. Runs in a network namespace: `unshare --net node stranger.js`, started by `relay.test.js`.

import { execFileSync, spawn } from 'node:child_process';
import { createSocket } from 'node:dgram';
import { readFileSync } from 'node:fs';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { answers, ofService, relayFlags } from './compose.js';
import { PROJECT, portOf, startGateway, until } from './harness.js';
import { Relay, TCP } from './turn.js';

/** The host of the compose file, another host in its network, and the metadata address of many clouds. */
const [ADDRESS, INNER, METADATA] = ['10.9.0.1', '10.9.0.2', '169.254.169.254'];
const VARIABLES = {
  ADDRESS,
  PUBLISH_TOKEN: 'of-the-publisher',
  API_TOKEN: 'of-the-api',
  MONITORING_TOKEN: 'of-the-monitoring',
  TURN_SECRET: 'of-the-relay',
};
const ECHO_PORT = 5_353;
const TURN_PORT = 3_478;
const OFFER = readFileSync(path.join(PROJECT, 'tests/data/offers/chromium-156-recvonly.sdp'));

const folder = await mkdtemp(path.join(tmpdir(), 'millstream-stranger-'));
const cleanup = [() => rm(folder, { recursive: true, force: true })];
try {
  console.log(JSON.stringify(await probe()));
} finally {
  for (const step of cleanup.reverse()) await step();
}

async function probe() {
  makeNetwork();
  [ADDRESS, INNER, METADATA].forEach(echo);
  const gateway = await startCompose();
  const origin = `http://${ADDRESS}:${portOf(gateway.http)}`;
  const post = (stream, body) =>
    fetch(`${origin}/whep/${stream}`, { method: 'POST', headers: { 'Content-Type': 'application/sdp' }, body });
  const accepted = await until(() => post('demo', OFFER), ({ status }) => status === 201, 'the test pattern', 60_000);
  const others = [
    await fetch(`${origin}/whep/demo`, { method: 'OPTIONS' }),
    await fetch(`${origin}/whep/nothing`, { method: 'OPTIONS' }),
    await post('nothing', OFFER),
    await post('demo', 'v=0\r\n'),
  ];
  const link = accepted.headers.get('Link');
  const [, username, password] = /username="(.*?)"; credential="(.*?)"/.exec(link);
  return {
    expires: Number(username.split(':')[0]) - Math.floor(Date.now() / 1_000),
    name: username.split(':')[1] ?? '',
    withoutSession: others.map(({ status, headers }) => [status, /credential/.test(headers.get('Link') ?? '')]),
    ...(await relayed({ host: ADDRESS, port: TURN_PORT, username, password })),
  };
}

async function relayed(options) {
  const relay = new Relay(options);
  cleanup.push(() => relay.close());
  const allocated = await relay.allocate();
  const permits = {};
  for (const peer of [ADDRESS, INNER, METADATA, '127.0.0.1', '192.0.2.1', '224.0.0.1']) permits[peer] = await relay.permit(peer);
  await until(
    () => {
      for (const peer of [INNER, METADATA, ADDRESS]) relay.send(peer, ECHO_PORT, 'hello');
      return relay.received;
    },
    (received) => received.length > 4,
    'answers through the relay',
  );
  const byTcp = new Relay({ ...options, by: 'tcp' });
  cleanup.push(() => byTcp.close());
  const tcp = await byTcp.allocate(TCP);
  const more = [];
  for (let number = 0; number < 20; number += 1) {
    const another = new Relay(options);
    cleanup.push(() => another.close());
    more.push(await another.allocate());
  }
  return { allocated, permits, through: [...new Set(relay.received)], tcp, more };
}

function makeNetwork() {
  const ip = (line) => execFileSync('ip', line.split(' '));
  ip('link set lo up');
  ip('link add outer type veth peer name inner');
  for (const address of [`${ADDRESS}/24`, `${INNER}/24`, `${METADATA}/32`]) ip(`address add ${address} dev outer`);
  ip('link set outer up');
  ip('link set inner up');
}

/** Answers each datagram with the address that received it. */
function echo(address) {
  const socket = createSocket('udp4').bind(ECHO_PORT, address);
  socket.on('message', (_, from) => socket.send(`from ${address}`, from.port, from.address));
  cleanup.push(() => socket.close());
}

async function startCompose() {
  const environment = ofService('millstream', 'environment', VARIABLES).map((line) => {
    const [, name, value] = /^(\w+): "?(.*?)"?$/.exec(line);
    return [name, value];
  });
  const listen = { MILLSTREAM_HTTP__LISTEN: `${ADDRESS}:0`, MILLSTREAM_WEBRTC__LISTEN: `${ADDRESS}:0` };
  const gateway = await startGateway({ ...Object.fromEntries(environment), ...listen }, '--demo');
  cleanup.push(() => gateway.stop());
  const more = ['--log-file=stdout', `--pidfile=${folder}/pid`, `--userdb=${folder}/users`];
  const child = spawn('turnserver', [...relayFlags(VARIABLES), ...more], { stdio: 'ignore' });
  const exited = new Promise((resolve) => child.once('exit', resolve));
  cleanup.push(() => {
    child.kill();
    return exited;
  });
  await until(() => answers(ADDRESS, TURN_PORT), Boolean, 'the relay to listen');
  return gateway;
}
