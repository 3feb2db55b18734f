// Shows one case and takes a person's word on it. Everything from devices is written as text, never as markup.
import { age, at, bytes, drawNotice, listen, make, setClock } from "/parts.js";
import { because, classes, found, headline, inPicture, inWhole, isRows, isSound, mark, scoreRows, things } from "/case-parts.js";
import { seriesChart } from "/charts.js";
import { makeBoxes } from "/boxes.js";
import { beside, fromAddress, toAddress } from "/sought.js";

const LABELS_WITH_KEYS = 10;
const LABELS_SHOWN = 30;

const sought = fromAddress();
const known = new Map(); // Labels by task, as far as the server knows.
let shown = null;
let boxes = null; // Where this case's word is one of boxes.
let near = {};
let busy = false;

const idInAddress = () => decodeURIComponent(location.pathname.split("/").pop());
const address = (id) => `/cases/${encodeURIComponent(id)}${toAddress(sought)}`;
const api = (id) => `/api/cases/${encodeURIComponent(id)}`;

async function get(path) {
  try {
    const response = await fetch(path);
    const said = await response.json();
    return response.ok ? said : { error: said.error };
  } catch {
    return { error: "the server cannot be reached" };
  }
}

function say(text, kind = "") {
  at("outcome").className = kind;
  at("outcome").textContent = text;
}

// The case that is asked for next may have come already.
const fetched = new Map();
const whole = (id) => {
  const both = async () => {
    const [c, words] = await Promise.all([get(api(id)), get(`${api(id)}/words`)]);
    return { ...c, words: Array.isArray(words) ? words : [] };
  };
  if (!fetched.has(id)) fetched.set(id, both());
  return fetched.get(id);
};

async function labelsOf(task) {
  if (!known.has(task)) known.set(task, get(`/api/labels?${new URLSearchParams({ task })}`));
  const labels = await known.get(task);
  return Array.isArray(labels) ? labels : [];
}

const isBoxes = (c) => Boolean((c.local && c.local.detect) || (c.verdict && c.verdict.result.detect));
const stands = (c) => (c.verdict ? c.verdict.result : c.local);
const hasPicture = (c) => c.form !== "nothing" && c.picture && c.payload_kept;

// A sample that is no picture: a recording to be heard, rows of numbers as lines.
function drawOther(c, box) {
  if (isSound(c)) {
    const player = make("audio");
    player.controls = true;
    player.preload = "metadata";
    player.src = `${api(c.id)}/payload`;
    player.addEventListener("error", () => box.replaceChildren(make("p", "empty", "The recording cannot be played.")));
    box.replaceChildren(player);
    return;
  }
  box.replaceChildren(make("p", "empty", "…"));
  const rows = fetch(`${api(c.id)}/payload`).then((answer) => (answer.ok ? answer.text() : Promise.reject(answer.status)));
  const drawn = rows.then((text) => seriesChart(text, `the numbers ${c.device} sent`)).catch(() => null);
  // Another case may be shown by then.
  drawn.then((chart) => { if (shown && shown.id === c.id) box.replaceChildren(chart || make("p", "empty", "The numbers cannot be shown.")); });
}

function drawPicture(c) {
  const box = at("picture");
  boxes = null;
  if (c.form !== "nothing" && c.payload_kept && (isSound(c) || isRows(c))) {
    drawOther(c, box);
    return;
  }
  if (!hasPicture(c)) {
    box.replaceChildren(make("p", "empty", c.form === "nothing" ? "Nothing of the sample was sent: it stays on the device." : !c.picture ? `No picture: ${c.content_type}, ${bytes(c.payload_bytes)}` : "The picture is no longer kept."));
    return;
  }
  const image = make("img");
  image.alt = `the sample ${c.device} sent`;
  image.addEventListener("load", () => {
    image.classList.toggle("tiny", image.naturalWidth <= 96);
    image.parentElement.style.aspectRatio = image.naturalWidth / image.naturalHeight;
    image.parentElement.style.setProperty("--shape", image.naturalWidth / image.naturalHeight);
  });
  image.addEventListener("error", () => box.replaceChildren(make("p", "empty", "The picture cannot be shown.")));
  const frame = make("div", "whole", image);
  box.replaceChildren(frame);
  image.src = `${api(c.id)}/payload`;
  if (isBoxes(c)) {
    boxes = makeBoxes(frame, (selected) => {
      at("delete-box").disabled = !selected;
      if (selected && document.activeElement !== at("label")) at("label").value = selected.label;
    });
    boxes.show(things(stands(c)).map((one) => inPicture(c, one)));
  }
}

