// A person who has never seen Millstream: from the command to the own camera in the watch page, step by step as the README
// says, with what the gateway prints and nothing else. Each test prints the number of steps and the time that they took.
//
// NEWCOMER is the command that starts the gateway instead of the program that the tests build, as in
// `NEWCOMER="make run"` in a fresh clone, or a `docker run`.

import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { createSocket } from 'node:dgram';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import net from 'node:net';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { createInterface } from 'node:readline';
import { test } from 'node:test';
import { addNamespace, BINARY, chromium, chromiumInNamespace, isLive, open, plays, PROJECT, run, undoing, until } from './harness.js';

/** A build from nothing on two cores, and packages to install. */
const START_WITHIN = 45 * 60_000;

/** What the gateway prints, as a person reads it in the terminal. */
async function start(undo, command, args, options = {}) {
  // In a group of its own: `make` and `docker` start others.
  const child = spawn(command, args, { stdio: ['ignore', 'pipe', 'pipe'], detached: true, ...options });
  const lines = [];
  const exited = new Promise((resolve) => child.once('exit', resolve));
  for (const stream of [child.stdout, child.stderr]) {
    createInterface({ input: stream }).on('line', (line) => lines.push(line));
  }
  const stop = async () => {
    try {
      process.kill(-child.pid, 'SIGTERM');
    } catch {
      // It has ended.
    }
    await exited;
  };
  undo(stop);
  let code;
  exited.then((left) => (code = left ?? 'a signal'));
  const said = (pattern) => lines.map((line) => pattern.exec(line)?.[1]).find(Boolean);
  await until(
    () => code === undefined && said(/^\s*Bearer Token\s+(\S+)/),
    (token) => token || code !== undefined,
    `the token in what it prints: ${lines.join('\n')}`,
    START_WITHIN,
  );
  assert.equal(code, undefined, lines.join('\n'));
  return {
    token: said(/^\s*Bearer Token\s+(\S+)/),
    publish: said(/^\s*Publish\s+(\S+)/),
    watch: said(/^\s*Watch\s+(\S+)/),
    lines,
    stop,
  };
}

/** Steps of a person, and when they began. */
class Steps {
  #begun = performance.now();
  #names = [];

  async take(name, work) {
    this.#names.push(name);
    return work();
  }

