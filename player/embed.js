// The page for frames on other pages, `/embed/NAME`: nothing but the player. Parameters of its URL:
//
//   autoplay=0   wait for a click
//   muted=0      with audio; browsers then play without a click only where the page around the frame may
//   controls=0   without the control bar
//   way=hls      HLS only; `way=webrtc`: WebRTC only
//   #token=...   the playback token, in the fragment, which is not sent to servers

import './player.js';
import { byId, streamName } from './page.js';

const stream = streamName();
const player = byId('player');
const query = new URLSearchParams(location.search);

document.title = `${stream} · Millstream`;
for (const name of ['autoplay', 'controls']) player.toggleAttribute(name, query.get(name) !== '0');
// The attribute counts only where the element is made.
player.muted = query.get('muted') !== '0';
const hls = { hls: 'only', webrtc: 'off' }[query.get('way')];
if (hls) player.setAttribute('hls', hls);
// Frames of other sites may have no storage, so the token is not kept.
player.setAttribute('token', new URLSearchParams(location.hash.slice(1)).get('token') ?? '');
player.setAttribute('aria-label', `Live stream ${stream}`);
player.setAttribute('src', `/whep/${stream}`);
