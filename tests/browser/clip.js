// A video clip whose frames show their number: 16 bits and a parity bit as a row of black and white blocks,
// above texture that moves, so that the encoder has something to do.

import { spawn } from 'node:child_process';
import { once } from 'node:events';

export const FPS = 30;
const [WIDTH, HEIGHT] = [1280, 720];

/** The row of blocks. The most significant bit comes first, the parity bit last. */
export const BLOCKS = { x: 96, y: 24, size: 64, bits: 16 };

/** The row of blocks in a clip that is `reduced`. */
export const REDUCED_BLOCKS = { x: 24, y: 6, size: 16, bits: 16 };

/**
 * Encodes a clip as H.264 in Annex B form, a key frame every `keyFrameInterval` seconds and nowhere else. It is `reduced`
 * to a quarter of its width and height for tests with many decoders. `first` is the number of its first frame.
 */
export async function makeClip(file, { seconds, keyFrameInterval, bitrate = '2M', reduced = false, first = 0 }) {
  const gop = String(keyFrameInterval * FPS);
  const ffmpeg = spawn('ffmpeg', [
    '-hide_banner', '-loglevel', 'error', '-y',
    '-f', 'rawvideo', '-pixel_format', 'gray', '-video_size', `${WIDTH}x${HEIGHT}`, '-framerate', String(FPS), '-i', '-',
    ...(reduced ? ['-vf', `scale=${WIDTH / 4}:${HEIGHT / 4}`] : []), '-pix_fmt', 'yuv420p', '-c:v', 'libx264', '-preset', 'veryfast', '-profile:v', 'baseline', '-level', '3.1',
    '-bf', '0', '-g', gop, '-keyint_min', gop, '-sc_threshold', '0',
    '-b:v', bitrate, '-maxrate', bitrate, '-bufsize', bitrate, '-f', 'h264', file,
  ], { stdio: ['pipe', 'inherit', 'inherit'] });
  const exited = once(ffmpeg, 'exit');
  const texture = makeTexture();
  for (let number = first; number < first + seconds * FPS; number += 1) {
    if (!ffmpeg.stdin.write(drawFrame(texture, number))) await Promise.race([once(ffmpeg.stdin, 'drain'), exited]);
  }
  ffmpeg.stdin.end();
  const [code] = await exited;
  if (code !== 0) throw new Error(`ffmpeg exited with ${code}`);
}

/** Twice the size of a frame, so that it can move beneath it. */
function makeTexture() {
  const [width, height] = [2 * WIDTH, 2 * HEIGHT];
  const texture = Buffer.alloc(width * height);
  for (let y = 0; y < height; y += 1) {
    for (let x = 0; x < width; x += 1) {
      const waves = Math.sin(x / 23) + Math.sin(y / 17) + Math.sin((x + 2 * y) / 41);
      texture[y * width + x] = 128 + 25 * waves + 24 * (hash((x >> 2) * 4099 + (y >> 2)) - 0.5);
    }
  }
  return { texture, width };
}

function drawFrame({ texture, width }, number) {
  const frame = Buffer.allocUnsafe(WIDTH * HEIGHT);
  // A path of about five pixels per frame that never leaves the texture.
  const left = Math.round((WIDTH / 2) * (1 + Math.sin(number / 130)));
  const top = Math.round((HEIGHT / 2) * (1 + Math.cos(number / 90)));
  for (let y = 0; y < HEIGHT; y += 1) {
    const from = (top + y) * width + left;
    texture.copy(frame, y * WIDTH, from, from + WIDTH);
  }
  drawNumber(frame, number);
  return frame;
}

function drawNumber(frame, number) {
  const { x, y, size, bits } = BLOCKS;
  let parity = 0;
  for (let bit = 0; bit <= bits; bit += 1) {
    const value = bit < bits ? (number >> (bits - 1 - bit)) & 1 : parity;
    parity ^= value;
    for (let row = y; row < y + size; row += 1) {
      const start = row * WIDTH + x + bit * size;
      frame.fill(value ? 235 : 16, start, start + size);
    }
  }
}

/** Between 0 and 1, the same on every machine. */
function hash(value) {
  let h = Math.imul(value ^ (value >>> 15), 0x2c1b3c6d);
  h = Math.imul(h ^ (h >>> 12), 0x297a2d39);
  return ((h ^ (h >>> 15)) >>> 0) / 2 ** 32;
}
