// Measures how plain hls.js, with its defaults, starts on the LL-HLS of the gateway: the time to the first frame, the delay
// behind the publisher, and every error event. Beside the first frame stands what the browser alone takes for it (`floor`).
// Prints JSON lines and a summary; judges nothing.
//
//   node hls-start-bench.js [--starts 20] [--seconds 6] [--gop 2] [--audio] [--json FILE]
//
// A warm start finds a packager that runs; a cold one starts it: each has a stream of its own that was published for
// some seconds. The publisher answers no key frame requests, so the moment within its key frame interval is random.
// `--audio` measures the demo stream (video and Opus) of one gateway for each cold start instead.

import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { parseArgs } from 'node:util';
import { makeClip } from './clip.js';
import { chromium, startGateway } from './harness.js';
import { CLIP_SECONDS, measureStart } from './hls-start.js';
import { startEncoder } from './observer.js';


const { values: options } = parseArgs({
  options: {
    starts: { type: 'string', default: '20' },
    seconds: { type: 'string', default: '6' },
    gop: { type: 'string', default: '2' },
    audio: { type: 'boolean', default: false },
    json: { type: 'string' },
  },
});
const [starts, seconds] = [Number(options.starts), Number(options.seconds)];
const sleep = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

const numbers = (results, name) => results.map((result) => result[name]).filter((value) => value !== null && value >= 0).sort((a, b) => a - b);
const summary = (values) => (values.length ? `${values[0]} / ${values[values.length >> 1]} / ${values.at(-1)}` : 'none');

function print(name, results) {
  const counts = {};
  for (const error of results.flatMap(({ errors }) => errors)) counts[error] = (counts[error] ?? 0) + 1;
  const stalled = results.filter(({ stalls }) => stalls.length > 0).length;
  console.log(`${name}: ${results.length} starts (min / median / max in ms)`);
  console.log(`  first frame       ${summary(numbers(results, 'first'))}`);
  console.log(`  the browser alone ${summary(numbers(results, 'floor'))}`);
  const added = results.filter(({ floor }) => floor !== null).map(({ first, floor }) => ({ added: Math.max(first - floor, 0) }));
  console.log(`  the rest          ${summary(numbers(added, 'added'))}`);
  console.log(`  behind, at first  ${summary(numbers(results, 'behind'))}`);
  console.log(`  behind, at end    ${summary(numbers(results, 'later'))}`);
  console.log(`  starts with a gap of over 250 ms between frames: ${stalled}; error events: ${JSON.stringify(counts)}`);
}

const folder = await mkdtemp(path.join(tmpdir(), 'millstream-hls-start-'));
const clip = path.join(folder, 'clip.h264');
const [browser] = await Promise.all([
  chromium(),
  options.audio ? null : makeClip(clip, { seconds: CLIP_SECONDS, keyFrameInterval: Number(options.gop) }),
]);
const all = { warm: [], cold: [] };

const media = { MILLSTREAM_WEBRTC__LISTEN: '127.0.0.1:0' };
try {
  for (let start = 0; start < starts; start += 1) {
    const gateway = await startGateway(media, ...(options.audio ? ['--demo'] : []));
    const stream = options.audio ? 'demo' : 'live';
    const cleanup = [];
    const encoder = options.audio ? null : await startEncoder({ after: (work) => cleanup.push(work) }, gateway, clip);
    await sleep(4_000 + Math.random() * 2_000);
    for (const kind of ['cold', 'warm']) {
      const result = await measureStart(browser, gateway, stream, { frame0: encoder?.frame0, seconds });
      console.log(JSON.stringify({ kind, ...result }));
      all[kind].push(result);
      await sleep(Math.random() * 1_000);
    }
    for (const work of cleanup) work();
    await gateway.stop();
  }
} finally {
  await browser.close();
  await rm(folder, { recursive: true });
}
for (const kind of ['warm', 'cold']) print(kind, all[kind]);
if (options.json) await writeFile(options.json, JSON.stringify(all));
