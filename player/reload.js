// Loads a page again whose module was lost on the way: browsers give up what they load when the network changes. A classic
// script with `defer` behind the module: when it runs, the module has run too, or never will. `page.js` leaves a mark.

(() => {
  const root = document.documentElement;
  /** Delays before the page is loaded again, in milliseconds; then it waits for the network. */
  const DELAYS = [1_000, 3_000, 9_000];
  // The state of the history entry outlives the page, also in frames that may store nothing.
  const { reloads = 0, ...others } = history.state ?? {};
  if ('scripted' in root.dataset) {
    if (reloads) history.replaceState(others, '');
    return;
  }
  const reload = () => {
    history.replaceState({ ...others, reloads: reloads + 1 }, '');
    location.reload();
  };
  addEventListener('online', reload, { once: true });
  // Pages of many viewers, all of which lost the same gateway, come back one after another.
  if (reloads < DELAYS.length) setTimeout(reload, DELAYS[reloads] * (0.75 + Math.random() / 2));
})();
