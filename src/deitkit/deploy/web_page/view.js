// From an image to the view that the model sees: as deitkit evaluates, the shorter side resized, then a centre crop.

import { resize } from "./resample.js";

const MOST_CUT_AWAY = 4; // times the view's area, up to which the whole image is resized before the crop
const STRIP_PIXELS = 2 ** 21; // read at once: canvases of whole photos are too large for some phones

/** The part of an image of width x height pixels that the model sees: box, resized size and window of `resize`. */
export function placement(width, height, { image_size: [H, W], crop }) {
  const low = Math.floor(H / crop + 1e-6), narrow = Math.floor(W / crop + 1e-6);
  const size =
    narrow / width > low / height
      ? [narrow, Math.max(low, Math.trunc((narrow * height) / width))]
      : [Math.max(narrow, Math.trunc((low * width) / height)), low];
  const left = Math.floor((size[0] - W) / 2), top = Math.floor((size[1] - H) / 2);
  const x = width / size[0], y = height / size[1];
  const seen = [left * x, top * y, (left + W) * x, (top + H) * y]; // in the image's pixels
  if (size[0] * size[1] <= MOST_CUT_AWAY * W * H) {
    return { seen, box: [0, 0, width, height], size, window: [left, top, W, H] };
  }
  return { seen, box: seen, size: [W, H], window: [0, 0, W, H] };
}

/** How many times smaller Pillow decodes a JPEG of this size. */
export function jpegReduction(width, height, { image_size, crop }) {
  const least = Math.round((2 * Math.max(...image_size)) / crop);
  const fits = Math.min(Math.floor(width / least), Math.floor(height / least));
  return [8, 4, 2].find((factor) => fits >= factor) ?? 1;
}

/** The model's view of an ImageBitmap: RGB bytes, H x W x 3. `isJpeg`: whether it comes from a JPEG file. */
export function viewOf(bitmap, isJpeg, preprocessing) {
  const factor = isJpeg ? jpegReduction(bitmap.width, bitmap.height, preprocessing) : 1;
  const image = readPixels(bitmap, factor);
  const { box, size, window } = placement(bitmap.width / factor, bitmap.height / factor, preprocessing);
  return resize(image, box, size, window);
}

/** RGB bytes -> the graph's input: planes of floats in [0, 1]. */
export function planes(view) {
  const count = view.length / 3, values = new Float32Array(view.length);
  for (let i = 0; i < count; i++) {
    for (let c = 0; c < 3; c++) values[c * count + i] = view[3 * i + c] / 255;
  }
  return values;
}

/** The pixels over white, means of factor x factor of them, as a JPEG's reduced scale has them. */
function readPixels(bitmap, factor) {
  const width = Math.ceil(bitmap.width / factor), height = Math.ceil(bitmap.height / factor);
  const rows = factor * Math.max(1, Math.floor(STRIP_PIXELS / bitmap.width / factor));
  const canvas = new OffscreenCanvas(bitmap.width, Math.min(rows, bitmap.height));
  const context = canvas.getContext("2d", { willReadFrequently: true });
  const data = new Uint8ClampedArray(4 * width * height);
  for (let top = 0; top < bitmap.height; top += rows) {
    const count = Math.min(rows, bitmap.height - top);
    context.fillStyle = "white";
    context.fillRect(0, 0, bitmap.width, count);
    context.drawImage(bitmap, 0, top, bitmap.width, count, 0, 0, bitmap.width, count);
    const strip = context.getImageData(0, 0, bitmap.width, count);
    data.set(factor === 1 ? strip.data : means(strip, factor), (4 * width * top) / factor);
  }
  return { data, width, height, channels: 4 };
}

function means({ data, width, height }, factor) {
  const columns = Math.ceil(width / factor), rows = Math.ceil(height / factor);
  const result = new Uint8ClampedArray(4 * columns * rows);
  for (let i = 0; i < rows; i++) {
    for (let j = 0; j < columns; j++) {
      const bottom = Math.min(height, (i + 1) * factor), right = Math.min(width, (j + 1) * factor);
      const count = (bottom - i * factor) * (right - j * factor);
      for (let c = 0; c < 3; c++) {
        let sum = 0;
        for (let y = i * factor; y < bottom; y++) {
          for (let x = j * factor; x < right; x++) sum += data[4 * (y * width + x) + c];
        }
        result[4 * (i * columns + j) + c] = Math.round(sum / count);
      }
    }
  }
  return result;
}
