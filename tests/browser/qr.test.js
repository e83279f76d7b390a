// QR codes, without a browser: another implementation reads them.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import jsqr from 'jsqr';
import { encodeQr } from '../../player/qr.js';

/** What is read from a code with a border of four modules, drawn with four pixels each. */
function read(modules) {
  const [scale, border] = [4, 4];
  const size = (modules.length + 2 * border) * scale;
  const pixels = new Uint8ClampedArray(size * size * 4).fill(255);
  modules.forEach((row, y) => row.forEach((isDark, x) => {
    if (!isDark) return;
    for (let dy = 0; dy < scale; dy += 1) {
      const from = ((y + border) * scale + dy) * size + (x + border) * scale;
      for (let dx = 0; dx < scale; dx += 1) pixels.set([0, 0, 0], (from + dx) * 4);
    }
  }));
  return (jsqr.default ?? jsqr)(pixels, size, size)?.data;
}

test('links of each length are read as what they are', () => {
  const versions = new Set();
  for (let length = 1; length <= 660; length += 13) {
    const text = `http://host/${'watch/stage-~'.repeat(60)}`.slice(0, length);
    const modules = encodeQr(text);
    versions.add((modules.length - 17) / 4);
    assert.equal(read(modules), text, `${length} bytes`);
  }
  assert.ok(versions.size >= 15, `versions ${[...versions]}`);
  assert.equal(read(encodeQr('https://bücher.example/watch/ü')), 'https://bücher.example/watch/ü');
});

test('a text that is too long has no code', () => {
  assert.equal(encodeQr('x'.repeat(667)), null);
  assert.equal(read(encodeQr('x'.repeat(666))), 'x'.repeat(666));
});
