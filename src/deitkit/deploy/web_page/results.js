// The answer: the label in words, and a table of the most likely classes.

const SHOWN = 5;

export const percent = (p) => `${(100 * p).toFixed(1)} %`;

/** Whether the image looks like none of the classes, by the limit that the run's validation images gave. */
const isForeign = ({ unfamiliarity }, { familiar_up_to }) =>
  unfamiliarity != null && familiar_up_to != null && unfamiliarity > familiar_up_to;

/** The most likely class, or of a multilabel model the labels above the threshold, in words. */
export function headline(prediction, facts) {
  if (isForeign(prediction, facts)) return "unknown";
  const { probabilities } = prediction;
  const { classes, task, threshold } = facts;
  const order = byProbability(probabilities);
  if (task !== "multilabel") return classes[order[0]];
  const labels = order.filter((k) => probabilities[k] > threshold).map((k) => classes[k]);
  return labels.length ? labels.join(", ") : "none of the labels";
}

/** How sure the model is, in words. */
export function certainty(prediction, facts) {
  const { probabilities, class_probabilities, distill_probabilities } = prediction;
  const { classes, task, threshold } = facts;
  if (isForeign(prediction, facts)) {
    return `This looks like none of the classes; the most likely one is ${classes[byProbability(probabilities)[0]]}.`;
  }
  if (task === "multilabel") return `Labels above ${percent(threshold).replace(".0", "")} are named.`;
  const best = (values) => values.indexOf(Math.max(...values));
  const sure = `${percent(Math.max(...probabilities))} sure`;
  if (!class_probabilities) return `${sure}.`;
  const [a, b] = [best(class_probabilities), best(distill_probabilities)];
  if (a === b) return `${sure}; both heads agree.`;
  return `${sure}; the class head says ${classes[a]}, the distillation head ${classes[b]}.`;
}

/** Fills `place` with the table of a prediction. `whole`: of all classes. Names are text, never markup. */
export function showTable(place, prediction, facts, whole) {
  const { probabilities, class_probabilities, distill_probabilities } = prediction;
  const heads = [class_probabilities, distill_probabilities].filter(Boolean);
  const order = byProbability(probabilities);
  const rows = (whole ? order : order.slice(0, SHOWN)).map((k, i) => {
    const name = element("th", { scope: "row" }, facts.classes[k]);
    const fill = element("i");
    fill.style.width = `${100 * probabilities[k]}%`;
    const bar = element("td", { className: "bar", ariaHidden: "true" }, element("div", {}, fill));
    const values = [probabilities, ...heads].map((values, column) =>
      element("td", { className: column ? "n" : "n joint" }, percent(values[k])),
    );
    return element("tr", { className: i ? "" : "first" }, name, bar, ...values);
  });
  const titles = heads.length ? ["both heads", "class head", "distillation head"] : ["probability"];
  const head = element(
    "tr", {},
    element("th", { scope: "col" }, facts.task === "multilabel" ? "label" : "class"),
    element("td", { className: "bar" }),
    ...titles.map((title) => element("th", { scope: "col", className: "n" }, title)),
  );
  const caption = element("caption", { className: "hidden" }, "Probabilities");
  place.replaceChildren(element("table", {}, caption, element("thead", {}, head), element("tbody", {}, ...rows)));
}

/** How many classes the short table leaves out. */
export const leftOut = (facts) => Math.max(0, facts.classes.length - SHOWN);

/** A DOM element with properties and children; text stays text. */
export function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

function byProbability(probabilities) {
  return probabilities.map((_, k) => k).sort((a, b) => probabilities[b] - probabilities[a]);
}