  report(where) {
    const seconds = ((performance.now() - this.#begun) / 1000).toFixed(1);
    return `${where}: ${this.#names.length} steps, ${seconds} s: ${this.#names.join('; ')}`;
  }
}

/** From what is printed to the own camera in the watch page. */
async function publishAndWatch(steps, browser, printed) {
  const studio = await steps.take('open the publish page that is printed', () => open(browser, printed.publish));
  await steps.take('paste the token that is printed', () => studio.type('input[name=token]', printed.token));
  await steps.take('press "Go live"', () => studio.click('#go'));
  await isLive(studio);
  const page = await steps.take('open the watch page that is printed', () => open(browser, printed.watch));
  await plays(page, 30);
  const { width, height } = await page.evaluate(() => {
    const { videoWidth: width, videoHeight: height } = document.querySelector('millstream-player').video;
    return { width, height };
  });
  assert.ok(width > 0 && height > 0);
  assert.deepEqual([...studio.faults, ...page.faults], []);
}

test('a laptop: the own camera in the watch page', async (t) => {
  const undo = undoing(t);
  const steps = new Steps();
  const { NEWCOMER, ...env } = process.env;
  const printed = await steps.take(NEWCOMER ?? 'millstream serve', () =>
    NEWCOMER
      ? start(undo, 'sh', ['-c', NEWCOMER], { cwd: PROJECT, env })
      : start(undo, BINARY, ['serve'], {
          env: { ...env, MILLSTREAM_HTTP__LISTEN: '127.0.0.1:0', MILLSTREAM_WEBRTC__LISTEN: '127.0.0.1:0' },
        }));
  const begun = performance.now();
  const browser = await chromium();
  undo(() => browser.close());
  await publishAndWatch(steps, browser, printed);
  t.diagnostic(steps.report('laptop'));
  t.diagnostic(`of it from the printed addresses to the video: ${((performance.now() - begun) / 1000).toFixed(1)} s`);
});

const NAME = `nc${process.pid}`;
/** The server in its inner network, its router outside, and a viewer somewhere else. */
const [ROUTER_INSIDE, SERVER] = ['10.213.8.1', '10.213.8.2'];
const [ROUTER_OUTSIDE, VIEWER] = ['10.213.9.1', '10.213.9.2'];

/** A router's forwarding of a TCP port, with translated addresses; 0 takes a free one. */
async function forwardTcp(undo, port) {
  const server = net.createServer((client) => {
    const inner = net.connect(server.address().port, SERVER);
    for (const [from, to] of [[client, inner], [inner, client]]) {
      from.pipe(to);
      from.on('error', () => to.destroy());
      from.on('close', () => to.destroy());
    }
  });
  await new Promise((resolve, reject) => {
    server.once('error', reject);
    server.listen(port, ROUTER_OUTSIDE, resolve);
  });
  undo(() => server.close());
  return server.address().port;
}

/** The same of a UDP port: each client has a port of the router's inner side. */
async function forwardUdp(undo, port) {
  const outer = createSocket('udp4');
  const inner = new Map();
  outer.on('message', (message, { address, port: from }) => {
    const key = `${address}:${from}`;
    if (!inner.has(key)) {
      const socket = createSocket('udp4');
      socket.on('message', (answer) => outer.send(answer, from, address));
      inner.set(key, socket);
    }
    inner.get(key).send(message, port, SERVER);
  });
  await new Promise((resolve, reject) => {
    outer.once('error', reject);
    outer.bind(port, ROUTER_OUTSIDE, resolve);
  });
  undo(() => {
    outer.close();
    inner.forEach((socket) => socket.close());
  });
  return { clients: () => inner.size };
}

// As docs/deployment.md says.
test('a server behind NAT: the own camera in the watch page, from outside', async (t) => {
  const undo = undoing(t);
  addNamespace(undo, `${NAME}s`, ROUTER_INSIDE, SERVER);
  addNamespace(undo, `${NAME}v`, ROUTER_OUTSIDE, VIEWER);
  const folder = await mkdtemp(path.join(tmpdir(), 'millstream-newcomer-'));
  undo(() => rm(folder, { recursive: true, force: true }));
  const steps = new Steps();
  const certificate = path.join(folder, 'cert.pem');
  const key = path.join(folder, 'key.pem');
  await steps.take('get a certificate', () =>
    run('openssl', 'req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes', '-days', '30',
      '-subj', '/CN=newcomer', '-addext', `subjectAltName=IP:${ROUTER_OUTSIDE}`, '-keyout', key, '-out', certificate));
  const config = path.join(folder, 'millstream.toml');
  let [http, media, udp] = [0, 0, null];
  await steps.take('forward the HTTP port, and the media port as UDP and TCP, in the router', async () => {
    http = await forwardTcp(undo, 0);
    media = await forwardTcp(undo, 0);
    udp = await forwardUdp(undo, media);
  });
  await steps.take('write the announced address and the certificate into millstream.toml', () =>
    writeFile(config, `[http]\nlisten = "[::]:${http}"\ntls_certificate = "${certificate}"\ntls_key = "${key}"\n`
      + `[webrtc]\nlisten = "[::]:${media}"\nannounce = ["${ROUTER_OUTSIDE}"]\n`));
  const inside = ['netns', 'exec', `${NAME}s`, BINARY];
  const printed = await steps.take('millstream serve', () => start(undo, 'ip', [...inside, 'serve', '--config', config]));
  assert.equal(run('ip', ...inside, 'health', '--config', config), 'healthy\n');
  assert.equal(printed.publish, `https://${ROUTER_OUTSIDE}:${http}/publish/live`);

  const browser = await chromiumInNamespace(undo, `${NAME}v`, { more: ['--ignore-certificate-errors'] });
  await publishAndWatch(steps, browser, printed);
  // Media came through the router too: the publisher's and the viewer's.
  assert.ok(udp.clients() >= 2, `${udp.clients()} clients by UDP`);
  t.diagnostic(steps.report('server behind NAT'));
});
