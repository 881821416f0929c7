// The page: where images come from, and where their answers go.

import { startCamera } from "./camera.js";
import { showCard, summary } from "./card.js";
import { certainty, element, headline, leftOut, percent, showTable } from "./results.js";
import { draw } from "./stage.js";

const RECENT = 12; // images that are kept for another look
const ANNOUNCE_MS = 2000; // the camera's answers are spoken at most this often
const THUMBNAIL = 148;
const ATTENTION_NOTE = "Attention in the last block, scaled to its largest value.";
const METHODS = { "gradient-rollout": "gradient-weighted attention rollout", "grad-cam": "grad-CAM" };

const $ = (id) => document.getElementById(id);
let facts, model;
let current = null; // { image, prediction } on the page; image: null where only the server can read it
let stopCamera = null;
let whole = false; // whether the table has all classes
let spoken = { label: "", at: 0 }; // the answer that was last announced to a screen reader

async function begin() {
  const token = new URLSearchParams(location.hash.slice(1)).get("token");
  const name = new URLSearchParams(location.search).get("model");
  const address = name ? `model.json?model=${encodeURIComponent(name)}` : "model.json";
  const answer = await fetch(address, { headers: token ? { Authorization: `Bearer ${token}` } : {} });
  if (!answer.ok) throw new Error((await answer.json().catch(() => ({}))).error ?? "The model cannot be loaded.");
  facts = await answer.json();
  describe();
  const opened = facts.home === "server" ? import("./server_model.js") : import("./local_model.js");
  const { openServerModel, openLocalModel } = await opened;
  model = await (openServerModel ?? openLocalModel)(facts, token);
  $("notice").hidden = true;
  for (const id of ["choose", "camera", "paste"]) $(id).disabled = false;
  if (facts.home === "browser") navigator.serviceWorker?.register("offline.js").catch(() => {});
  document.body.dataset.ready = "true";
}

function describe() {
  const { card, home, two_heads } = facts;
  document.title = card.name;
  $("name").textContent = card.name;
  $("summary").textContent = summary(facts);
  $("notice").textContent = "Loading the model…";
  const local = home === "browser";
  $("where").textContent = local ? "It stays on this device." : "It is sent to the server of this page.";
  $("privacy").textContent = local
    ? "The model runs in this browser; images do not leave it."
    : "The model runs on the server of this page, which keeps no images.";
  $("evidence").hidden = !facts.explains?.length;
  $("class-token").hidden = !facts.attention;
  $("distillation").hidden = !facts.attention || !two_heads;
  $("stage").classList.add("empty-stage");
  showCard(facts, { list: $("facts"), limits: $("limits") });
  $("card").hidden = false;
  const models = facts.models ?? [];
  $("models").hidden = models.length < 2;
  $("model").replaceChildren(...models.map((name) => new Option(name, name, false, name === card.name)));
}

/** Classifies files one after the other; the last one stays on the page. */
async function classifyFiles(files) {
  const images = [...files].filter((file) => file.type.startsWith("image/") || file.type === "");
  await ready; // they may come while the model is loaded
  stop();
  const problems = [];
  if (images.length === 0) {
    clear();
    problems.push("That is no image; choose a JPEG, PNG, WebP or GIF file");
  }
  for (const file of images) {
    try {
      const head = new Uint8Array(await file.slice(0, 3).arrayBuffer());
      const isJpeg = head[0] === 0xff && head[1] === 0xd8 && head[2] === 0xff;
      const image = await decoded(file);
      const prediction = await model.classify(image && (await createImageBitmap(image)), { isJpeg, file });
      show({ image, prediction, file });
      remember(current, file.name);
    } catch (error) {
      clear();
      problems.push(`${file.name || "The image"}: ${error.message}`);
    }
  }
  problem(problems.join("; "));
}

/** The image; null where this browser cannot read it and the server may, such as HEIC. */
async function decoded(file) {
  try {
    return await createImageBitmap(file, { colorSpaceConversion: "none" });
  } catch {
    if (facts.home === "server") return null;
    throw new Error("this browser cannot read it as an image; save it as JPEG or PNG");
  }
}

async function classifyFrame(image) {
  try {
    const prediction = await model.classify(await createImageBitmap(image));
    if (stopCamera) show({ image, prediction }, { live: true });
  } catch (error) {
    stop();
    problem(error.message);
  }
}

function show(found, { live = false } = {}) {
  current = found;
  $("empty").hidden = true;
  $("picture").hidden = !found.image;
  $("unseen").hidden = Boolean(found.image);
  $("looks").hidden = !found.image || (!found.prediction.attention && !facts.explains?.length);
  $("stage").classList.remove("empty-stage");
  redraw();
  const label = headline(found.prediction, facts), now = performance.now();
  const speak = !live || (label !== spoken.label && now - spoken.at > ANNOUNCE_MS);
  if (speak) spoken = { label, at: now };
  $("answer").setAttribute("aria-live", speak ? "polite" : "off");
  $("label").textContent = label;
  $("certainty").textContent = certainty(found.prediction, facts);
  $("picture").setAttribute("aria-label", `The image, as the model sees it: ${label}`);
  table();
}

