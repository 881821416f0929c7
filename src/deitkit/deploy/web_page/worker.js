// Runs the model in the browser, off the page's own thread. Messages: { id, bitmap, isJpeg } -> { id, outputs } or
// { id, error }; the first message is the model's facts, answered by { ready } or { error }.

import * as ort from "./runtime/ort.wasm.bundle.min.mjs";
import { planes, viewOf } from "./view.js";

let facts, session;

/** A file beside the page, decompressed if it is in gzip: some hosts decompress on their own. */
async function load(name) {
  const answer = await fetch(name);
  if (!answer.ok) throw new Error(`${name} cannot be loaded (${answer.status})`);
  const bytes = new Uint8Array(await answer.arrayBuffer());
  if (bytes[0] !== 0x1f || bytes[1] !== 0x8b) return bytes;
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

async function start(given) {
  facts = given;
  const [wasm, graph] = await Promise.all([load("runtime/ort-wasm-simd-threaded.wasm.gz"), load("model.onnx")]);
  ort.env.wasm.numThreads = 1; // more need headers that hosts of static files do not send
  ort.env.wasm.wasmBinary = wasm.buffer;
  session = await ort.InferenceSession.create(graph, { executionProviders: ["wasm"] });
}

async function run({ bitmap, isJpeg }) {
  const view = planes(viewOf(bitmap, isJpeg, facts));
  bitmap.close();
  const found = await session.run({ views: new ort.Tensor("float32", view, [1, 3, ...facts.image_size]) });
  return Object.fromEntries(Object.entries(found).map(([name, { data, dims }]) => [name, { data, dims }]));
}

self.onmessage = async ({ data }) => {
  try {
    if (data.facts) {
      await start(data.facts);
      self.postMessage({ ready: true });
    } else {
      self.postMessage({ id: data.id, outputs: await run(data) });
    }
  } catch (error) {
    self.postMessage({ id: data.id, error: String(error.message ?? error) });
  }
};
