// Reads `deploy/compose.yaml`, so that tests start services with its settings.

import { spawn } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { connect, createServer } from 'node:net';
import path from 'node:path';
import { PROJECT, until } from './harness.js';

/** Returns the lines of a list or map of a service, with its variables replaced. */
export function ofService(service, key, variables) {
  const lines = readFileSync(path.join(PROJECT, 'deploy/compose.yaml'), 'utf8').split('\n');
  const from = lines.indexOf(`  ${service}:`);
  const begin = lines.indexOf(`    ${key}:`, from) + 1;
  const end = lines.findIndex((line, at) => at >= begin && !line.startsWith('      '));
  const found = lines.slice(begin, end).map((line) => line.trim()).filter((line) => !line.startsWith('#'));
  if (from < 0 || begin === 0 || found.length === 0) throw new Error(`no ${key} of ${service} in the compose file`);
  return found.map((line) => line.replaceAll(/\$\{(\w+)[^}]*\}/g, (_, name) => variables[name]));
}

/** Returns the arguments of coturn. */
export const relayFlags = (variables) => ofService('coturn', 'command', variables).map((line) => line.replace(/^- /, ''));

/** Starts coturn with the flags of the compose file, on a free port, with this secret. */
export async function startRelay(address, secret) {
  const port = await freePort(address);
  const flags = relayFlags({ ADDRESS: address, TURN_SECRET: secret }).filter((flag) => !/^--(listening|min|max)-port/.test(flag));
  const child = spawn(
    'turnserver',
    [
      ...flags, '--listening-ip', address, '--relay-ip', address, '--listening-port', String(port),
      '--allow-loopback-peers', '--log-file', 'stdout', '--pidfile', '/dev/null',
    ],
    { stdio: ['ignore', 'pipe', 'pipe'] },
  );
  const exited = new Promise((resolve) => child.once('exit', resolve));
  child.stdout.resume();
  child.stderr.resume();
  await until(() => answers(address, port), Boolean, 'the relay to listen');
  return {
    port,
    async stop() {
      child.kill();
      await exited;
    },
  };
}

const freePort = (address) =>
  new Promise((resolve) => {
    const server = createServer().listen(0, address, () => {
      const { port } = server.address();
      server.close(() => resolve(port));
    });
  });

/** Returns whether a TCP port accepts connections. */
export const answers = (address, port) =>
  new Promise((resolve) => {
    const socket = connect(port, address, () => {
      socket.destroy();
      resolve(true);
    });
    socket.once('error', () => resolve(false));
  });
