// The model card below the answer.

import { element } from "./results.js";

const number = (value) => value.toLocaleString("en");

/** One line for the top of the page. */
export function summary({ classes, task, card }) {
  const kind = task === "multilabel" ? "labels" : "classes";
  const known = `${classes.length} ${kind}`;
  return card.accuracy ? `${known}; ${score(card.accuracy)}.` : `${known}.`;
}

export function showCard(facts, { list, limits }) {
  const { card, classes } = facts;
  const parts = [card.architecture, card.params && `${(card.params / 1e6).toFixed(1)} million parameters`, card.input];
  const data = [card.data, card.train_images && `${number(card.train_images)} training images`].filter(Boolean);
  const entries = [
    ["Accuracy", card.accuracy && score(card.accuracy)],
    ["Model", [card.model, ...parts].filter(Boolean).join(", ")],
    ["Data", data.join(", ")],
    ["Split", card.split],
    ["Date", card.date],
    [facts.task === "multilabel" ? "Labels" : "Classes", classes.join(", "), "wide"],
  ];
  const shown = entries.filter(([, value]) => value);
  list.replaceChildren(
    ...shown.map(([title, value, className = ""]) =>
      element("div", { className }, element("dt", {}, title), element("dd", {}, value)),
    ),
  );
  limits.replaceChildren(...card.limits.map((sentence) => element("li", {}, sentence)));
}

function score({ metric, value, interval, images }) {
  const range = interval ? ` (95 % interval ${interval.map((x) => x.toFixed(1)).join(" to ")})` : "";
  return `${metric} ${value.toFixed(1)} %${range} on ${number(images)} held-out images`;
}
