// Helpers of the pages: stream name and token in the URL, and DOM functions.

import { copyText } from './clipboard.js';

// The modules of the page have loaded: see `reload.js`.
document.documentElement.dataset.scripted = '';

/** Returns the stream name in the URL of a page like `/watch/NAME`; it may contain slashes. */
export function streamName() {
  return decodeURIComponent(location.pathname).split('/').slice(2).filter(Boolean).join('/');
}

/**
 * Returns the token for this tab: from the URL fragment (`#token=...`, which is not sent to servers) or from an earlier
 * visit in this tab. Removes it from the URL, so that it is not copied with a link. With `keepsStored` a token from the URL
 * is taken only if the tab has none: whoever made the link could otherwise replace the one that the user has entered.
 */
export function loadToken(key, { keepsStored = false } = {}) {
  const token = new URLSearchParams(location.hash.slice(1)).get('token');
  if (token !== null) {
    if (!keepsStored || !sessionStorage.getItem(key)) storeToken(key, token);
    history.replaceState(null, '', location.pathname + location.search);
  }
  return sessionStorage.getItem(key) ?? '';
}

export function storeToken(key, token) {
  sessionStorage.setItem(key, token);
}

export const byId = (id) => document.getElementById(id);

/** Makes a button copy `text()` to the clipboard and confirm it. */
export function copyOnClick(button, text) {
  const label = button.textContent;
  button.addEventListener('click', async () => {
    button.textContent = (await copyText(text())) ? 'Copied' : 'Not copied';
    setTimeout(() => (button.textContent = label), 1500);
  });
}

/** Makes an element with attributes and children; an attribute `class` is one too. Empty children are left out. */
export function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children.filter((child) => child !== null && child !== undefined && child !== ''));
  return made;
}

/** Changes the text of a node if it differs, so that a selection is kept where nothing changes. */
export function setText(node, text) {
  if (node.textContent !== String(text)) node.textContent = text;
}

/** Shows the nodes in this order, and only moves those that are elsewhere. The focus stays where it is. */
export function arrange(parent, nodes) {
  const focused = document.activeElement;
  const wanted = new Set(nodes);
  for (const child of [...parent.children]) if (!wanted.has(child)) child.remove();
  let next = parent.firstElementChild;
  for (const node of nodes) {
    // What stands in between moves when it is its turn, so that the many that follow need not.
    if (next?.nextElementSibling === node) next = node;
    if (node === next) next = next.nextElementSibling;
    else parent.insertBefore(node, next);
  }
  if (focused?.isConnected && focused !== document.activeElement) focused.focus({ preventScroll: true });
}

/** Shows warnings as the items of a list. */
export function showWarnings(list, warnings) {
  const isSame = list.childElementCount === warnings.length && warnings.every((text, index) => list.children[index].textContent === text);
  if (!isSame) list.replaceChildren(...warnings.map((text) => element('li', {}, text)));
  list.hidden = warnings.length === 0;
}

export function button(text, work, label) {
  const made = element('button', { class: 'small', type: 'button', ...(label && { 'aria-label': label }) }, text);
  made.addEventListener('click', work);
  return made;
}

export function copyButton(text, what, label) {
  const made = element('button', { class: 'small', type: 'button', 'aria-label': label }, text);
  copyOnClick(made, what);
  return made;
}
