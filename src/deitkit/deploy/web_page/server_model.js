// The model on the server that sent this page.

const NAME = "image"; // of what is sent; the server's sentences begin with it

/** `classify(bitmap, { file })` sends the file, or else the image as JPEG, and gives a prediction; `explain` an explanation. */
export async function openServerModel(facts, token) {
  async function post(address, bitmap, file) {
    const body = new FormData();
    body.append("image", file ?? (await asJpeg(bitmap)), NAME);
    const headers = token ? { Authorization: `Bearer ${token}` } : {};
    const named = `${address}?model=${encodeURIComponent(facts.card.name)}`;
    const answer = await fetch(address === "predict" ? `${named}&attention=true` : named, { method: "POST", body, headers });
    const found = await answer.json();
    if (!answer.ok) throw new Error(found.error.replace(new RegExp(`^${NAME}: `), ""));
    return found;
  }
  return {
    async classify(bitmap, { file = null } = {}) {
      const inOrder = (values) => values && facts.classes.map((name) => values[name]);
      const [first] = (await post("predict", bitmap, file)).predictions;
      return {
        probabilities: inOrder(first.probabilities),
        class_probabilities: inOrder(first.class_probabilities),
        distill_probabilities: inOrder(first.distill_probabilities),
        unfamiliarity: first.unfamiliarity,
        attention: first.attention,
      };
    },
    async explain(bitmap, { file = null } = {}) {
      return (await post("explain", bitmap, file)).explanations[0];
    },
  };
}

async function asJpeg(bitmap) {
  const canvas = new OffscreenCanvas(bitmap.width, bitmap.height);
  canvas.getContext("2d").drawImage(bitmap, 0, 0);
  return canvas.convertToBlob({ type: "image/jpeg", quality: 0.92 });
}
