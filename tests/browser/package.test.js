// The npm package of the player in an empty project, and its examples, in Chromium and Firefox.

import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { createServer } from 'node:http';
import { cp, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { after, before, test } from 'node:test';
import { promisify } from 'node:util';
import { chromium, firefox, isLive, open, plays, PROJECT, publish, startGateway, until } from './harness.js';

const PACKAGE = path.join(PROJECT, 'player/npm');
const run = promisify(execFile);
const npm = (cwd, ...more) => run('npm', [...more, '--ignore-scripts', '--no-audit', '--no-fund', '--prefer-offline'], { cwd });

let gateway, server, project, sender, version;
const browsers = {};

before(async () => {
  ({ version } = JSON.parse(await readFile(path.join(PACKAGE, 'package.json'), 'utf8')));
  project = await mkdtemp(path.join(tmpdir(), 'millstream-package-'));
  await build();
  server = await serve(project);
  // Its pages are of another origin.
  gateway = await startGateway({
    MILLSTREAM_HTTP__EMBED_ORIGINS: `http://127.0.0.1:${server.address().port}`,
    MILLSTREAM_WEBRTC__VIEWER_MESSAGES: 'all',
  });
  sender = await chromium();
  browsers.Chromium = await chromium();
  browsers.Firefox = await firefox();
  await isLive(await publish(sender, gateway, 'packed'));
});

after(async () => {
  await Promise.allSettled([sender, ...Object.values(browsers)].map((browser) => browser?.close()));
  await gateway?.stop();
  server?.close();
  if (project) await rm(project, { recursive: true, force: true });
});

/** Packs the package, and installs it in a project that has nothing but the examples. */
async function build() {
  await npm(PACKAGE, 'ci');
  await run('node', ['build.js'], { cwd: PACKAGE });
  const { stdout } = await npm(PACKAGE, 'pack', '--json', '--pack-destination', project);
  const [{ filename }] = JSON.parse(stdout);
  await cp(path.join(PACKAGE, 'examples'), project, { recursive: true });
  for (const example of ['iife', 'react']) {
    const folder = path.join(project, example);
    if (example === 'iife') await writeFile(path.join(folder, 'package.json'), '{"private": true}');
    await npm(folder, 'install', `${path.join(project, filename)}`);
  }
  await run('npm', ['run', 'build'], { cwd: path.join(project, 'react') });
}

/** Serves the files of a folder, with what the examples call GATEWAY, STREAM and VERSION. */
async function serve(folder) {
  const types = { '.html': 'text/html', '.js': 'text/javascript' };
  const server = createServer(async ({ url }, response) => {
    const file = path.join(folder, path.normalize(new URL(url, 'http://x').pathname));
    const content = await readFile(file).catch(() => null);
    const type = types[path.extname(file)] ?? 'application/octet-stream';
    response.writeHead(content ? 200 : 404, { 'Content-Type': type });
    const isPage = type === 'text/html';
    response.end(isPage && content
      ? String(content).replaceAll('GATEWAY', gateway.origin).replaceAll('STREAM', 'packed').replaceAll('VERSION', version)
      : content);
  });
  await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve));
  return server;
}

const example = (browser, name) => open(browser, `http://127.0.0.1:${server.address().port}/${name}/index.html`);

test('the package holds what it needs, and no more', async () => {
  const { stdout } = await npm(PACKAGE, 'pack', '--dry-run', '--json');
  const [{ files, unpackedSize }] = JSON.parse(stdout);
  assert.deepEqual(files.map(({ path }) => path).sort(), [
    'README.md', 'dist/LICENSE-APACHE', 'dist/LICENSE-MIT', 'dist/index.js', 'dist/millstream-player.iife.js', 'index.d.ts', 'package.json',
  ]);
  assert.ok(unpackedSize < 250_000, `${unpackedSize} bytes`);
});

test('the package has the version of the gateway', async () => {
  const manifest = await readFile(path.join(PROJECT, 'Cargo.toml'), 'utf8');
  assert.equal(version, /\[workspace\.package\]\nversion = "(.*)"/.exec(manifest)[1]);
});

