// Loads hls.js on first use, as a chunk of the application that uses the package.

let loading;

/** Resolves with the class `Hls`; with null if it cannot be loaded. */
export function loadLibrary() {
  loading ??= import('hls.js').then(({ default: Hls }) => Hls, () => null);
  return loading;
}
