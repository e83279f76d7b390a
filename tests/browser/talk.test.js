// Talking to a camera: the button of the watch page sends the microphone to the back channel of GStreamer's RTSP server.

import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { createInterface } from 'node:readline';
import { before, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { chromium, open, playerData, startGateway, undoing, until } from './harness.js';

const SERVER = fileURLToPath(new URL('../sources/rtsp/server.py', import.meta.url));
/** What G.711 µ-law has for silence. */
const SILENCE = [0xff, 0x7f];

let browser;
before(async () => {
  browser = await chromium();
});
test.after(() => browser?.close());

/** A camera with a loudspeaker, and a gateway with the stream `door` from it. */
async function doorStation(t) {
  const undo = undoing(t);
  const folder = await mkdtemp(path.join(tmpdir(), 'millstream-talk-'));
  undo(() => rm(folder, { recursive: true }));
  const heard = path.join(folder, 'heard');
  const camera = spawn('/usr/bin/python3', [SERVER, '0', 'h264+pcma', '--back-channel', 'pcmu', heard], { stdio: ['ignore', 'pipe', 'inherit'] });
  undo(() => camera.kill());
  const [port] = await once(createInterface({ input: camera.stdout }), 'line');
  const file = path.join(folder, 'millstream.toml');
  await writeFile(file, `[streams."door"]\nrtsp = "rtsp://127.0.0.1:${port}/cam"\n`);
  const gateway = await startGateway({
    MILLSTREAM_CONFIG: file,
    MILLSTREAM_AUTH__PLAY_TOKEN: 'watch-only',
    MILLSTREAM_AUTH__TALK_TOKEN: 'front-desk',
  });
  undo(() => gateway.stop());
  const bytes = () => readFile(heard).catch(() => Buffer.alloc(0));
  return { undo, gateway, heard, loudBytes: async () => (await bytes()).filter((byte) => !SILENCE.includes(byte)).length };
}

/** What the page shows of the button. */
const shownButton = (page) =>
  page.evaluate(() => {
    const box = document.querySelector('#talk');
    const button = box.querySelector('button');
    return {
      visible: button.checkVisibility(),
      pressed: button.getAttribute('aria-pressed'),
      state: button.dataset.state,
      status: box.querySelector('[role=status]').textContent,
    };
  });

test('the camera hears who holds the button of the watch page, by mouse and by keyboard', async (t) => {
  const { undo, gateway, heard, loudBytes } = await doorStation(t);
  const page = await open(browser, `${gateway.origin}/watch/door#token=front-desk`);
  undo(() => page.close());
  await until(() => shownButton(page), ({ visible }) => visible, 'the button');
  await until(() => playerData(page), ({ state }) => state === 'playing', 'the picture of the camera');

  const { x, y, width, height } = await (await page.$('#talk button')).boundingBox();
  await page.mouse.move(x + width / 2, y + height / 2);
  await page.mouse.down();
  await until(() => shownButton(page), ({ state }) => state === 'live', 'the microphone at the camera');
  assert.deepEqual(await shownButton(page), { visible: true, pressed: 'true', state: 'live', status: 'Speak now' });
  await until(loudBytes, (count) => count > 1_000, 'sound at the camera');
  await page.mouse.up();
  await until(() => shownButton(page), ({ pressed, state }) => pressed === 'false' && state === 'idle', 'the end');

  // The session of the camera is over, and its file as long as it becomes.
  await rm(heard);
  await page.focus('#talk button');
  await page.keyboard.down('Space');
  await until(() => shownButton(page), ({ state }) => state === 'live', 'the microphone again');
  await until(loudBytes, (count) => count > 1_000, 'sound again');
  await page.keyboard.up('Space');
  await until(() => shownButton(page), ({ state }) => state === 'idle', 'the end');
  assert.deepEqual(page.faults, []);
  if (process.env.SCREENSHOTS) await page.screenshot({ path: `${process.env.SCREENSHOTS}/talk.png` });
});

test('a microphone that opens after the button was released, and pressed again, is closed', async (t) => {
  const { undo, gateway } = await doorStation(t);
  const page = await open(browser, `${gateway.origin}/watch/door#token=front-desk`);
  undo(() => page.close());
  await until(() => shownButton(page), ({ visible }) => visible, 'the button');
  await page.evaluate(() => {
    const devices = navigator.mediaDevices;
    const opening = devices.getUserMedia.bind(devices);
    window.microphones = [];
    devices.getUserMedia = async (wanted) => {
      const microphone = await opening(wanted);
      await new Promise((resolve) => setTimeout(resolve, 500));
      window.microphones.push(microphone);
      return microphone;
    };
  });
  await page.focus('#talk button');
  for (const _ of [1, 2]) {
    await page.keyboard.down('Space');
    await page.keyboard.up('Space');
  }
  await page.keyboard.down('Space');
  await until(() => shownButton(page), ({ state }) => state === 'live', 'the microphone at the camera');
  const openMicrophones = () =>
    page.evaluate(() => window.microphones.map((microphone) => microphone.getTracks().some(({ readyState }) => readyState === 'live')));
  assert.deepEqual(await openMicrophones(), [false, false, true]);
  await page.keyboard.up('Space');
  await until(openMicrophones, (open) => open.length === 3 && open.every((isOpen) => !isOpen), 'all microphones to be closed');
});

test('who may only watch is offered no button', async (t) => {
  const { undo, gateway } = await doorStation(t);
  const page = await open(browser, `${gateway.origin}/watch/door#token=watch-only`);
  undo(() => page.close());
  const asked = page.waitForResponse((response) => new URL(response.url()).pathname === '/talk/door');
  await page.reload();
  assert.equal((await asked).status(), 403);
  await until(() => playerData(page), ({ state }) => state === 'playing', 'the picture of the camera');
  assert.equal((await shownButton(page)).visible, false);
});
