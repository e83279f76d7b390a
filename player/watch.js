// The watch page: the player, and a field for the token when the gateway asks for one.

import './player.js';
import { byId, keepToken, streamName, takeToken } from './page.js';

const TOKEN = 'millstream.play-token';
const stream = streamName();
const player = byId('player');
const ask = byId('ask');

document.title = `${stream} · Millstream`;
byId('name').textContent = stream;

player.addEventListener('statechange', ({ detail: { reason } }) => {
  ask.hidden = !(reason?.status === 401 || reason?.status === 403);
});
ask.addEventListener('submit', (event) => {
  event.preventDefault();
  keepToken(TOKEN, byId('token').value);
  ask.hidden = true;
  player.setAttribute('token', byId('token').value);
});

// `?way=hls` and `?way=webrtc` choose; without, the player does.
const way = new URLSearchParams(location.search).get('way');
if (way === 'hls') player.setAttribute('hls', 'only');
if (way === 'webrtc') player.setAttribute('hls', 'off');
player.setAttribute('token', takeToken(TOKEN));
player.setAttribute('src', `/whep/${stream}`);
