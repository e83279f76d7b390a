// The delay of a viewer from capture to display: the player reports its part, and the API, the metrics, the player and the
// dashboard have all of them.

import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { chromium, firefox, isLive, open, plays, publish, startGateway, until, watch } from './harness.js';

const API_TOKEN = 'api-token-of-the-delays';
const API = { Authorization: `Bearer ${API_TOKEN}` };
const PARTS = ['capture_to_gateway', 'gateway', 'network', 'player'];

let browser, sender, gateway;

before(async () => {
  browser = await chromium();
  sender = await chromium();
  // Every viewer is above it.
  gateway = await startGateway({ MILLSTREAM_AUTH__API_TOKEN: API_TOKEN, MILLSTREAM_QUALITY__DELAY_ALARM_MS: '1' });
});

after(async () => {
  await Promise.allSettled([browser?.close(), sender?.close()]);
  await gateway?.stop();
});

const get = async (path) => (await fetch(`${gateway.origin}${path}`, { headers: API })).text();
const viewersOf = async (stream) => {
  const { sessions } = JSON.parse(await get(`/api/v1/sessions?stream=${stream}`));
  return sessions.filter(({ role, state }) => role === 'viewer' && state === 'connected');
};
const delayOf = async (stream) => (await viewersOf(stream))[0]?.delay;
const isComplete = (delay) => PARTS.every((part) => delay?.[part]);
const panelOf = (page) => page.evaluate(() => Object.fromEntries([...document.querySelector('millstream-player').shadowRoot.querySelectorAll('.stats dt')].map((term) => [term.textContent, term.nextElementSibling.textContent])));

/** Notes the reports of a page, and what the gateway answers. */
function reportsOf(page) {
  const reports = [];
  page.on('response', (response) => {
    const request = response.request();
    if (request.method() === 'POST' && request.url().endsWith('/delay')) reports.push([JSON.parse(request.postData()), response.status()]);
  });
  return reports;
}

test('all parts of the delay are known of a viewer whose player reports, until it is paused', { timeout: 120_000 }, async (t) => {
  await isLive(await publish(sender, gateway, 'delayed'));
  const page = await watch(browser, gateway, 'delayed');
  t.after(() => page.close());
  await page.bringToFront();
  const reports = reportsOf(page);
  await plays(page, 10);
  const delay = await until(() => delayOf('delayed'), isComplete, 'all parts');
  const sources = PARTS.map((part) => delay[part].source);
  assert.deepEqual(sources, ['sender_reports', 'measured', 'receiver_reports', 'player']);
  const sum = PARTS.reduce((sum, part) => sum + delay[part].seconds, 0);
  assert.ok(Math.abs(sum - delay.total) < 1e-6, `${sum} and ${delay.total}`);
  // The answer reaches the page after the gateway has taken the report.
  const [{ jitter_buffer, decoding }, status] = await until(() => reports[0], Boolean, 'the answer to the first report');
  assert.equal(status, 200);
  assert.ok(jitter_buffer > 0 && decoding > 0 && jitter_buffer + decoding < 5, JSON.stringify(reports));

  // While somebody looks at the panel, it is renewed.
  await page.evaluate(() => document.querySelector('millstream-player').shadowRoot.querySelector('.stats-toggle').click());
  const rows = await until(() => panelOf(page), (rows) => rows.Delay, 'the delay in the panel');
  for (const name of ['Delay', 'Capture to gateway', 'Gateway', 'Network', 'Player']) assert.match(rows[name], /^\d+ ms$/, name);
  await until(() => reports.length, (count) => count >= 3, 'more reports');
  await page.evaluate(() => document.querySelector('millstream-player').pause());
  const before = reports.length;
  await new Promise((resolve) => setTimeout(resolve, 12_000));
  assert.ok(reports.length <= before + 1, 'a report may have been under way');
  assert.deepEqual(page.faults, []);
});

test('a viewer above the threshold is named in the API, the events, the metrics, the log and on the dashboard', { timeout: 120_000 }, async (t) => {
  await isLive(await publish(sender, gateway, 'late'));
  const page = await open(browser, `${gateway.origin}/streams/late#token=${API_TOKEN}`);
  t.after(() => page.close());
  await page.bringToFront();
  await plays(page, 10);
  await until(() => delayOf('late'), (delay) => delay?.alarm === 'high', 'the alarm');
  const metrics = await get('/metrics');
  assert.match(metrics, /^millstream_viewers_delayed\{alarm="high"\} [1-9]/m);
  for (const part of [...PARTS, 'total']) assert.match(metrics, new RegExp(`^millstream_viewer_delay_seconds_count\\{part="${part}"\\} [1-9]`, 'm'));
  const lines = gateway.log.filter((line) => line.includes('the delay of a viewer is high') && line.includes('late'));
  assert.equal(lines.length, 1, lines.join('\n'));
  const text = (selector) => page.$eval(selector, (element) => element.innerText);
  await until(() => text('#sessions'), (seen) => /\d+ ms: \d+ \+ \d+ \+ \d+ \+ (\d+|\?)/.test(seen), 'the parts');
  await until(() => page.$$eval('#sessions td.limited', (cells) => cells.map(({ title }) => title)), ([title]) => title === 'The delay is high', 'the mark');
  await until(() => text('#events'), (seen) => /viewer \w+: the delay is high, \d+ ms: /.test(seen), 'the event');
  await until(() => text('#charts'), (seen) => /Delay, worst viewer\s+\d+ ms/.test(seen), 'the chart');
  assert.deepEqual(page.faults, []);
});

test('capture times in the packets of a publisher are told by their source', { timeout: 120_000 }, async (t) => {
  const offerCaptureTimes = () => {
    const { createOffer } = RTCPeerConnection.prototype;
    RTCPeerConnection.prototype.createOffer = function (...parameters) {
      for (const transceiver of this.getTransceivers()) {
        const extensions = transceiver.getHeaderExtensionsToNegotiate();
        for (const extension of extensions) if (extension.uri.endsWith('abs-capture-time')) extension.direction = 'sendrecv';
        transceiver.setHeaderExtensionsToNegotiate(extensions);
      }
      return createOffer.apply(this, parameters);
    };
  };
  await isLive(await publish(sender, gateway, 'stamped', { before: offerCaptureTimes }));
  const page = await watch(browser, gateway, 'stamped');
  t.after(() => page.close());
  await plays(page, 10);
  const delay = await until(() => delayOf('stamped'), (delay) => delay?.capture_to_gateway?.source === 'abs_capture_time', 'the source');
  assert.ok(delay.capture_to_gateway.seconds < 5, JSON.stringify(delay));
});

test('Firefox reports its delay too', { timeout: 180_000 }, async (t) => {
  const other = await firefox();
  t.after(() => other.close());
  await isLive(await publish(sender, gateway, 'fox'));
  const page = await watch(other, gateway, 'fox');
  await plays(page, 10);
  await until(() => delayOf('fox'), isComplete, 'all parts', 60_000);
});
