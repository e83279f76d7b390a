// The watch page: the player, a field for the playback token if the gateway requires one, and a button to talk to the camera
// if the token permits that.

import './player.js';
import { byId, storeToken, streamName, loadToken } from './page.js';
import { TalkButton } from './talk.js';

const TOKEN = 'millstream.play-token';
const stream = streamName();
const player = byId('player');
const tokenForm = byId('token-form');
const talk = new TalkButton(byId('talk'), stream);

document.title = `${stream} · Millstream`;
byId('name').textContent = stream;

player.addEventListener('statechange', ({ detail: { reason } }) => {
  tokenForm.hidden = !(reason?.status === 401 || reason?.status === 403);
});
tokenForm.addEventListener('submit', (event) => {
  event.preventDefault();
  storeToken(TOKEN, byId('token').value);
  tokenForm.hidden = true;
  player.setAttribute('token', byId('token').value);
  talk.offer(byId('token').value);
});

// `?way=hls` and `?way=webrtc` select the transport; by default the player chooses.
const transport = new URLSearchParams(location.search).get('way');
if (transport === 'hls') player.setAttribute('hls', 'only');
if (transport === 'webrtc') player.setAttribute('hls', 'off');
player.setAttribute('aria-label', `Live stream ${stream}`);
player.setAttribute('token', loadToken(TOKEN));
player.setAttribute('src', `/whep/${stream}`);
talk.offer(loadToken(TOKEN));
