// Builds the npm package from the player of the gateway: `dist/index.js` for bundlers and import maps, and
// `dist/millstream-player.iife.js` for a plain `<script>`.

import { copyFile, mkdir } from 'node:fs/promises';
import { fileURLToPath } from 'node:url';
import { build } from 'esbuild';

const path = (relative) => fileURLToPath(new URL(relative, import.meta.url));

/** Takes hls.js from npm, instead of from the gateway. */
const libraryFromNpm = {
  name: 'library-from-npm',
  setup({ onResolve }) {
    onResolve({ filter: /^\.\/library\.js$/ }, () => ({ path: path('src/library.js') }));
  },
};

const common = { entryPoints: [path('../player.js')], bundle: true, minify: true, target: 'es2022', logLevel: 'warning' };

await mkdir(path('dist'), { recursive: true });
await build({ ...common, format: 'esm', outfile: path('dist/index.js'), external: ['hls.js'], plugins: [libraryFromNpm] });
await build({ ...common, format: 'iife', globalName: 'Millstream', outfile: path('dist/millstream-player.iife.js') });
for (const license of ['LICENSE-APACHE', 'LICENSE-MIT']) await copyFile(path(`../../${license}`), path(`dist/${license}`));
