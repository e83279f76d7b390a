// The front page: links to the pages of a stream.

import { byId, copyOnClick } from './page.js';

const name = byId('name');
const server = () => `${location.origin}/whip/${name.value}`;
const showServer = () => (byId('server').textContent = server());

name.addEventListener('input', showServer);
showServer();
copyOnClick(byId('copy-server'), server);

byId('stream').addEventListener('submit', (event) => {
  event.preventDefault();
  location.assign(`/${event.submitter?.value ?? 'watch'}/${name.value}`);
});
