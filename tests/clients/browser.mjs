// Watches in a browser of this machine and prints what was shown: browser.mjs chromium|firefox page|hls.js URL SECONDS

import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import * as browsers from '../browser/harness.js';

const [name, how, url, seconds] = process.argv.slice(2);
const PATIENCE = 60_000;

const browser = await browsers[name]({ camera: false, more: ['--autoplay-policy=no-user-gesture-required'] });
try {
  const page = await browser.newPage();
  const started = Date.now();
  if (how === 'page') {
    await page.goto(url);
  } else {
    const library = createRequire(import.meta.url).resolve('hls.js/dist/hls.min.js');
    // A page of the gateway: browsers let no other one fetch from a private address.
    await page.setBypassCSP(true);
    await page.goto(new URL('/healthz', url).href);
    await page.evaluate(readFileSync(library, 'utf8'));
    await page.evaluate((source) => {
      const video = document.createElement('video');
      video.muted = true;
      document.body.append(video);
      window.faults = [];
      const player = new window.Hls();
      player.on(window.Hls.Events.ERROR, (_, { details, fatal }) => window.faults.push(`${details}${fatal ? ' (fatal)' : ''}`));
      player.loadSource(source);
      player.attachMedia(video);
      video.play().catch(() => {});
    }, url);
  }
  const shown = () =>
    page.evaluate(() => {
      const find = (root) =>
        root.querySelector('video') ?? [...root.querySelectorAll('*')].map((e) => e.shadowRoot && find(e.shadowRoot)).find(Boolean);
      const player = document.querySelector('millstream-player');
      return {
        frames: find(document)?.getVideoPlaybackQuality().totalVideoFrames ?? 0,
        transport: player?.dataset.way,
        faults: window.faults ?? [],
      };
    });
  let first = null;
  let last = await shown();
  while (Date.now() - started < PATIENCE + seconds * 1000) {
    last = await shown();
    if (first === null && last.frames > 0) first = Date.now() - started;
    if (first !== null && Date.now() - started - first > seconds * 1000) break;
    await new Promise((resolve) => setTimeout(resolve, first === null ? 20 : 250));
  }
  const version = (await browser.version()).replace(/^[^/]*\//, '');
  console.log(JSON.stringify({ version, first: first === null ? null : first / 1000, ...last, seconds: Number(seconds) }));
} finally {
  await browser.close();
}
