#!/usr/bin/env node
// Makes docs/pages.png from the running program: the watch page and, beside it, the dashboard. `make pages-picture`.
// What the streams show is made by FFmpeg, so that the picture shows nobody.

import { execFileSync } from 'node:child_process';
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { PROJECT, chromium, open, plays, startGateway, until } from '../tests/browser/harness.js';

const API_TOKEN = 'token-of-the-picture';
const PICTURE = path.join(PROJECT, 'docs/pages.png');
/** Height of both pages in the picture, in CSS pixels. */
const HEIGHT = 620;

/** Streams, and what FFmpeg draws for each. */
const STREAMS = {
  'front-door': 'testsrc2=s=1280x720:r=25',
  'hall/stage-1': 'mandelbrot=s=640x360:start_scale=0.8:end_scale=0.02:rate=25,scale=1280x720',
  workshop: 'gradients=s=640x360:c0=0x0f766e:c1=0xf2b84b:c2=0x16324f:x0=0:y0=0:x1=640:y1=360:r=25,scale=1280x720',
};

const folder = await mkdtemp(path.join(tmpdir(), 'millstream-picture-'));
const undo = [() => rm(folder, { recursive: true })];
try {
  const config = [];
  for (const [index, [name, drawn]] of Object.entries(STREAMS).entries()) {
    const clip = path.join(folder, `${index}.mp4`);
    const sources = ['-f', 'lavfi', '-i', drawn, '-f', 'lavfi', '-i', 'sine=frequency=220'];
    const video = [
      ...['-c:v', 'libx264', '-preset', 'ultrafast', '-profile:v', 'baseline', '-pix_fmt', 'yuv420p', '-g', '25'],
      ...['-b:v', '2M'],
    ];
    const audio = ['-c:a', 'libopus', '-b:a', '64k', '-ar', '48000'];
    execFileSync('ffmpeg', ['-loglevel', 'error', ...sources, '-t', '40', ...video, ...audio, clip]);
    config.push(`[streams."${name}"]\npipeline = "file"\nparams = { path = "${clip}" }\n`);
  }
  const file = path.join(folder, 'millstream.toml');
  await writeFile(file, config.join('\n'));
  const gateway = await startGateway({ MILLSTREAM_AUTH__API_TOKEN: API_TOKEN }, '--config', file);
  undo.push(() => gateway.stop());
  const browser = await chromium();
  undo.push(() => browser.close());

  const watching = await open(browser, `${gateway.origin}/watch/hall/stage-1`);
  await watching.setViewport({ width: 900, height: HEIGHT });
  const board = await open(browser, `${gateway.origin}/#token=${API_TOKEN}`);
  await board.setViewport({ width: 560, height: HEIGHT });
  await board.bringToFront();
  await until(
    () => board.$$eval('.thumb:not([hidden])', ({ length }) => length),
    (loaded) => loaded >= Object.keys(STREAMS).length,
    'a snapshot of each stream',
  );
  // Charts begin with a few samples. The clips are longer than all of this.
  await new Promise((resolve) => setTimeout(resolve, 6_000));
  await board.$eval('#streams', (element) => scrollTo(0, element.getBoundingClientRect().top + scrollY - 16));
  const right = await board.screenshot({ encoding: 'base64' });
  await watching.bringToFront();
  await plays(watching, 10);
  const left = await watching.screenshot({ encoding: 'base64' });

  const sheet = await browser.newPage();
  await sheet.setViewport({ width: 900 + 560 + 24, height: HEIGHT });
  await sheet.setContent(`<style>body { margin: 0; display: flex; gap: 24px; background: #8a9a97 }</style>
    <img src="data:image/png;base64,${left}"><img src="data:image/png;base64,${right}">`);
  const both = path.join(folder, 'both.png');
  await writeFile(both, await sheet.screenshot({ encoding: 'binary' }));
  // With 256 colours it has a third of the size.
  const palette = 'split[a][b];[a]palettegen=stats_mode=single[p];[b][p]paletteuse=dither=bayer:bayer_scale=4';
  execFileSync('ffmpeg', ['-loglevel', 'error', '-y', '-i', both, '-vf', palette, '-frames:v', '1', PICTURE]);
  console.log(`${PICTURE}: ${(await readFile(PICTURE)).length} bytes`);
} finally {
  for (const step of undo.reverse()) await step();
}
