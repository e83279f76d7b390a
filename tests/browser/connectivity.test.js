// Ways through the network: ICE restarts, relays, TCP.

import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { startRelay } from './compose.js';
import { chromium, hostAddress, isLive, open, publish, startGateway, until } from './harness.js';

let browser;

before(async () => {
  browser = await chromium();
});

after(() => browser?.close());

/** A page with a WHEP client of the player's, `client`, and a video element that shows what it receives. */
async function client(gateway, stream, options = {}, by = browser) {
  const page = await open(by, `${gateway.origin}/watch/nothing`, options.before);
  await page.evaluate(
    async (stream) => {
      const { WhepClient } = await import('/player.js');
      document.body.innerHTML = '<video autoplay muted playsinline></video>';
      const video = document.querySelector('video');
      window.client = new (class extends WhepClient {
        prepare(pc) {
          super.prepare(pc);
          video.srcObject = this.stream;
        }
      })(`/whep/${stream}`);
      window.client.start();
    },
    stream,
  );
  return page;
}

const numbers = (page) =>
  page.evaluate(async () => {
    const report = [...((await window.client.connection?.getStats())?.values() ?? [])];
    const video = report.find((s) => s.type === 'inbound-rtp' && s.kind === 'video');
    const { selectedCandidatePairId } = report.find((s) => s.type === 'transport') ?? {};
    const pair = report.find((s) => s.id === selectedCandidatePairId);
    const local = report.find((s) => s.id === pair?.localCandidateId);
    const remote = report.find((s) => s.id === pair?.remoteCandidateId);
    return {
      sessions: window.client.sessions,
      frames: video?.framesDecoded ?? 0,
      frozen: video?.totalFreezesDuration ?? 0,
      lost: video?.packetsLost ?? 0,
      ufrag: /^a=ice-ufrag:(.*)/m.exec(window.client.connection?.currentLocalDescription?.sdp ?? '')?.[1],
      inUse: local?.usernameFragment,
      way: `${local?.candidateType}/${local?.relayProtocol ?? local?.protocol} -> ${remote?.protocol}`,
    };
  });

const shows = (page, frames) => until(() => numbers(page), (seen) => seen.frames >= frames, `${frames} frames`);

test("a viewer's session goes on across ICE restarts", async (t) => {
  const gateway = await startGateway();
  t.after(() => gateway.stop());
  const publisher = await publish(browser, gateway, 'camera');
  t.after(() => publisher.close());
  await isLive(publisher);
  const page = await client(gateway, 'camera');
  t.after(() => page.close());
  const before = await shows(page, 30);
  for (let round = 1; round <= 3; round += 1) {
    const { ufrag, frames } = await numbers(page);
    await page.evaluate(() => window.client.restart());
    const after = await until(
      () => numbers(page),
      (seen) => seen.ufrag !== ufrag && seen.inUse === seen.ufrag && seen.frames >= frames + 60,
      'the new ICE session to carry the video',
    );
    assert.equal(after.sessions, 1);
    assert.equal(after.lost, before.lost);
  }
  const { frozen } = await numbers(page);
  assert.ok(frozen - before.frozen < 0.3, `${frozen - before.frozen} s frozen`);
  t.diagnostic(`three restarts: ${((frozen - before.frozen) * 1_000).toFixed(0)} ms frozen`);
});

test('where no UDP gets through, media goes by TCP', async (t) => {
  const gateway = await startGateway();
  t.after(() => gateway.stop());
  const blocked = await chromium({ more: ['--webrtc-ip-handling-policy=disable_non_proxied_udp'] });
  t.after(() => blocked.close());
  const publisher = await publish(blocked, gateway, 'camera');
  await isLive(publisher);
  const page = await client(gateway, 'camera', {}, blocked);
  const { way, sessions } = await shows(page, 60);
  assert.match(way, /^(host|prflx)\/tcp -> tcp$/);
  assert.equal(sessions, 1);
  const connected = gateway.log.filter((line) => line.includes('connected"') && line.includes('"tcp '));
  assert.equal(connected.length, 2, gateway.log.join('\n'));
  // UDP is used if available.
  const other = await client(gateway, 'camera');
  t.after(() => other.close());
  assert.match((await shows(other, 30)).way, /udp$/);
});

test('where nothing but a relay gets through, media goes by TURN', async (t) => {
  const address = hostAddress() ?? '127.0.0.1';
  const secret = 'shared-with-the-relay';
  const relay = await startRelay(address, secret);
  t.after(() => relay.stop());
  const gateway = await startGateway({
    MILLSTREAM_ICE__SERVERS: `turn:${address}:${relay.port}?transport=udp`,
    MILLSTREAM_ICE__TURN_SECRET: secret,
  });
  t.after(() => gateway.stop());
  const relayed = await chromium();
  t.after(() => relayed.close());
  const only = () => {
    const Native = window.RTCPeerConnection;
    window.RTCPeerConnection = class extends Native {
      constructor(configuration) {
        super({ ...configuration, iceTransportPolicy: 'relay' });
      }
    };
  };
  const publisher = await publish(relayed, gateway, 'camera', { before: only });
  await isLive(publisher);
  const page = await client(gateway, 'camera', { before: only }, relayed);
  const { way, sessions } = await shows(page, 60);
  assert.equal(way, 'relay/udp -> udp');
  assert.equal(sessions, 1);
});

// E-05, E-15.
test('a player that takes our offer plays as one that makes its own', async (t) => {
  const gateway = await startGateway({ MILLSTREAM_HTTP__LEGACY_SERVER_OFFER: 'true' });
  t.after(() => gateway.stop());
  const publisher = await publish(browser, gateway, 'camera');
  t.after(() => publisher.close());
  await isLive(publisher);
  const page = await open(browser, `${gateway.origin}/watch/nothing`);
  t.after(() => page.close());
  await page.evaluate(async () => {
    document.body.innerHTML = '<video autoplay muted playsinline></video>';
    const stream = new MediaStream();
    document.querySelector('video').srcObject = stream;
    const pc = new RTCPeerConnection();
    pc.ontrack = ({ track }) => stream.addTrack(track);
    const offered = await fetch('/whep/camera', { method: 'POST' });
    await pc.setRemoteDescription({ type: 'offer', sdp: await offered.text() });
    await pc.setLocalDescription();
    const answered = await fetch(offered.headers.get('Location'), {
      method: 'PATCH',
      headers: { 'Content-Type': 'application/sdp' },
      body: pc.localDescription.sdp,
    });
    window.statuses = [offered.status, answered.status];
    window.client = { connection: pc, sessions: 1 };
  });
  assert.deepEqual(await page.evaluate(() => window.statuses), [201, 204]);
  await shows(page, 60);
  const audioPackets = await page.evaluate(async () => {
    const report = [...(await window.client.connection.getStats()).values()];
    return report.find((s) => s.type === 'inbound-rtp' && s.kind === 'audio')?.packetsReceived ?? 0;
  });
  assert.ok(audioPackets > 20, `${audioPackets} audio packets`);
});
