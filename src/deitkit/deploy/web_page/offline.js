// A service worker: keeps the page's files, so that it opens without a network, too. With one, files come from there.

const CACHE = "page";
const FILES = [
  "./", "app.js", "camera.js", "card.js", "icon.svg", "local_model.js", "model.json", "model.onnx", "resample.js",
  "results.js", "runtime/ort-wasm-simd-threaded.wasm.gz", "runtime/ort.wasm.bundle.min.mjs", "stage.js", "style.css",
  "view.js", "worker.js",
];

self.addEventListener("install", (event) => {
  event.waitUntil(caches.open(CACHE).then((cache) => cache.addAll(FILES)));
});

self.addEventListener("fetch", (event) => {
  if (event.request.method === "GET") event.respondWith(fromNetworkOrCache(event.request));
});

async function fromNetworkOrCache(request) {
  const cache = await caches.open(CACHE);
  try {
    const answer = await fetch(request);
    if (answer.ok) await cache.put(request, answer.clone());
    return answer;
  } catch (error) {
    const kept = await cache.match(request);
    if (kept) return kept;
    throw error;
  }
}
