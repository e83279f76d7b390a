// How plain hls.js starts on the LL-HLS of the gateway.

import { BLOCKS, FPS } from './clip.js';

/** Duration of the clip that is published. */
export const CLIP_SECONDS = 12;

/**
 * Measures one start in a page of its own: `{ first, floor, behind, later, frames, stalls, errors }`. `first` is the time from
 * the creation of hls.js to the first frame, `floor` the time that the browser takes to show the same frame from the same
 * bytes when it has all of them at once, without hls.js and without the gateway; `behind` and `later` are the delay of the
 * first and of the last frame behind the publisher, `stalls` the gaps of over 250 ms between frames, all in milliseconds;
 * `errors` are the error events. The delay is that of the number in the frame if the clip began at `frame0`, otherwise that
 * of `EXT-X-PROGRAM-DATE-TIME`.
 */
export async function measureStart(browser, gateway, stream, { frame0, seconds }) {
  const page = await browser.newPage();
  // As on a page of somebody else: ours permits no workers.
  await page.setBypassCSP(true);
  await page.goto(`${gateway.origin}/no/such/page/at/all`);
  const result = await page.evaluate(play, {
    url: `/hls/${stream}/index.m3u8`, frame0, blocks: BLOCKS, fps: FPS, clipFrames: CLIP_SECONDS * FPS, seconds,
  });
  await page.close();
  return result;
}

/** In the page: starts hls.js with its defaults and observes it for some seconds. */
async function play({ url, frame0, blocks: { x, y, size, bits }, fps, clipFrames, seconds }) {
  if (!globalThis.Hls) {
    await new Promise((resolve) => {
      const script = Object.assign(document.createElement('script'), { src: '/hls.min.js', onload: resolve });
      document.head.append(script);
    });
  }
  const video = Object.assign(document.createElement('video'), { muted: true, playsInline: true });
  document.body.replaceChildren(video);
  const canvas = new OffscreenCanvas((bits + 1) * 8, 8).getContext('2d', { willReadFrequently: true });
  /** How far the displayed frame is behind the publisher, by the number in it, in milliseconds. */
  const behind = () => {
    if (!frame0) return hls.playingDate ? Date.now() - hls.playingDate : null;
    canvas.drawImage(video, x, y, (bits + 1) * size, size, 0, 0, (bits + 1) * 8, 8);
    const { data, width } = canvas.getImageData(0, 0, (bits + 1) * 8, 8);
    const read = Array.from({ length: bits + 1 }, (_, bit) => Number(data[4 * (4 * width + bit * 8 + 4)] > 128));
    if (read.reduce((sum, bit) => sum ^ bit, 0)) return null;
    const number = read.slice(0, bits).reduce((sum, bit) => 2 * sum + bit, 0);
    const period = (clipFrames * 1_000) / fps;
    const at = performance.timeOrigin + performance.now() - frame0 - (number * 1_000) / fps;
    return ((at % period) + period) % period;
  };
  const errors = [];
  let ended = false;
  const begin = performance.now();
  const hls = new globalThis.Hls();
  hls.on(globalThis.Hls.Events.ERROR, (_, { details, fatal, error }) => {
    if (!ended) errors.push([details, fatal && '(fatal)', details === 'internalException' && error?.message].filter(Boolean).join(' '));
  });
  // What the first frame is made from.
  const tracks = new Map();
  hls.on(globalThis.Hls.Events.BUFFER_CODECS, (_, codecs) => {
    for (const [type, { container, codec } = {}] of Object.entries(codecs)) if (container) tracks.set(type, { mime: `${container};codecs=${codec}`, appended: [] });
  });
  hls.on(globalThis.Hls.Events.BUFFER_APPENDING, (_, { type, data }) => {
    if (!first) tracks.get(type)?.appended.push(data.slice());
  });
  /** Shows the first frame again. */
  const measureFloor = async () => {
    const again = Object.assign(document.createElement('video'), { muted: true, playsInline: true });
    const media = new MediaSource();
    document.body.replaceChildren(again);
    const begin = performance.now();
    const shown = new Promise((resolve) => again.requestVideoFrameCallback(() => resolve(Math.round(performance.now() - begin))));
    again.src = URL.createObjectURL(media);
    await new Promise((resolve) => media.addEventListener('sourceopen', resolve, { once: true }));
    for (const { mime, appended } of tracks.values()) media.addSourceBuffer(mime).appendBuffer(await new Blob(appended).arrayBuffer());
    again.currentTime = first.position;
    again.play().catch(() => {});
    return Promise.race([shown, new Promise((resolve) => setTimeout(resolve, 5_000, null))]);
  };
  const stalls = [];
  let [first, last, frames] = [null, 0, 0];
  const onFrame = (now) => {
    if (last && now - last > 250) stalls.push(Math.round(now - last));
    [last, frames] = [now, frames + 1];
    first ??= { ms: Math.round(performance.now() - begin), behind: behind(), position: video.currentTime };
    video.requestVideoFrameCallback(onFrame);
  };
  video.requestVideoFrameCallback(onFrame);
  hls.loadSource(url);
  hls.attachMedia(video);
  video.play().catch(() => {});
  await new Promise((resolve) => setTimeout(resolve, seconds * 1_000));
  const result = { first: first?.ms ?? null, behind: Math.round(first?.behind ?? -1), later: Math.round(behind() ?? -1), frames, stalls, errors };
  ended = true;
  hls.destroy();
  return { ...result, floor: first && (await measureFloor()) };
}
