// QR codes (ISO/IEC 18004) of texts: bytes, error correction level M, the smallest of the versions 1 to 20.

/** Of level M, for each version: codewords of error correction per block, and blocks. */
const CORRECTION = [10, 16, 26, 18, 24, 16, 18, 22, 22, 26, 30, 22, 22, 24, 24, 28, 28, 26, 26, 26];
const BLOCKS = [1, 1, 1, 2, 2, 4, 4, 4, 5, 5, 5, 8, 9, 9, 10, 10, 11, 13, 14, 16];
/** Number of the level in the format information. */
const LEVEL = 0;

const MASKS = [
  (x, y) => (x + y) % 2 === 0,
  (_, y) => y % 2 === 0,
  (x) => x % 3 === 0,
  (x, y) => (x + y) % 3 === 0,
  (x, y) => (Math.floor(x / 3) + Math.floor(y / 2)) % 2 === 0,
  (x, y) => ((x * y) % 2) + ((x * y) % 3) === 0,
  (x, y) => (((x * y) % 2) + ((x * y) % 3)) % 2 === 0,
  (x, y) => (((x + y) % 2) + ((x * y) % 3)) % 2 === 0,
];

/** Returns rows of modules, true for dark ones; null if the text is too long. */
export function encodeQr(text) {
  const bytes = new TextEncoder().encode(text);
  for (let version = 1; version <= BLOCKS.length; version += 1) {
    const data = dataCodewords(bytes, version);
    if (data) return bestMasked(version, withCorrection(data, version));
  }
  return null;
}

/** Number of codewords of a version: the modules that no pattern takes, in bytes. */
function codewordCount(version) {
  const size = 17 + 4 * version;
  const alignments = alignmentPositions(version).length;
  const patterns = 3 * 64 + 2 * 15 + 1 + 2 * (size - 16);
  const alignment = alignments === 0 ? 0 : (alignments ** 2 - 3) * 25 - (alignments - 2) * 2 * 5;
  return (size ** 2 - patterns - alignment - (version >= 7 ? 36 : 0)) >> 3;
}

/** The text as data codewords, padded to what the version holds; null if it does not fit. */
function dataCodewords(bytes, version) {
  const capacity = codewordCount(version) - CORRECTION[version - 1] * BLOCKS[version - 1];
  const lengthBits = version < 10 ? 8 : 16;
  const needed = 4 + lengthBits + bytes.length * 8;
  if (needed > capacity * 8 || bytes.length >= 2 ** lengthBits) return null;
  // 0100 is the mode of bytes, and four zeros end the data.
  const end = '0'.repeat(Math.min(4, capacity * 8 - needed));
  const fields = [[0b0100, 4], [bytes.length, lengthBits], ...[...bytes].map((byte) => [byte, 8])];
  const bits = fields.map(([value, length]) => value.toString(2).padStart(length, '0')).join('') + end;
  const codewords = (bits.match(/.{1,8}/g) ?? []).map((octet) => parseInt(octet.padEnd(8, '0'), 2));
  for (let pad = 0xec; codewords.length < capacity; pad ^= 0xec ^ 0x11) codewords.push(pad);
  return codewords;
}

/** Product in GF(256) with the polynomial of the standard. */
function multiply(a, b) {
  let product = 0;
  for (let bit = 7; bit >= 0; bit -= 1) {
    product = (product << 1) ^ (product >> 7) * 0x11d;
    if ((b >> bit) & 1) product ^= a;
  }
  return product;
}

/** Coefficients of the generator of a Reed-Solomon code, without the leading 1. */
function generator(degree) {
  let coefficients = [...Array(degree - 1).fill(0), 1];
  let root = 1;
  for (let n = 0; n < degree; n += 1) {
    coefficients = coefficients.map((value, index) => multiply(value, root) ^ (coefficients[index + 1] ?? 0));
    root = multiply(root, 2);
  }
  return coefficients;
}

function remainder(data, divisor) {
  const rest = Array(divisor.length).fill(0);
  for (const value of data) {
    const factor = value ^ rest.shift();
    rest.push(0);
    divisor.forEach((coefficient, index) => (rest[index] ^= multiply(coefficient, factor)));
  }
  return rest;
}

/** Splits the data into blocks, corrects each, and interleaves them. */
function withCorrection(data, version) {
  const [count, length] = [BLOCKS[version - 1], CORRECTION[version - 1]];
  const total = codewordCount(version);
  const shortBlocks = count - (total % count);
  const shortLength = Math.floor(total / count) - length;
  const divisor = generator(length);
  const blocks = [];
  for (let index = 0, at = 0; index < count; index += 1) {
    const end = at + shortLength + (index < shortBlocks ? 0 : 1);
    const own = data.slice(at, end);
    blocks.push({ own, correction: remainder(own, divisor) });
    at = end;
  }
  const interleaved = (key, longest) => {
    const columns = Array.from({ length: longest }, (_, index) => blocks.map((block) => block[key][index]));
    return columns.flat().filter((value) => value !== undefined);
  };
  return [...interleaved('own', shortLength + 1), ...interleaved('correction', length)];
}

