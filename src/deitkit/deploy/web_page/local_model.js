// The model in the browser: a worker that runs ONNX Runtime Web.

/** Loads the model that `facts` (model.json) describes. `classify(bitmap, { isJpeg })` gives a prediction. */
export async function openLocalModel(facts) {
  const worker = new Worker("worker.js", { type: "module" });
  const waiting = new Map();
  await new Promise((resolve, reject) => {
    worker.onerror = () => reject(new Error("this browser cannot run the model; a newer one can"));
    worker.onmessage = ({ data }) => (data.ready ? resolve() : reject(new Error(data.error)));
    worker.postMessage({ facts });
  });
  worker.onmessage = ({ data: { id, outputs, error } }) => {
    const { resolve, reject } = waiting.get(id);
    waiting.delete(id);
    if (error) reject(new Error(error));
    else resolve(prediction(outputs, facts));
  };
  let last = 0;
  return {
    classify(bitmap, { isJpeg = false } = {}) {
      const id = ++last;
      return new Promise((resolve, reject) => {
        waiting.set(id, { resolve, reject });
        worker.postMessage({ id, bitmap, isJpeg }, [bitmap]);
      });
    },
  };
}

/** The graph's outputs as the page shows them, and as the server answers. */
function prediction(outputs, { task, attention, two_heads }) {
  const heads = task === "multilabel" ? sigmoid : softmax;
  return {
    probabilities: [...outputs.probabilities.data],
    class_probabilities: two_heads ? heads(outputs.class_logits.data) : null,
    distill_probabilities: two_heads ? heads(outputs.distill_logits.data) : null,
    unfamiliarity: outputs.unfamiliarity?.data[0] ?? null,
    attention: attention ? maps(outputs.attention) : null,
  };
}

function softmax(logits) {
  const largest = Math.max(...logits);
  const powers = Array.from(logits, (z) => Math.exp(z - largest));
  const total = powers.reduce((sum, value) => sum + value, 0);
  return powers.map((value) => value / total);
}

function sigmoid(logits) {
  return Array.from(logits, (z) => 1 / (1 + Math.exp(-z)));
}

/** (1, P, gh, gw) -> P maps, each an array of rows. */
function maps({ data, dims: [, count, rows, columns] }) {
  return Array.from({ length: count }, (_, p) =>
    Array.from({ length: rows }, (_, i) => [...data.subarray((p * rows + i) * columns, (p * rows + i + 1) * columns)]),
  );
}
