// A publisher or a viewer of the loss curve, in Chromium:
//   loss_viewer.mjs publish URL TOKEN    publishes 640 x 360 at 2.5 Mbit/s with a tone until its input ends
//   loss_viewer.mjs watch URL SECONDS    watches, and prints what was shown in that time after a start of SETTLING seconds
// The publisher answers each line of its input with the number of frames that it has sent and its bit/s.

import { createInterface } from 'node:readline';
import * as browsers from '../browser/harness.js';

const [role, url, third] = process.argv.slice(2);
const SETTLING = 6;
const FPS = 25;
const MAX_BITRATE = 2_500_000;
const PATIENCE = 60_000;

const sleep = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));
const print = (value) => console.log(JSON.stringify(value));

async function publish(page) {
  await page.goto(new URL('/healthz', url).href);
  await page.evaluate(
    async (endpoint, token, fps, maxBitrate) => {
      const canvas = document.createElement('canvas');
      [canvas.width, canvas.height] = [640, 360];
      const context = canvas.getContext('2d');
      // Noise in small squares needs the whole bitrate, at a small share of the processor.
      setInterval(() => {
        for (let index = 0; index < 400; index++) {
          context.fillStyle = `hsl(${Math.random() * 360} 60% ${20 + Math.random() * 60}%)`;
          context.fillRect(Math.random() * 640, Math.random() * 360, 24, 24);
        }
      }, 1000 / fps);
      const audio = new AudioContext();
      const tone = audio.createOscillator();
      const out = audio.createMediaStreamDestination();
      tone.connect(out);
      tone.start();
      const pc = new RTCPeerConnection();
      const [video] = canvas.captureStream(fps).getVideoTracks();
      video.contentHint = 'motion';
      const { codecs } = RTCRtpSender.getCapabilities('video');
      const transceiver = pc.addTransceiver(video, { direction: 'sendonly', sendEncodings: [{ maxBitrate }] });
      transceiver.setCodecPreferences(codecs.filter(({ mimeType }) => ['video/VP8', 'video/rtx'].includes(mimeType)));
      pc.addTransceiver(out.stream.getAudioTracks()[0], { direction: 'sendonly' });
      await pc.setLocalDescription();
      const response = await fetch(endpoint, {
        method: 'POST',
        headers: { 'Content-Type': 'application/sdp', Authorization: `Bearer ${token}` },
        body: pc.localDescription.sdp,
      });
      if (response.status !== 201) throw new Error(`${response.status} ${await response.text()}`);
      await pc.setRemoteDescription({ type: 'answer', sdp: await response.text() });
      window.pc = pc;
    },
    url,
    third,
    FPS,
    MAX_BITRATE,
  );
  let last = null;
  for await (const _ of createInterface({ input: process.stdin })) {
    const sent = await page.evaluate(async () => {
      const stats = [...(await window.pc.getStats()).values()];
      const { framesSent, bytesSent, timestamp } = stats.find(({ type, kind }) => type === 'outbound-rtp' && kind === 'video');
      return { frames: framesSent, bytes: bytesSent, at: timestamp };
    });
    print({ frames: sent.frames, bitrate: last ? Math.round(((sent.bytes - last.bytes) * 8000) / (sent.at - last.at)) : 0 });
    last = sent;
  }
}

async function watch(page) {
  await page.evaluateOnNewDocument(() => {
    const Native = window.RTCPeerConnection;
    window.connections = [];
    window.RTCPeerConnection = class extends Native {
      constructor(...parameters) {
        super(...parameters);
        window.connections.push(this);
      }
    };
  });
  const started = Date.now();
  await page.goto(url);
  const read = () =>
    page.evaluate(async () => {
      const video = document.querySelector('millstream-player')?.shadowRoot.querySelector('video');
      const reports = await Promise.all(window.connections.map((pc) => pc.getStats()));
      const inbound = reports.flatMap((report) => [...report.values()]).filter(({ type }) => type === 'inbound-rtp');
      const [picture, audio] = ['video', 'audio'].map((kind) => inbound.findLast((report) => report.kind === kind) ?? {});
      const { totalVideoFrames, droppedVideoFrames } = video?.getVideoPlaybackQuality() ?? {};
      return {
        connections: window.connections.length,
        at: performance.now(),
        frames: (totalVideoFrames ?? 0) - (droppedVideoFrames ?? 0),
        decoded: picture.framesDecoded ?? 0,
        frozen: picture.totalFreezesDuration ?? 0,
        jitterDelay: picture.jitterBufferDelay ?? 0,
        emitted: picture.jitterBufferEmittedCount ?? 0,
        lost: picture.packetsLost ?? 0,
        received: picture.packetsReceived ?? 0,
        concealed: audio.concealedSamples ?? 0,
        samples: audio.totalSamplesReceived ?? 0,
      };
    });
  let first = await read();
  while (first.frames === 0 && Date.now() - started < PATIENCE) {
    await sleep(20);
    first = await read();
  }
  const firstFrame = first.frames > 0 ? (Date.now() - started) / 1000 : null;
  await sleep(SETTLING * 1000);
  const before = await read();
  print({ begun: true });
  await sleep(Number(third) * 1000);
  const after = await read();
  const passed = (name) => after[name] - before[name];
  print({
    firstFrame,
    seconds: passed('at') / 1000,
    frames: passed('frames'),
    decoded: passed('decoded'),
    frozen: passed('frozen') / (passed('at') / 1000),
    delay: passed('jitterDelay') / Math.max(passed('emitted'), 1),
    concealed: passed('concealed') / Math.max(passed('samples'), 1),
    connections: after.connections,
  });
}

const browser = await browsers.chromium({ camera: false, more: ['--autoplay-policy=no-user-gesture-required'] });
try {
  await (role === 'publish' ? publish : watch)(await browser.newPage());
} finally {
  await browser.close();
}
