// The front page: from a stream's name to its pages.

import { byId, copies } from './page.js';

const name = byId('name');
const server = () => `${location.origin}/whip/${name.value}`;
const showServer = () => (byId('server').textContent = server());

name.addEventListener('input', showServer);
showServer();
copies(byId('copy-server'), server);

byId('stream').addEventListener('submit', (event) => {
  event.preventDefault();
  location.assign(`/${event.submitter?.value ?? 'watch'}/${name.value}`);
});