function side(title, note, result, none) {
  const rows = result ? [...classes(result), ...found(result)] : [];
  const said = result && (rows.length || (result.detect)) ? headline(result) : none;
  return make("div", "side", make("h3", "", title), make("p", rows.length ? "said" : "said none", said), make("small", "soft", note), ...scoreRows(rows));
}

const modelOf = (word) => `${word.model.name} ${word.model.version}`.trim();

function drawSides(c) {
  const last = (test) => [...c.words].reverse().find(test);
  const cloud = last((word) => ["model", "stronger_model"].includes(word.authority));
  const person = last((word) => word.authority === "person");
  const waits = { waiting: c.whole_wanted ? "not sure of the thumbnail: the whole was asked for" : "waiting…", failed: `could not answer: ${c.why}`, dead: `will not answer: ${c.why}`, answered: "said nothing" }[c.state];
  at("sides").replaceChildren(
    side("Device", modelOf({ model: c.local_model }), c.local, "no usable answer"),
    side("Cloud", cloud ? modelOf(cloud) : "", cloud && cloud.result, waits),
    side("Person", person ? person.model.name : "", person && person.result, "nothing yet"));
}

function drawWords(c) {
  at("words").replaceChildren(...c.words.map((word) => make("li", "",
    make("b", "", headline(word.result)), ` by ${word.authority === "person" ? word.model.name : modelOf(word)} (${word.authority.replaceAll("_", " ")}, revision ${word.revision}) `,
    word.given_ms ? age(word.given_ms, "", " ago") : null)));
  if (!c.words.length) at("words").append(make("li", "soft", "Nothing but the device's own answer."));
}

async function drawLabels(c) {
  const own = [...classes(c.local), ...classes(c.verdict && c.verdict.result), ...things(c.local), ...things(c.verdict && c.verdict.result)];
  const labels = [...new Set([...(await labelsOf(c.task)), ...own.map((one) => one.label)])];
  if (shown !== c) return;
  const now = headlineLabel(c);
  at("labels").replaceChildren(...labels.slice(0, LABELS_SHOWN).map((label, index) => {
    const button = make("button", label === now && !boxes ? "label now" : "label", index < LABELS_WITH_KEYS ? make("kbd", "", String((index + 1) % 10)) : null, label);
    button.type = "button";
    button.dataset.label = label;
    button.addEventListener("click", () => choose(label));
    return button;
  }));
  at("known-labels").replaceChildren(...labels.map((label) => { const option = make("option"); option.value = label; return option; }));
}

const headlineLabel = (c) => (classes(stands(c))[0] || {}).label || "";

function draw(c) {
  const isNew = !shown || shown.id !== c.id;
  const stood = shown ? headlineLabel(shown) : "";
  shown = c;
  document.title = `${c.id} · Hedge`;
  at("name").replaceChildren(mark(c));
  at("list").href = `/cases${toAddress(sought)}`;
  const device = make("a", "", c.device);
  device.href = `/devices/${encodeURIComponent(c.device)}`;
  at("about").replaceChildren(device, ` · ${c.source} · ${c.task} · asked because: ${because(c)} (threshold ${c.threshold.toFixed(2)}) · `, age(c.received_ms, "received ", " ago"), ` · ${c.id}`);
  drawSides(c);
  drawWords(c);
  if (isNew) {
    // Those of the case before must not be said of this one by their keys.
    at("labels").replaceChildren();
    drawPicture(c);
    at("label").value = boxes ? "" : headlineLabel(c);
    at("box-tools").hidden = !boxes;
    const unable = isBoxes(c) && !boxes;
    at("confirm").disabled = unable;
    at("keys").textContent = unable ? "Without the picture its boxes cannot be drawn." : boxes
      ? "Draw with the pointer, or n for a new box; Tab goes to the next box, arrows move it, with Shift they resize it, 1 to 0 name it, Delete removes it. Enter confirms all boxes and goes on."
      : "1 to 0 says that label and goes on, Enter confirms what stands, / is for any other label. j and k go to the next and the previous case.";
  } else if (!boxes && at("label").value === stood) {
    // What stands may be another by now, and Enter confirms that.
    at("label").value = headlineLabel(c);
  }
  drawLabels(c);
}