/** Takes the answer off the page: it would seem to be that of the image that could not be read. */
function clear() {
  current = null;
  for (const id of ["picture", "unseen", "looks"]) $(id).hidden = true;
  $("empty").hidden = false;
  $("stage").classList.add("empty-stage");
  for (const id of ["label", "certainty", "table"]) $(id).replaceChildren();
}

function redraw() {
  if (!current?.image) return;
  const look = document.querySelector("input[name=look]:checked").value;
  const { attention } = current.prediction;
  const map = look === "evidence" ? current.evidence?.map : look && attention ? attention[Number(look)] : null;
  draw($("picture"), current.image, facts, map, $("strength").value / 100);
  $("look-note").textContent = look === "evidence" ? evidenceNote() : look ? ATTENTION_NOTE : "";
  if (look === "evidence" && !current.evidence && !stopCamera) explain(current);
}

function evidenceNote() {
  if (stopCamera) return "Stop the camera to see the evidence in its last image.";
  if (!current.evidence) return "Looking for the evidence…";
  const { label, method, problem } = current.evidence;
  return problem ?? `Where the evidence for ${label} is, by ${METHODS[method] ?? method}, scaled to its largest value.`;
}

/** Asks the server once for the evidence of an image. */
async function explain(found) {
  if (found.asked) return;
  found.asked = true;
  try {
    found.evidence = await model.explain(found.image, { file: found.file });
  } catch (error) {
    found.evidence = { map: null, problem: error.message };
  }
  if (found === current) redraw();
}

function table() {
  const hadFocus = document.activeElement?.id === "more";
  showTable($("table"), current.prediction, facts, whole);
  if (leftOut(facts)) {
    const text = whole ? "Show fewer" : `Show all ${facts.classes.length} classes`;
    const more = element("button", { id: "more", className: "more", type: "button", ariaExpanded: String(whole) }, text);
    more.onclick = () => {
      whole = !whole;
      table();
    };
    $("table").append(more);
    if (hadFocus) more.focus();
  }
}

function remember(found, name) {
  const label = headline(found.prediction, facts);
  const picture = found.image ? thumbnail(found.image) : element("i");
  const button = element("button", { type: "button", title: name }, picture, element("span", {}, label));
  button.setAttribute("aria-label", `Show ${name || "image"} again: ${label}, ${percent(Math.max(...found.prediction.probabilities))}`);
  button.onclick = () => {
    stop();
    show(found);
  };
  $("recent").prepend(element("li", {}, button));
  while ($("recent").children.length > RECENT) $("recent").lastChild.remove();
}

function thumbnail(image) {
  const canvas = document.createElement("canvas");
  draw(canvas, image, facts, null, 0);
  const small = element("canvas", { width: THUMBNAIL, height: THUMBNAIL });
  small.getContext("2d").drawImage(canvas, 0, 0, THUMBNAIL, THUMBNAIL);
  return element("img", { src: small.toDataURL("image/jpeg", 0.8), alt: "" });
}

function problem(sentence) {
  $("problem").hidden = !sentence;
  $("problem").textContent = sentence ?? "";
}

async function toggleCamera() {
  if (stopCamera) return stop();
  problem(null);
  try {
    const showRate = (rate) => ($("rate").textContent = `${rate.toFixed(rate < 10 ? 1 : 0)} frames/s`);
    stopCamera = () => {};
    stopCamera = await startCamera($("video"), classifyFrame, showRate);
    $("rate").hidden = false;
    $("camera").textContent = "Stop camera";
    $("camera").setAttribute("aria-pressed", "true");
  } catch (error) {
    stopCamera = null;
    problem(error.message);
  }
}

function stop() {
  stopCamera?.();
  stopCamera = null;
  redraw();
  $("rate").hidden = true;
  $("camera").textContent = "Start camera";
  $("camera").setAttribute("aria-pressed", "false");
}

async function pasteFromClipboard() {
  try {
    const files = [];
    for (const item of await navigator.clipboard.read()) {
      const type = item.types.find((kind) => kind.startsWith("image/"));
      if (type) files.push(new File([await item.getType(type)], "pasted image", { type }));
    }
    if (files.length) await classifyFiles(files);
    else problem("There is no image in the clipboard.");
  } catch {
    problem("The browser does not let this button read the clipboard; press Ctrl+V (or ⌘V) instead.");
  }
}

function listen() {
  $("choose").onclick = () => $("files").click();
  $("files").onchange = async () => {
    await classifyFiles($("files").files);
    $("files").value = "";
  };
  $("camera").onclick = toggleCamera;
  $("paste").onclick = pasteFromClipboard;
  $("looks").oninput = redraw;
  $("model").onchange = () => (location.search = `?model=${encodeURIComponent($("model").value)}`);
  document.addEventListener("paste", (event) => {
    if (event.clipboardData.files.length) classifyFiles(event.clipboardData.files);
  });
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    $("stage").classList.add("over");
  });
  document.addEventListener("dragleave", () => $("stage").classList.remove("over"));
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    $("stage").classList.remove("over");
    if (event.dataTransfer.files.length) classifyFiles(event.dataTransfer.files);
  });
}

const ready = begin();
listen();
ready.catch((error) => {
  $("notice").hidden = true;
  problem(error.message);
});