test('the package can be imported where there is no DOM', async () => {
  const script = "const { MillstreamPlayer, WhepClient } = await import('millstream-player'); console.log(typeof MillstreamPlayer, typeof WhepClient)";
  const { stdout } = await run('node', ['--input-type=module', '-e', script], { cwd: path.join(project, 'react') });
  assert.equal(stdout, 'function function\n');
});

for (const name of ['Chromium', 'Firefox']) {
  for (const kind of ['html', 'iife', 'react']) {
    test(`the example ${kind} plays in ${name}`, async (t) => {
      const page = await example(browsers[name], kind);
      t.after(() => page.close());
      await plays(page, 10);
      assert.deepEqual(page.faults, []);
    });
  }

  test(`the example chat passes a message on in ${name}`, async (t) => {
    const pages = [];
    t.after(() => Promise.all(pages.map((page) => page.close())));
    for (let n = 0; n < 2; n += 1) {
      pages.push(await example(browsers[name], 'chat'));
      await plays(pages[n], 5);
    }
    // A page in the background cannot be clicked.
    await pages[0].bringToFront();
    await pages[0].type('#name', 'Ann');
    await pages[0].type('#text', '<i>hello</i>');
    const isOpen = () => pages[0].evaluate(() => document.querySelector('millstream-player').data('chat').isOpen);
    await until(isOpen, Boolean, 'an open channel');
    await pages[0].click('button');
    const shown = (page) => () => page.$eval('#messages', ({ textContent }) => textContent);
    for (const page of pages) await until(shown(page), (text) => text.includes('Ann: <i>hello</i>'), 'the message');
    assert.deepEqual(pages.flatMap(({ faults }) => faults), []);
  });

  test(`the example iframe plays in ${name}`, async (t) => {
    const page = await example(browsers[name], 'iframe');
    t.after(() => page.close());
    const frame = await until(() => page.frames().find((frame) => frame.url().includes('/embed/')) ?? null, Boolean, 'the frame');
    await frame.waitForSelector('millstream-player');
    await plays(frame, 10);
    assert.deepEqual(page.faults, []);
  });
}

test('React sets properties and receives events', async (t) => {
  const page = await example(browsers.Chromium, 'react');
  t.after(() => page.close());
  await plays(page, 5);
  const state = () => page.$eval('#state', ({ textContent }) => textContent);
  await until(state, (text) => text === 'playing', 'the state in the application');
  await page.click('#root > button');
  await until(() => page.evaluate(() => document.querySelector('millstream-player').paused), Boolean, 'the button to pause');
  await until(() => page.$eval('#root > button', ({ textContent }) => textContent), (text) => text === 'Play', 'the event pause');
});

test('the package falls back to HLS with the hls.js of npm', async (t) => {
  const page = await example(browsers.Chromium, 'react');
  t.after(() => page.close());
  // VP8 has no place in HLS: what plays is the audio.
  await page.evaluate(() => {
    const player = document.querySelector('millstream-player');
    player.setAttribute('hls', 'only');
    player.load();
  });
  const data = () => page.evaluate(() => ({ ...document.querySelector('millstream-player').dataset }));
  await until(data, ({ way }) => way === 'hls', 'HLS', 40_000);
  assert.equal(await page.evaluate(() => [...document.scripts].some(({ src }) => src.includes('hls.min.js'))), false);
});

test('a page that is not listed shows no frame', async (t) => {
  const other = await startGateway({ MILLSTREAM_HTTP__EMBED_ORIGINS: 'https://elsewhere.example' });
  t.after(() => other.stop());
  const page = await browsers.Chromium.newPage();
  t.after(() => page.close());
  const refused = [];
  page.on('console', (message) => /frame-ancestors/.test(message.text()) && refused.push(message.text()));
  await page.goto(`http://127.0.0.1:${server.address().port}/html/index.html`);
  await page.evaluate((src) => document.body.append(Object.assign(document.createElement('iframe'), { src })), `${other.origin}/embed/packed`);
  await until(() => refused.length, (count) => count > 0, 'the refusal');
});
