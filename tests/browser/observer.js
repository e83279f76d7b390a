// A publisher whose frames carry their numbers, and what a player shows of them.

import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import { FPS } from './clip.js';
import { PUBLISH_TOKEN } from './harness.js';

const ENCODER = fileURLToPath(
  new URL(process.env.MILLSTREAM_BENCH_BIN ?? '../../target/debug/millstream-bench', import.meta.url),
);
export const WAITING = 'Waiting for the stream';

/** Plays the clip in real time as a publisher that answers no requests; `frame0` is when its first frame left. */
export async function startEncoder(t, gateway, clip) {
  const options = ['--http', gateway.http, '--token', PUBLISH_TOKEN, '--stream', 'live', '--file', clip, '--fps', FPS];
  const child = spawn(ENCODER, ['publish', ...options, '--loop'].map(String), { stdio: ['ignore', 'pipe', 'ignore'] });
  t.after(() => child.kill('SIGKILL'));
  const line = await new Promise((resolve, reject) => {
    createInterface({ input: child.stdout }).once('line', resolve);
    child.once('exit', (code) => reject(new Error(`the encoder exited with ${code}`)));
  });
  return { frame0: JSON.parse(line).frame0_ms, kill: () => child.kill('SIGKILL') };
}

/**
 * In the page: samples ten times a second what each player displays, and when its video element received its last frame.
 * `window.watched` has `{ samples, frames }` of each player, `window.samples` and `window.frames` those of the first.
 */
export function observe({ x, y, size, bits }) {
  const visible = (element) => Boolean(element) && getComputedStyle(element).display !== 'none';
  const canvas = new OffscreenCanvas((bits + 1) * 8, 8).getContext('2d', { willReadFrequently: true });
  /** The number in the frame that is in sight; null for none, such as in black. */
  const number = ({ shadowRoot, video }) => {
    const still = shadowRoot.querySelector('.last-frame');
    const shown = visible(still) ? still : video;
    canvas.fillRect(0, 0, (bits + 1) * 8, 8);
    canvas.drawImage(shown, x, y, (bits + 1) * size, size, 0, 0, (bits + 1) * 8, 8);
    const { data, width } = canvas.getImageData(0, 0, (bits + 1) * 8, 8);
    const luma = Array.from({ length: bits + 1 }, (_, bit) => data[4 * (4 * width + bit * 8 + 4)]);
    const read = luma.map((value) => Number(value > 128));
    const isBlack = Math.max(...luma) < 10;
    return isBlack || read.reduce((sum, bit) => sum ^ bit, 0) ? null : read.slice(0, bits).reduce((sum, bit) => 2 * sum + bit, 0);
  };
  window.watched = [...document.querySelectorAll('millstream-player')].map((player) => {
    const { shadowRoot, video } = player;
    const [samples, frames] = [[], []];
    const note = () => {
      frames.push(performance.timeOrigin + performance.now());
      video.requestVideoFrameCallback(note);
    };
    video.requestVideoFrameCallback(note);
    setInterval(() => {
      const at = performance.timeOrigin + performance.now();
      const hint = shadowRoot.querySelector('.hint');
      samples.push({
        at,
        number: number(player),
        age: at - (frames.at(-1) ?? at),
        state: player.dataset.state,
        live: visible(shadowRoot.querySelector('.live')),
        hint: visible(hint) ? hint.textContent : '',
        veil: shadowRoot.querySelector('.overlay').classList.contains('shown'),
      });
    }, 100);
    return { samples, frames };
  });
  ({ samples: window.samples, frames: window.frames } = window.watched[0]);
}

/** Live is only what a frame was shown of within two seconds. */
export const assertNotLiveForLong = (samples) =>
  assert.deepEqual(samples.filter(({ live, age }) => live && age > 2_000).slice(0, 3), [], 'called live without a frame for two seconds');
