// Starts the gateway and the browsers for the tests, and reads the state attributes of pages.

import { execFileSync, spawn } from 'node:child_process';
import { accessSync } from 'node:fs';
import { chmod, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { networkInterfaces, tmpdir } from 'node:os';
import path from 'node:path';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import puppeteer from 'puppeteer-core';

export const PROJECT = fileURLToPath(new URL('../../', import.meta.url));
export const BINARY = path.resolve(PROJECT, process.env.MILLSTREAM_BIN ?? 'target/debug/millstream');

export const PUBLISH_TOKEN = 'publish-token-of-the-tests';

/**
 * A gateway on free ports of this machine, or on those in `env`. Resolves when it listens.
 *
 * Its `origin` is `http://localhost:PORT`: browsers hand out cameras there without TLS. Media goes by the host's own
 * address, because Firefox (ESR 153, whatever `media.peerconnection.ice.loopback` says) tries no loopback candidate.
 */
export async function startGateway(env = {}, ...args) {
  const child = spawn(BINARY, ['serve', ...args], {
    cwd: PROJECT,
    env: {
      ...process.env,
      MILLSTREAM_HTTP__LISTEN: '127.0.0.1:0',
      MILLSTREAM_WEBRTC__LISTEN: `${hostAddress() ?? '127.0.0.1'}:0`,
      MILLSTREAM_AUTH__PUBLISH_TOKEN: PUBLISH_TOKEN,
      MILLSTREAM_LOG__FORMAT: 'json',
      MILLSTREAM_LIMITS__DRAIN_SECONDS: '0',
      ...env,
    },
  });
  /** Tokens, which must not appear in any output of the gateway. */
  const tokens = [PUBLISH_TOKEN, env.MILLSTREAM_AUTH__PLAY_TOKEN, env.MILLSTREAM_AUTH__API_TOKEN].filter(Boolean);
  const log = [];
  const exited = new Promise((resolve) => child.once('exit', resolve));
  const bound = new Promise((resolve, reject) => {
    for (const stream of [child.stdout, child.stderr]) {
      createInterface({ input: stream }).on('line', (line) => {
        log.push(line);
        const event = listening(line);
        if (event) resolve(event);
      });
    }
    child.once('error', reject);
    exited.then((code) => reject(new Error(`the gateway exited with ${code}:\n${log.join('\n')}`)));
  });
  const { http, webrtc } = await within(60_000, bound, 'the gateway to listen').catch((error) => {
    // The process of the test would not end before its child.
    child.kill('SIGKILL');
    throw error;
  });
  return {
    http,
    webrtc,
    log,
    origin: `http://localhost:${portOf(http)}`,
    async stop(signal = 'SIGTERM') {
      const answers = await responses(http, env.MILLSTREAM_AUTH__API_TOKEN);
      child.kill(signal);
      await within(15_000, exited, 'the gateway to exit').catch((error) => {
        // Its ports would stay taken, and the process of the test would not end before it.
        child.kill('SIGKILL');
        throw error;
      });
      const leak = [...log, ...answers].find((text) => tokens.some((token) => text.includes(token)));
      if (leak) throw new Error(`the gateway discloses a token: ${leak}`);
    },
  };
}

/** Returns responses of the gateway at the end of a test: metrics, API, an error. Empty if it is gone or uses TLS. */
async function responses(http, token) {
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  const paths = ['metrics', 'api/v1/streams', 'api/v1/sessions', 'api/v1/sources', 'whip/..'];
  const read = async (path) => {
    const answer = await fetch(`http://${http}/${path}`, { headers, signal: AbortSignal.timeout(2_000) });
    return [...answer.headers.values(), await answer.text()].join('\n');
  };
  return Promise.all(paths.map((path) => read(path).catch(() => '')));
}

/** The addresses in the log event that says where the gateway listens; undefined for every other line. */
function listening(line) {
  try {
    const event = JSON.parse(line);
    const fields = { ...event, ...event.fields };
    return fields.message === 'gateway listening' ? fields : undefined;
  } catch {
    return undefined;
  }
}

export const portOf = (address) => Number(/:(\d+)$/.exec(address)[1]);

/** Skips a test on this host. `scripts/skips.sh` refuses tests that are not listed in `tests/skips.txt`. */
export function skip(t, why) {
  console.log(`SKIPPED ${t.name}: ${why}`);
  t.skip(why);
}

/** An IPv4 address of this host that is not loopback; undefined without a network. */
export function hostAddress() {
  const all = Object.values(networkInterfaces()).flat();
  return all.find((address) => address.family === 'IPv4' && !address.internal)?.address;
}

/** Within this time a browser starts also on a machine that is busy, in milliseconds. */
const LAUNCH_TIMEOUT = 120_000;

/** Chromium. `camera: false` leaves it without any, `allow: false` refuses its use, `more` are further arguments,
 * `wrapper` is a program that starts `$CHROMIUM`.
 */
export function chromium({ camera = true, allow = true, more = [], wrapper } = {}) {
  return puppeteer.launch({
    browser: 'chrome',
    // A browser in another network cannot be reached by a port.
    pipe: Boolean(wrapper),
    timeout: LAUNCH_TIMEOUT,
    executablePath: wrapper ?? program('chromium', 'chromium-browser', 'google-chrome'),
    env: { ...process.env, CHROMIUM: program('chromium', 'chromium-browser', 'google-chrome') },
    headless: true,
    args: [
      '--no-sandbox',
      '--disable-gpu',
      '--disable-quic',
      '--no-first-run',
      '--disable-background-networking',
      '--disable-component-update',
      '--disable-sync',
      ...(camera ? ['--use-fake-device-for-media-stream'] : []),
      ...more,
      ...(allow ? ['--use-fake-ui-for-media-stream'] : ['--deny-permission-prompts']),
    ],
  });
}

/** What is to be undone at the end of a test, the last first. */
export function undoing(t) {
  const undo = [];
  t.after(async () => {
    const failures = [];
    // One step that fails leaves the others to be done.
    for (const step of undo.reverse()) {
      try {
        await step();
      } catch (error) {
        failures.push(error);
      }
    }
    if (failures.length > 0) throw failures[0];
  });
  return (step) => undo.push(step);
}

/** Runs a program of the system. Returns what it prints; throws if it fails, with its messages in `stderr`. */
export const run = (command, ...more) => execFileSync(command, more, { encoding: 'utf8', stdio: ['ignore', 'pipe', 'pipe'] });

/** Runs a program in a network namespace. */
export const runInNamespace = (name, ...command) => run('ip', 'netns', 'exec', name, ...command);

/**
 * A network namespace with one cable to ours, `${name}a` here and `${name}b` there: `ours` and each of `theirs` are addresses
 * of one /24. `undo` is called with what removes it.
 */
export function addNamespace(undo, name, ours, ...theirs) {
  run('ip', 'netns', 'add', name);
  undo(() => {
    // Without this the cable would go some time after the namespace.
    run('ip', 'link', 'delete', `${name}a`);
    run('ip', 'netns', 'delete', name);
  });
  run('ip', 'link', 'add', `${name}a`, 'type', 'veth', 'peer', 'name', `${name}b`, 'netns', name);
  // An address of its own would come up a second later, and a browser that sees an address come aborts what it loads.
  run('ip', 'link', 'set', `${name}a`, 'addrgenmode', 'none');
  runInNamespace(name, 'ip', 'link', 'set', `${name}b`, 'addrgenmode', 'none');
  run('ip', 'address', 'add', `${ours}/24`, 'dev', `${name}a`);
  run('ip', 'link', 'set', `${name}a`, 'up');
  for (const address of theirs) runInNamespace(name, 'ip', 'address', 'add', `${address}/24`, 'dev', `${name}b`);
  runInNamespace(name, 'ip', 'link', 'set', `${name}b`, 'up');
  runInNamespace(name, 'ip', 'link', 'set', 'lo', 'up');
}

/** Chromium in a network namespace. `undo` is called with what closes it and removes its files. */
export async function chromiumInNamespace(undo, name, options = {}) {
  const folder = await mkdtemp(path.join(tmpdir(), 'millstream-namespace-'));
  undo(() => rm(folder, { recursive: true, force: true }));
  const wrapper = path.join(folder, 'chromium');
  await writeFile(wrapper, `#!/bin/sh\nexec ip netns exec ${name} "$CHROMIUM" "$@"\n`);
  await chmod(wrapper, 0o755);
  const browser = await chromium({ wrapper, ...options });
  undo(() => browser.close());
  return browser;
}

/** Firefox with a made-up camera and microphone. */
export function firefox() {
  return puppeteer.launch({
    browser: 'firefox',
    timeout: LAUNCH_TIMEOUT,
    executablePath: program('firefox-esr', 'firefox'),
    headless: true,
    extraPrefsFirefox: {
      'media.navigator.streams.fake': true,
      'media.navigator.permission.disabled': true,
      'media.autoplay.default': 0,
      'media.gmp-manager.updateEnabled': false,
      // Pages in the background run timers and draw as if they were seen.
      'dom.min_background_timeout_value': 4,
      'layout.throttled_frame_rate': 60,
    },
  });
}

function program(...names) {
  for (const name of names) {
    for (const folder of process.env.PATH.split(path.delimiter)) {
      const file = path.join(folder, name);
      try {
        accessSync(file);
        return file;
      } catch {
        // Not in this folder.
      }
    }
  }
  throw new Error(`none of ${names.join(', ')} is installed (scripts/setup.sh test)`);
}

/** Opens a page whose script errors and policy violations are collected in `page.faults`; `before` runs first in it. */
export async function open(browser, url, before) {
  const page = await browser.newPage();
  if (before) await page.evaluateOnNewDocument(before);
  page.faults = [];
  page.on('pageerror', (error) => page.faults.push(String(error)));
  page.on('console', (message) => {
    if (/Content.Security.Policy/i.test(message.text())) page.faults.push(message.text());
  });
  await page.goto(url);
  return page;
}

/** The publish page, going live. */
export async function publish(browser, gateway, stream, { codec = 'VP8', audio = '', token = PUBLISH_TOKEN, before } = {}) {
  const query = new URLSearchParams({ auto: 'camera', height: '480', codec, ...(audio && { sound: audio }) });
  const page = await open(browser, `${gateway.origin}/publish/${stream}?${query}#token=${token}`, before);
  // A link with a token goes live after a click only.
  await page.click('#go');
  return page;
}

/** Publishes `window.canvas` of a page in three layers as the stream `simulcast`, with a WHIP client of a few lines. */
export const publishSimulcast = (page, { fps, codec }) =>
  page.evaluate(
    async (token, fps, codec) => {
      const pc = new RTCPeerConnection();
      const [track] = window.canvas.captureStream(fps).getVideoTracks();
      const transceiver = pc.addTransceiver(track, {
        direction: 'sendonly',
        sendEncodings: [
          { rid: 'q', scaleResolutionDownBy: 4, maxBitrate: 150_000 },
          { rid: 'h', scaleResolutionDownBy: 2, maxBitrate: 500_000 },
          { rid: 'f', maxBitrate: 1_500_000 },
        ],
      });
      const { codecs } = RTCRtpSender.getCapabilities('video');
      transceiver.setCodecPreferences(codecs.filter((known) => known.mimeType === `video/${codec}`));
      // On a busy machine all layers become smaller otherwise.
      const parameters = transceiver.sender.getParameters();
      await transceiver.sender.setParameters({ ...parameters, degradationPreference: 'maintain-resolution' });
      await pc.setLocalDescription();
      const response = await fetch('/whip/simulcast', {
        method: 'POST',
        headers: { 'Content-Type': 'application/sdp', Authorization: `Bearer ${token}` },
        body: pc.localDescription.sdp,
      });
      await pc.setRemoteDescription({ type: 'answer', sdp: await response.text() });
      window.pc = pc;
    },
    PUBLISH_TOKEN,
    fps,
    codec,
  );

/** Watches the stream `simulcast` in a page with a WHEP client of a few lines, which leaves its `Link` in `window.link`. */
export const watchSimulcast = (page) =>
  page.evaluate(async () => {
    document.body.innerHTML = '<video autoplay muted playsinline></video>';
    const pc = new RTCPeerConnection();
    pc.ontrack = ({ track }) => (document.querySelector('video').srcObject = new MediaStream([track]));
    pc.addTransceiver('video', { direction: 'recvonly' });
    await pc.setLocalDescription();
    const response = await fetch('/whep/simulcast', {
      method: 'POST',
      headers: { 'Content-Type': 'application/sdp' },
      body: pc.localDescription.sdp,
    });
    window.link = response.headers.get('Link');
    await pc.setRemoteDescription({ type: 'answer', sdp: await response.text() });
    window.pc = pc;
  });

export const watch = (browser, gateway, stream) => open(browser, `${gateway.origin}/watch/${stream}`);

/** The data attributes of the publish page. */
export const pageData = (page) => page.evaluate(() => ({ ...document.documentElement.dataset }));
/** The data attributes of the player. */
export const playerData = (page) => page.evaluate(() => ({ ...document.querySelector('millstream-player').dataset }));

/** The data attributes of the player, and what it shows around the video. */
export const shownByPlayer = (page) =>
  page.evaluate(() => {
    const player = document.querySelector('millstream-player');
    const part = (name) => player.shadowRoot.querySelector(name);
    const visible = (name) => getComputedStyle(part(name)).display !== 'none';
    return {
      ...player.dataset,
      live: visible('.live'),
      hint: visible('.hint') ? part('.hint').textContent : '',
      overlay: part('.overlay').classList.contains('shown') ? part('.title').textContent : '',
      transport: visible('.transport') ? part('.transport').textContent : '',
      width: player.video.videoWidth,
    };
  });

/** Unmutes the player: Chromium does not measure muted audio. */
export const unmute = (page) =>
  page.evaluate(() => document.querySelector('millstream-player').shadowRoot.querySelector('.mute').click());

/** Reads until `holds`; fails with what was read last. */
export async function until(read, holds, what, timeout = 20_000) {
  const deadline = Date.now() + timeout;
  for (;;) {
    const value = await read();
    if (holds(value)) return value;
    if (Date.now() > deadline) throw new Error(`waited ${timeout} ms for ${what}; last seen: ${JSON.stringify(value)}`);
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
}

/** Waits until the player shows video: `frames` more than it has shown now. */
export async function plays(page, frames = 20, timeout = 30_000) {
  const start = await until(() => playerData(page), (data) => data.state === 'playing', 'the player to play', timeout);
  return until(
    () => playerData(page),
    (data) => Number(data.frames) >= Number(start.frames) + frames && data.state === 'playing',
    `${frames} more frames`,
  );
}

/** Waits until the player plays by WebRTC, and the codec is this one: while a connection takes long it plays by HLS. */
export const playsByWebRtc = (page, codec) =>
  until(
    () => playerData(page),
    (data) => data.way === 'webrtc' && data.state === 'playing' && (!codec || data.codec?.toUpperCase() === codec),
    `the player to play ${codec ?? ''} by WebRTC`,
    30_000,
  );

/** Presses a button by keyboard: what moves while it is updated may move away under the mouse. */
export async function press(page, selector) {
  await page.focus(selector);
  await page.keyboard.press('Enter');
}

export const isLive = (page) => until(() => pageData(page), (data) => data.state === 'live', 'the publisher to be live');

async function within(milliseconds, promise, what) {
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`waited ${milliseconds} ms for ${what}`)), milliseconds);
  });
  try {
    return await Promise.race([promise, late]);
  } finally {
    clearTimeout(timer);
  }
}
