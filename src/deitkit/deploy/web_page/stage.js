// The image on the page: the part that the model sees, and over it where a token looks.

import { placement } from "./view.js";

const SIDE = 640; // pixels of the canvas' longer side
const SCALE = [[0, 0, 4], [87, 16, 110], [188, 55, 84], [249, 142, 9], [252, 255, 164]]; // "inferno", dark to bright

/** Draws the part of `image` that the model sees, with `map` (rows of weights, or null) over it. */
export function draw(canvas, image, facts, map, strength) {
  const { seen: [left, top, right, bottom] } = placement(image.width, image.height, facts);
  const [H, W] = facts.image_size;
  canvas.width = Math.round((SIDE * W) / Math.max(H, W));
  canvas.height = Math.round((SIDE * H) / Math.max(H, W));
  const context = canvas.getContext("2d");
  context.fillStyle = "white";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.imageSmoothingQuality = "high";
  context.drawImage(image, left, top, right - left, bottom - top, 0, 0, canvas.width, canvas.height);
  if (map) overlay(context, map, strength);
}

function overlay(context, map, strength) {
  const rows = map.length, columns = map[0].length, largest = Math.max(...map.flat());
  const small = new OffscreenCanvas(columns, rows), pixels = new ImageData(columns, rows);
  map.flat().forEach((weight, i) => {
    const value = weight / largest;
    pixels.data.set([...color(value), Math.round(255 * strength * (0.4 + 0.6 * value))], 4 * i);
  });
  small.getContext("2d").putImageData(pixels, 0, 0);
  context.drawImage(small, 0, 0, context.canvas.width, context.canvas.height);
}

/** A value in [0, 1] -> red, green, blue. */
function color(value) {
  const place = Math.min(value, 1) * (SCALE.length - 1), k = Math.min(Math.floor(place), SCALE.length - 2);
  return SCALE[k].map((low, c) => Math.round(low + (place - k) * (SCALE[k + 1][c] - low)));
}
