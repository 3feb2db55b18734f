// Draws cases, and lists that change. Everything from devices is written as text, never as markup.
import { age, bytes, make, span } from "/parts.js";

const REASONS = {
  low_score: "not sure enough", margin: "two close answers", entropy: "spread over many answers",
  expected_loss: "mistakes expected", errors: "mistakes expected", any_error: "a mistake is likely", count_gap: "more nearly seen",
  flicker: "changes from frame to frame", confidence: "the model doubts itself", learned: "such answers were contradicted",
  out_of_distribution: "unlike what it knows", spot_check: "spot check", policy: "by policy", unusable: "no usable answer",
};

// A device of a later version may have others.
export const because = (c) => (Object.hasOwn(REASONS, c.reason) ? REASONS[c.reason] : c.reason.replaceAll("_", " "));

export const isSound = (c) => c.content_type.startsWith("audio/");
export const isRows = (c) => /^(text\/csv|application\/(x-ndjson|json))/.test(c.content_type);

function shot(c) {
  const shown = c.form !== "nothing" && c.picture && c.payload_kept;
  const box = make(shown ? "a" : "div", "shot");
  if (shown) {
    box.href = `/cases/${encodeURIComponent(c.id)}`;
    box.title = "look at this case";
  }
  if (c.form === "nothing") {
    box.classList.add("withheld");
    box.append(make("span", "", make("b", "", "stays on the device"), make("small", "", "nothing of the sample was sent")));
  } else if (!c.picture) {
    const what = isSound(c) ? "a recording" : isRows(c) ? "rows of numbers" : c.content_type.startsWith("application/vnd.hedge.tensor") ? "raw numbers, no picture" : "no picture";
    box.append(make("span", "", `${what} (${bytes(c.payload_bytes)})`));
  } else if (!c.payload_kept) {
    box.append(make("span", "", "picture no longer kept"));
  } else {
    const image = make("img");
    image.alt = `the sample ${c.device} sent`;
    image.decoding = "async";
    image.addEventListener("load", () => {
      if (image.naturalWidth <= 96) image.classList.add("tiny");
      // It may have come after its card had gone.
      if (finds(c) && image.parentElement) fitFrame(image.parentElement);
    });
    image.addEventListener("error", () => box.replaceChildren(make("span", "", "the picture cannot be shown")));
    image.loading = "lazy";
    image.src = `/api/cases/${encodeURIComponent(c.id)}/preview`;
    box.append(finds(c) ? make("div", "frame", image, drawBoxes(c)) : image);
  }
  return box;
}

// What each side found, over the picture: the device's boxes broken, the cloud's solid.
const NAMED_MAX = 6; // More names than these would hide the picture; the others are read by pointing at the box.

function drawBoxes(c) {
  const frame = make("div", "boxes");
  const sides = [["device", things(c.local)], ["cloud", c.verdict ? things(c.verdict.result) : []]];
  for (const [side, found] of sides) {
    found.map((one) => inPicture(c, one)).forEach(({ label, score, place }, index) => {
      const name = `${label} ${Math.round(score * 100)} %`;
      const box = make("i", `box by-${side}`, index < NAMED_MAX ? make("span", "", name) : null);
      box.title = `${side}: ${name}`;
      box.classList.toggle("right", place.left > 0.6);
      for (const edge of ["left", "top", "width", "height"]) box.style[edge] = `${place[edge] * 100}%`;
      frame.append(box);
    });
  }
  return frame;
}

// Boxes are parts of the picture, so the picture is shown whole, and its frame has its shape.
const FRAME_HEIGHT_PX = 190;

function fitFrame(frame) {
  const image = frame.querySelector("img");
  if (!image || !image.naturalWidth) return;
  const shape = image.naturalWidth / image.naturalHeight;
  frame.style.aspectRatio = shape;
  frame.style.width = `min(100%, ${FRAME_HEIGHT_PX * shape}px)`;
}

// Boxes have their places in the whole picture; where only a part of it came, that is what is shown and drawn on.
const part = (c) => (c.form === "crop" && c.view) || { left: 0, top: 0, width: 1, height: 1 };

export function inPicture(c, one) {
  const { left, top, width, height } = part(c), at = one.place;
  return { ...one, place: { left: (at.left - left) / width, top: (at.top - top) / height, width: at.width / width, height: at.height / height } };
}

export function inWhole(c, one) {
  const { left, top, width, height } = part(c), at = one.place;
  return { ...one, place: { left: left + at.left * width, top: top + at.top * height, width: at.width * width, height: at.height * height } };
}

export const finds = (c) => Boolean((c.local && c.local.detect) || (c.verdict && c.verdict.result.detect));

export function things(said) {
  return said && said.detect ? said.detect.found : [];
}

export function classes(said) {
  return Array.isArray(said) ? said : said && said.classify ? said.classify.scores : [];
}

// Each label with how often it was found and its best score, as scores are shown.
export function found(said) {
  const best = new Map();
  for (const { label, score } of things(said)) {
    const known = best.get(label) || { count: 0, score: 0 };
    best.set(label, { count: known.count + 1, score: Math.max(known.score, score) });
  }
  return [...best].map(([label, { count, score }]) => ({ label: count > 1 ? `${count} × ${label}` : label, score }));
}