async function load() {
  const id = idInAddress();
  const c = await whole(id);
  fetched.delete(id);
  if (id !== idInAddress()) return;
  if (c.error) { say(c.error, "wrong"); return; }
  draw(c);
  const [before, after] = await Promise.all([beside(sought, { before: id }), beside(sought, { after: id })]);
  if (id !== idInAddress()) return;
  near = { before, after };
  at("previous").disabled = !before;
  at("following").disabled = !after;
  // The next one is there when it is wanted.
  if (after) { whole(after).then((c) => { if (!c.error && hasPicture(c)) new Image().src = `${api(after)}/payload`; }); }
}

function go(id) {
  if (!id) return;
  near = {};
  history.pushState(null, "", address(id));
  load();
}

function choose(label) {
  if (boxes) { boxes.label(label); return; }
  at("label").value = label;
  send();
}

// Who may only look has no form, and no keys for it.
const mayReview = () => at("word").offsetParent !== null;

async function send() {
  if (!shown || busy || !mayReview() || at("confirm").disabled) return;
  const { id, verdict } = shown;
  const word = { by: at("who").value.trim() || undefined, seen: verdict ? verdict.revision : 0 };
  const label = at("label").value.trim();
  if (boxes) {
    const nameless = boxes.nameless();
    if (nameless) { boxes.focus(nameless); say("This box has no label yet.", "wrong"); return; }
    word.found = boxes.said().map((one) => inWhole(shown, one));
  } else if (label) {
    word.label = label;
  } else {
    say("Say which label it is.", "wrong");
    return;
  }
  const follows = near.after;
  busy = true;
  const error = await post(id, word);
  busy = false;
  if (error) { say(error, "wrong"); return; }
  say(`${boxes ? `${word.found.length} boxes` : word.label}: on its way to the device.`, "good");
  fetched.delete(id);
  if (follows) go(follows);
  else load();
}

async function post(id, word) {
  try {
    const headers = { "Content-Type": "application/json", "Hedge-Operate": "yes" };
    const response = await fetch(`/api/review/${encodeURIComponent(id)}`, { method: "POST", headers, body: JSON.stringify(word) });
    const text = await response.text();
    if (response.ok) return null;
    try { return JSON.parse(text).error; } catch { return text || `the server answered ${response.status}`; }
  } catch {
    return "the server cannot be reached; nothing was said";
  }
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input")) {
    if (event.key === "Escape") event.target.blur();
    return;
  }
  if (event.target.closest("a, button:not(.drawn-box)") && event.key === "Enter") return;
  if (!mayReview() && !["j", "k"].includes(event.key)) return;
  const digit = /^[0-9]$/.test(event.key) ? at("labels").children[(Number(event.key) + 9) % 10] : null;
  const acts = {
    j: () => go(near.after), k: () => go(near.before), Enter: send, "/": () => at("label").select(),
    n: () => boxes && boxes.create(), Delete: () => boxes && boxes.remove(), Backspace: () => boxes && boxes.remove(),
  };
  if (boxes && boxes.key(event)) event.preventDefault();
  else if (digit && digit.dataset.label) choose(digit.dataset.label);
  else if (acts[event.key]) { event.preventDefault(); acts[event.key](); }
});

at("word").addEventListener("submit", (event) => { event.preventDefault(); send(); });
at("label").addEventListener("input", () => { if (boxes) boxes.label(at("label").value.trim()); });
at("who").value = localStorage.getItem("who") || "";
at("who").addEventListener("change", () => localStorage.setItem("who", at("who").value.trim()));
at("previous").addEventListener("click", () => go(near.before));
at("following").addEventListener("click", () => go(near.after));
at("new-box").addEventListener("click", () => boxes && boxes.create());
at("delete-box").addEventListener("click", () => boxes && boxes.remove());
window.addEventListener("popstate", load);

load();
listen({
  figures: (f) => {
    setClock(f.now_ms);
    drawNotice(f);
    at("instance").textContent = `${f.instance} on ${f.broker}`;
  },
  changed_cases: (changed) => {
    const fresh = shown && changed.find((c) => c.id === shown.id);
    if (fresh && (!shown.verdict || fresh.verdict.revision !== shown.verdict.revision)) load();
  },
});
