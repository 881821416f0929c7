// Resizes pixels as Pillow does, bit for bit, so that the browser sees the views that the model was validated on.

const PRECISION = 22; // bits after the point of Pillow's weights for 8-bit pixels
const SUPPORT = 2; // of the bicubic filter, in pixels

function bicubic(x) {
  const a = -0.5;
  x = Math.abs(x);
  if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
  if (x < 2) return (((x - 5) * x + 8) * x - 4) * a;
  return 0;
}

/**
 * Weights that resize the part [start, end) of a line of `length` pixels to `size` pixels, for the pixels of the
 * result from `first` on, `count` of them: for each the index of its first source pixel and integer weights.
 * Antialiased: when a line shrinks, the filter grows with it.
 */
function weights(length, start, end, size, first, count) {
  const scale = Math.fround(end - start) / size; // Pillow keeps the box in single precision
  const stretch = Math.max(scale, 1);
  const support = SUPPORT * stretch;
  return Array.from({ length: count }, (_, i) => {
    const center = start + (first + i + 0.5) * scale;
    const low = Math.max(0, Math.trunc(center - support + 0.5));
    const high = Math.min(length, Math.trunc(center + support + 0.5));
    const values = Float64Array.from({ length: high - low }, (_, k) => bicubic((low + k - center + 0.5) / stretch));
    const total = values.reduce((sum, value) => sum + value, 0);
    const whole = values.map((value) => {
      const scaled = (value / total) * 2 ** PRECISION;
      return Math.trunc(scaled < 0 ? scaled - 0.5 : scaled + 0.5);
    });
    return { low, whole };
  });
}

function round8(sum) {
  const value = Math.floor((sum + 2 ** (PRECISION - 1)) / 2 ** PRECISION);
  return value < 0 ? 0 : value > 255 ? 255 : value;
}

/** Resamples lines. `at(line, k)` is where pixel k of a line begins in `from`; `to` is filled in order. */
function pass(from, to, lines, columns, at, place) {
  for (let line = 0; line < lines; line++) {
    for (let i = 0; i < columns.length; i++) {
      const { low, whole } = columns[i];
      let red = 0, green = 0, blue = 0;
      for (let k = 0; k < whole.length; k++) {
        const p = at(line, low + k), weight = whole[k];
        red += from[p] * weight;
        green += from[p + 1] * weight;
        blue += from[p + 2] * weight;
      }
      const q = place(line, i);
      to[q] = round8(red);
      to[q + 1] = round8(green);
      to[q + 2] = round8(blue);
    }
  }
}

/**
 * Part of an image, resized: the box [left, top, right, bottom] of `image` becomes `size` [width, height], of which
 * `window` [left, top, width, height] is computed.
 *
 * image: { data, width, height, channels }, 8 bits each, of which the first three are used.
 * Returns RGB of the window, three bytes a pixel.
 */
export function resize(image, box, size, window) {
  const [left, top, right, bottom] = box.map(Math.fround);
  const [x, y, width, height] = window;
  const columns = weights(image.width, left, right, size[0], x, width);
  const rows = weights(image.height, top, bottom, size[1], y, height);
  const first = Math.min(...rows.map((row) => row.low));
  const last = Math.max(...rows.map((row) => row.low + row.whole.length));
  const { channels } = image;

  const narrow = new Uint8ClampedArray(3 * width * (last - first));
  pass(
    image.data, narrow, last - first, columns,
    (line, k) => channels * ((first + line) * image.width + k),
    (line, i) => 3 * (line * width + i),
  );
  const result = new Uint8ClampedArray(3 * width * height);
  pass(
    narrow, result, width, rows,
    (line, k) => 3 * ((k - first) * width + line),
    (line, i) => 3 * (i * width + line),
  );
  return result;
}
