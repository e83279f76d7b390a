// Helpers of the pages: stream name and token in the URL, and DOM functions.

/** Returns the stream name in the URL of a page like `/watch/NAME`; it may contain slashes. */
export function streamName() {
  return decodeURIComponent(location.pathname).split('/').slice(2).filter(Boolean).join('/');
}

/**
 * Returns the token for this tab: from the URL fragment (`#token=...`, which is not sent to servers) or from an earlier
 * visit in this tab. Removes it from the URL, so that it is not copied with a link.
 */
export function loadToken(key) {
  const token = new URLSearchParams(location.hash.slice(1)).get('token');
  if (token !== null) {
    storeToken(key, token);
    history.replaceState(null, '', location.pathname + location.search);
  }
  return sessionStorage.getItem(key) ?? '';
}

/** Whether the URL contains a token that `loadToken` has not taken yet. */
export function hasTokenInLink() {
  return new URLSearchParams(location.hash.slice(1)).has('token');
}

export function storeToken(key, token) {
  sessionStorage.setItem(key, token);
}

export const byId = (id) => document.getElementById(id);

/** Makes a button copy `text()` to the clipboard and confirm it. */
export function copyOnClick(button, text) {
  const label = button.textContent;
  button.addEventListener('click', async () => {
    await navigator.clipboard?.writeText(text());
    button.textContent = navigator.clipboard ? 'Copied' : 'Press Ctrl+C';
    setTimeout(() => (button.textContent = label), 1500);
  });
}