export function scoreRows(scores) {
  return scores.slice(0, 3).map(({ label, score }) => {
    const bar = make("i", "bar");
    bar.style.width = `${Math.max(0, Math.min(1, score || 0)) * 100}%`;
    return make("div", "score", bar, make("span", "", label), make("b", "", `${Math.round((score || 0) * 100)} %`));
  });
}

export function headline(result) {
  if (classes(result).length) return classes(result)[0].label;
  if (result && result.detect) return things(result).length ? `${things(result).length} found` : "nothing found";
  return "an answer of a kind this page does not know";
}

function cloudSide(c, tasks) {
  const byPerson = c.verdict && c.verdict.authority === "person";
  const title = make("h3", "", byPerson ? "Person" : "Cloud");
  const side = make("div", "side cloud", title);
  if (c.verdict && c.verdict.authority === "device") {
    side.append(make("p", "said none", "saw nothing of it: the device's answer stands"));
  } else if (c.verdict) {
    const took = c.verdict.given_ms ? c.verdict.given_ms - c.received_ms : null;
    if (byPerson) title.append(make("small", "", ` ${c.verdict.model.name}`));
    else if (took !== null) title.append(make("small", "", ` after ${took < 1000 ? `${took} ms` : span(took / 1000)}`));
    const name = headline(c.verdict.result);
    const said = make("p", "said", name);
    said.title = `${name} (${c.verdict.model.name} ${c.verdict.model.version})`;
    side.append(said, ...scoreRows([...classes(c.verdict.result), ...found(c.verdict.result)]));
  } else {
    const held = c.whole_wanted ? "the whole was asked for…" : tasks && !tasks.includes(c.task) ? `held: no model here for ${c.task}` : "waiting…";
    side.append(make("p", "said none", { waiting: held, failed: "could not answer: ", dead: "will not answer: " }[c.state] + (c.why || "")));
  }
  return side;
}

export function mark(c) {
  const share = c.local && c.local.detect && typeof c.agreement === "number" ? ` ${Math.round(c.agreement * 100)} %` : "";
  if (c.agrees === true) return make("span", "pill mark good", share ? `✓ agreement${share}` : "✓ agrees");
  if (c.agrees === false) return make("span", "pill mark bad", share ? `✗ agreement${share}` : "✗ corrected");
  if (c.state === "dead" || c.state === "failed") return make("span", "pill mark bad", c.state === "dead" ? "set aside" : "failed");
  if (c.verdict && c.verdict.authority === "device") return make("span", "pill mark quiet", "noted");
  return c.state === "waiting" ? make("span", "pill mark quiet", "waiting") : make("span", "pill mark quiet", "answered");
}

export function caseCard(c, tasks) {
  const none = Array.isArray(c.local) && !c.local.length;
  const said = make("p", none ? "said none" : "said", none ? "no usable answer" : headline(c.local));
  said.title = `${none ? "" : headline(c.local)} (${c.local_model.name} ${c.local_model.version})`;
  const why = make("span", "chip", because(c));
  why.title = `threshold ${c.threshold.toFixed(2)}, ${c.mode}`;
  const who = make("a", "who", `${c.device} · ${c.source}`);
  who.href = `/cases/${encodeURIComponent(c.id)}`;
  who.title = "look at this case";
  return make("article", finds(c) ? "case finds" : "case",
    shot(c),
    make("div", "body",
      make("div", "meta", who, age(c.received_ms, "", " ago")),
      make("div", "sides", make("div", "side", make("h3", "", "Device"), said, ...scoreRows([...classes(c.local), ...found(c.local)])), cloudSide(c, tasks)),
      make("div", "end", mark(c), why)));
}

// Replaces only what has changed, so that pictures do not flicker and focus stays.
export function drawList(parent, items, key, draw, also = () => "") {
  const before = new Map([...parent.children].filter((e) => e.dataset.key).map((e) => [e.dataset.key, e]));
  const active = document.activeElement && document.activeElement.closest("[data-key]");
  const focused = active && parent.contains(active) ? [active.dataset.key, document.activeElement.tagName] : null;
  const now = items.map((item) => {
    const text = JSON.stringify(item) + also(item);
    const old = before.get(item[key]);
    if (old && old.dataset.text === text) return old;
    const element = draw(item);
    if (old && old.querySelector("img") && element.querySelector("img")) {
      const [image, fresh] = [old.querySelector("img"), element.querySelector("img")];
      const frame = fresh.parentElement;
      fresh.replaceWith(image);
      if (finds(item)) fitFrame(frame);
    }
    if (!old && before.size) element.classList.add("new");
    element.dataset.key = item[key];
    element.dataset.text = text;
    return element;
  });
  if (!parent.emptyNote) parent.emptyNote = parent.querySelector(".empty");
  now.forEach((element, index) => { if (parent.children[index] !== element) parent.insertBefore(element, parent.children[index] || null); });
  while (parent.children.length > now.length) parent.lastElementChild.remove();
  if (!now.length) {
    parent.append(parent.emptyNote);
    parent.emptyNote.hidden = false;
  }
  const again = focused && now.find((element) => element.dataset.key === focused[0]);
  const place = again && again.querySelector(focused[1]);
  if (place && document.activeElement !== place) place.focus({ preventScroll: true });
}
