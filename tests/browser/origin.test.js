// Sources by HLS are watched by WHEP and by LL-HLS, with audio: what ffmpeg writes, served by a plain server of files.

import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { createReadStream } from 'node:fs';
import { access, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { createServer } from 'node:http';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { before, test } from 'node:test';
import { chromium, open, playerData, plays, playsByWebRtc, unmute, startGateway, until, watch } from './harness.js';

let browser;
before(async () => {
  browser = await chromium();
});
test.after(() => browser?.close());

/** Files of a folder by HTTP, on a free port. */
async function serveFolder(t, folder) {
  const server = createServer((request, response) => {
    const file = path.join(folder, path.basename(new URL(request.url, 'http://x').pathname));
    access(file).then(
      // The encoder may delete it meanwhile.
      () => createReadStream(file).on('error', () => response.destroy()).pipe(response),
      () => response.writeHead(404).end(),
    );
  });
  await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve));
  t.after(() => {
    server.closeAllConnections();
    server.close();
  });
  return server.address().port;
}

/** ffmpeg that writes a live stream with video and audio, an origin of it, and a gateway with the stream `far`. */
async function originAndGateway(t, options) {
  const folder = await mkdtemp(path.join(tmpdir(), 'millstream-origin-'));
  t.after(() => rm(folder, { recursive: true, force: true, maxRetries: 5 }));
  const encoder = spawn(
    'ffmpeg',
    [
      ...'-loglevel error -re -f lavfi -i testsrc=size=320x180:rate=25 -re -f lavfi -i sine=frequency=440'.split(' '),
      ...'-c:v libx264 -preset ultrafast -g 25 -pix_fmt yuv420p -c:a aac -f hls -hls_time 1'.split(' '),
      ...'-hls_list_size 6 -hls_flags delete_segments+temp_file'.split(' '),
      ...options,
      'live.m3u8',
    ],
    { cwd: folder, stdio: ['ignore', 'ignore', 'inherit'] },
  );
  t.after(() => new Promise((resolve) => encoder.once('exit', resolve) && encoder.kill('SIGKILL')));
  const playlist = () => readFile(path.join(folder, 'live.m3u8'), 'utf8').catch(() => '');
  await until(playlist, (text) => text.split('#EXTINF').length > 2, 'two segments');
  const port = await serveFolder(t, folder);
  const file = path.join(folder, 'millstream.toml');
  await writeFile(file, `[streams."far"]\nhls = "http://127.0.0.1:${port}/live.m3u8"\n`);
  const gateway = await startGateway({ MILLSTREAM_CONFIG: file });
  t.after(() => gateway.stop());
  return gateway;
}

for (const [name, options] of [
  ['MPEG-TS', ['-bf', '0']],
  ['fragmented MP4', ['-bf', '0', '-hls_segment_type', 'fmp4']],
  ['MPEG-TS with B-frames', ['-bf', '2']],
]) {
  test(`chromium plays video and audio of an HLS source of ${name}`, async (t) => {
    const gateway = await originAndGateway(t, options);
    const page = await watch(browser, gateway, 'far');
    t.after(() => page.close());
    await plays(page);
    const data = await playsByWebRtc(page, 'H264');
    await unmute(page);
    await until(() => playerData(page), ({ audioEnergy }) => Number(audioEnergy) > 0, 'audio');
    assert.equal((await playerData(page)).sessions, '1', 'one session all the time');
    assert.deepEqual(page.faults, []);
    t.diagnostic(`first frame after ${data.firstFrame} ms`);
  });
}

test('chromium sees an HLS source by LL-HLS', async (t) => {
  const gateway = await originAndGateway(t, ['-bf', '0']);
  const page = await open(browser, `${gateway.origin}/watch/far?way=hls`);
  t.after(() => page.close());
  await until(() => playerData(page), (data) => data.way === 'hls' && Number(data.frames) > 25, 'a frame by HLS');
  assert.deepEqual(page.faults, []);
});
