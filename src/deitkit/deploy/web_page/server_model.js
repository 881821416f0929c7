// The model on the server that sent this page.

/** `classify(bitmap, { file })` sends the file, or else the image as JPEG, and gives a prediction. */
export async function openServerModel(facts, token) {
  return {
    async classify(bitmap, { file = null } = {}) {
      const body = new FormData();
      body.append("image", file ?? (await asJpeg(bitmap)), "image");
      const headers = token ? { Authorization: `Bearer ${token}` } : {};
      const address = `predict?model=${encodeURIComponent(facts.card.name)}&attention=true`;
      const answer = await fetch(address, { method: "POST", body, headers });
      const found = await answer.json();
      if (!answer.ok) throw new Error(found.error);
      const inOrder = (values) => values && facts.classes.map((name) => values[name]);
      const [first] = found.predictions;
      return {
        probabilities: inOrder(first.probabilities),
        class_probabilities: inOrder(first.class_probabilities),
        distill_probabilities: inOrder(first.distill_probabilities),
        unfamiliarity: first.unfamiliarity,
        attention: first.attention,
      };
    },
  };
}

async function asJpeg(bitmap) {
  const canvas = new OffscreenCanvas(bitmap.width, bitmap.height);
  canvas.getContext("2d").drawImage(bitmap, 0, 0);
  return canvas.convertToBlob({ type: "image/jpeg", quality: 0.92 });
}
