// What the pages share: the stream's name and the token in the address, and small DOM helpers.

/** The stream that a page like `/watch/NAME` is about; may contain slashes. */
export function streamName() {
  return decodeURIComponent(location.pathname).split('/').slice(2).filter(Boolean).join('/');
}

/**
 * The token for this tab: from the address (`#token=...`, which no server ever sees) or from an earlier visit in this
 * tab. Taken out of the address, so that it is not copied along with a link.
 */
export function takeToken(key) {
  const given = new URLSearchParams(location.hash.slice(1)).get('token');
  if (given !== null) {
    keepToken(key, given);
    history.replaceState(null, '', location.pathname + location.search);
  }
  return sessionStorage.getItem(key) ?? '';
}

export function keepToken(key, token) {
  sessionStorage.setItem(key, token);
}

export const byId = (id) => document.getElementById(id);

/** Makes a button copy what `text()` returns, and say so. */
export function copies(button, text) {
  const label = button.textContent;
  button.addEventListener('click', async () => {
    await navigator.clipboard?.writeText(text());
    button.textContent = navigator.clipboard ? 'Copied' : 'Press Ctrl+C';
    setTimeout(() => (button.textContent = label), 1500);
  });
}
