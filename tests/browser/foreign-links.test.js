// Links and pages of others: they start no camera, and replace no token of the operator.

import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { chromium, isLive, open, pageData, publish, startGateway, until } from './harness.js';

const API_TOKEN = 'api-token-of-the-links';

let gateway, browser;

before(async () => {
  gateway = await startGateway({ MILLSTREAM_AUTH__API_TOKEN: API_TOKEN });
  browser = await chromium();
});

after(async () => {
  await browser?.close();
  await gateway?.stop();
});

test('a page of others does not put a camera on air in a tab that has published before', async (t) => {
  const page = await publish(browser, gateway, 'mine');
  t.after(() => page.close());
  await isLive(page);
  // A kiosk whose page is loaded again goes on by itself.
  await page.reload();
  await isLive(page);
  const posts = [];
  page.on('request', (request) => request.method() === 'POST' && posts.push(request.url()));
  for (const stream of ['evil', 'mine']) {
    await page.goto(`http://${gateway.http}/`);
    const target = `${gateway.origin}/publish/${stream}?auto=camera&sound=microphone`;
    await Promise.all([page.waitForNavigation(), page.evaluate((target) => void (location.href = target), target)]);
    assert.equal(new URL(page.url()).pathname, `/publish/${stream}`);
    const data = await until(() => pageData(page), ({ error, state }) => error || state === 'live', 'the page to decide');
    assert.deepEqual([data.error, data.state], ['unconfirmed', 'idle']);
    assert.notEqual(await page.$eval('input[name=token]', (input) => input.value), '', 'the tab has kept the token');
  }
  assert.deepEqual(posts, []);
  await page.click('#go');
  await isLive(page);
});

test('a link does not replace the API token that a tab has', async (t) => {
  const page = await open(browser, `${gateway.origin}/#token=${API_TOKEN}`);
  t.after(() => page.close());
  const kept = () => page.evaluate(() => sessionStorage.getItem('millstream-api-token'));
  assert.equal(await kept(), API_TOKEN);
  for (const path of ['', 'streams/mine']) {
    await page.goto('about:blank');
    await page.goto(`${gateway.origin}/${path}#token=of-somebody-else`);
    assert.equal(new URL(page.url()).hash, '');
    assert.equal(await kept(), API_TOKEN);
  }
});