function alignmentPositions(version) {
  if (version === 1) return [];
  const count = Math.floor(version / 7) + 2;
  const step = Math.ceil((4 * version + 4) / (2 * count - 2)) * 2;
  const last = 4 * version + 10;
  return [6, ...Array.from({ length: count - 1 }, (_, index) => last - step * (count - 2 - index))];
}

/** The modules of all patterns; null for those that hold data. */
function withPatterns(version) {
  const size = 17 + 4 * version;
  const grid = Array.from({ length: size }, () => Array(size).fill(null));
  const square = (x, y, radius, isDark) => {
    for (let dy = -radius; dy <= radius; dy += 1) {
      for (let dx = -radius; dx <= radius; dx += 1) {
        if (grid[y + dy]?.[x + dx] !== undefined) grid[y + dy][x + dx] = isDark(Math.max(Math.abs(dx), Math.abs(dy)));
      }
    }
  };
  for (let n = 0; n < size; n += 1) grid[6][n] = grid[n][6] = n % 2 === 0;
  for (const [x, y] of [[3, 3], [size - 4, 3], [3, size - 4]]) square(x, y, 4, (distance) => distance !== 2 && distance !== 4);
  const positions = alignmentPositions(version);
  const last = positions.length - 1;
  positions.forEach((x, i) => positions.forEach((y, j) => {
    const isFinder = (i === 0 && j === 0) || (i === 0 && j === last) || (i === last && j === 0);
    if (!isFinder) square(x, y, 2, (distance) => distance !== 1);
  }));
  setFormat(grid, 0);
  if (version >= 7) setVersion(grid, version);
  return grid;
}

/** Appends the remainder of a division by a generator of BCH codes. */
function withBch(value, polynomial, length) {
  let rest = value;
  for (let n = 0; n < length; n += 1) rest = (rest << 1) ^ ((rest >> (length - 1)) * polynomial);
  return (value << length) | rest;
}

function setFormat(grid, mask) {
  const size = grid.length;
  const bits = withBch((LEVEL << 3) | mask, 0x537, 10) ^ 0x5412;
  const bit = (n) => ((bits >> n) & 1) === 1;
  for (let n = 0; n < 15; n += 1) {
    // Beside the upper left finder, without the timing pattern.
    if (n < 6) grid[n][8] = bit(n);
    else if (n < 8) grid[n + 1][8] = bit(n);
    else grid[8][n === 8 ? 7 : 14 - n] = bit(n);
    // Beside the other two.
    if (n < 8) grid[8][size - 1 - n] = bit(n);
    else grid[size - 15 + n][8] = bit(n);
  }
  grid[size - 8][8] = true;
}

function setVersion(grid, version) {
  const bits = withBch(version, 0x1f25, 12);
  for (let n = 0; n < 18; n += 1) {
    const [a, b] = [grid.length - 11 + (n % 3), Math.floor(n / 3)];
    grid[a][b] = grid[b][a] = ((bits >> n) & 1) === 1;
  }
}

function bestMasked(version, codewords) {
  const all = MASKS.map((_, mask) => masked(version, codewords, mask));
  const penalties = all.map(penalty);
  return all[penalties.indexOf(Math.min(...penalties))];
}

/** Fills the data in from the lower right corner, in columns of two, upwards and downwards by turns. */
function masked(version, codewords, mask) {
  const grid = withPatterns(version);
  const size = grid.length;
  let at = 0;
  for (let right = size - 1; right >= 1; right -= 2) {
    if (right === 6) right = 5;
    for (let step = 0; step < size; step += 1) {
      const isUpwards = ((right + 1) & 2) === 0;
      const y = isUpwards ? size - 1 - step : step;
      for (const x of [right, right - 1]) {
        if (grid[y][x] !== null) continue;
        const isSet = ((codewords[at >> 3] ?? 0) >> (7 - (at & 7))) & 1;
        grid[y][x] = (isSet === 1) !== MASKS[mask](x, y);
        at += 1;
      }
    }
  }
  setFormat(grid, mask);
  return grid;
}

/** How hard a code is to read: long runs, squares of one colour, and more of one than of the other. */
function penalty(grid) {
  const size = grid.length;
  let sum = 0;
  const columns = grid.map((_, x) => grid.map((row) => row[x]));
  for (const line of [...grid, ...columns]) {
    const runs = line.map((isDark) => (isDark ? '1' : '0')).join('').match(/1+|0+/g);
    sum += runs.reduce((all, { length }) => all + (length >= 5 ? length - 2 : 0), 0);
  }
  for (let y = 1; y < size; y += 1) {
    for (let x = 1; x < size; x += 1) {
      const first = grid[y][x];
      if (first === grid[y - 1][x] && first === grid[y][x - 1] && first === grid[y - 1][x - 1]) sum += 3;
    }
  }
  const dark = grid.flat().filter(Boolean).length;
  return sum + Math.floor(Math.abs(dark * 20 - size ** 2 * 10) / size ** 2) * 10;
}
