// A film of 16 bits a pixel: sampled to the size of a canvas, then windowed by a table of 65,536 entries.

const WHITE = 65535;
const OPAQUE = 0xff000000;

export class Film {
  constructor({ width, height, pixels, window, warnings }) {
    this.width = width;
    this.height = height;
    this.window = window;
    this.warnings = warnings;
    this.levels = [{ width, height, pixels }];
  }

  get bytes() {
    return this.levels.reduce((sum, level) => sum + level.pixels.byteLength, 0);
  }

  // The film with sides divided by 2 ** number; each pixel is the mean of four.
  level(number) {
    while (this.levels.length <= number) this.levels.push(halve(this.levels.at(-1)));
    return this.levels[number];
  }

  // Sample into `out`, Uint16Array [height * width]: canvas pixel (x, y) shows film point (left + x / scale,
  // top + y / scale). Returns the part of the canvas that the film covers.
  sample(out, width, height, scale, left, top) {
    const x0 = clamp(Math.ceil(-left * scale), 0, width);
    const y0 = clamp(Math.ceil(-top * scale), 0, height);
    const x1 = clamp(Math.floor((this.width - left) * scale), x0, width);
    const y1 = clamp(Math.floor((this.height - top) * scale), y0, height);
    const deepest = Math.floor(Math.log2(Math.max(8, Math.min(this.width, this.height)) / 8));
    const number = clamp(Math.floor(Math.log2(1 / scale) + 0.25), 0, deepest);
    const source = this.level(number);
    const shrink = 2 ** number;
    const columns = new Int32Array(x1 - x0);
    const weights = new Int32Array(x1 - x0);
    for (let x = x0; x < x1; x++) {
      const at = clamp((left + (x + 0.5) / scale) / shrink - 0.5, 0, source.width - 1);
      columns[x - x0] = Math.min(Math.floor(at), Math.max(0, source.width - 2));
      weights[x - x0] = Math.round((at - columns[x - x0]) * 256);
    }
    const pixels = source.pixels;
    const right = source.width > 1 ? 1 : 0;
    for (let y = y0; y < y1; y++) {
      const at = clamp((top + (y + 0.5) / scale) / shrink - 0.5, 0, source.height - 1);
      const row = Math.min(Math.floor(at), Math.max(0, source.height - 2));
      const weight = Math.round((at - row) * 256);
      const upper = row * source.width;
      const lower = source.height > 1 ? upper + source.width : upper;
      let to = y * width + x0;
      for (let x = 0; x < columns.length; x++) {
        const column = columns[x];
        const w = weights[x];
        const a = pixels[upper + column] * (256 - w) + pixels[upper + column + right] * w;
        const b = pixels[lower + column] * (256 - w) + pixels[lower + column + right] * w;
        out[to++] = (a * (256 - weight) + b * weight) >>> 16;
      }
    }
    return { x0, y0, x1, y1 };
  }
}

function halve({ width, height, pixels }) {
  const wide = Math.max(1, width >> 1);
  const high = Math.max(1, height >> 1);
  const out = new Uint16Array(wide * high);
  for (let y = 0; y < high; y++) {
    let from = 2 * y * width;
    let to = y * wide;
    for (let x = 0; x < wide; x++, from += 2) {
      out[to++] = (pixels[from] + pixels[from + 1] + pixels[from + width] + pixels[from + width + 1] + 2) >> 2;
    }
  }
  return { width: wide, height: high, pixels: out };
}

// Pixel value -> color, for a window whose ends are shares of 65,535.
export function fillTable(table, [low, high], inverted) {
  const start = low * WHITE;
  const slope = 255 / Math.max(1e-6, (high - low) * WHITE);
  for (let value = 0; value <= WHITE; value++) {
    let gray = (value - start) * slope + 0.5;
    gray = gray < 0 ? 0 : gray > 255 ? 255 : gray | 0;
    if (inverted) gray = 255 - gray;
    table[value] = OPAQUE | (gray << 16) | (gray << 8) | gray;
  }
}

export function paint(colors, samples, table, width, { x0, y0, x1, y1 }) {
  for (let y = y0; y < y1; y++) {
    const end = y * width + x1;
    for (let at = y * width + x0; at < end; at++) colors[at] = table[samples[at]];
  }
}

export function clamp(value, low, high) {
  return value < low ? low : value > high ? high : value;
}
