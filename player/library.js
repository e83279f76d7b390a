// Loads hls.js on first use. The npm package has another file in place of this one.

let loading;

/** Loads hls.js from the gateway of a playlist. Resolves with the class `Hls`; with null if it cannot be loaded. */
export function loadLibrary(playlist) {
  loading ??= new Promise((resolve) => {
    const script = document.createElement('script');
    script.src = new URL(playlist.pathname.replace(/\/hls\/.*$/, '/hls.min.js'), playlist);
    script.onload = () => resolve(globalThis.Hls ?? null);
    script.onerror = () => resolve(null);
    document.head.append(script);
  });
  return loading;
}
