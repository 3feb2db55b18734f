// Draws the first page from the events of /events. Everything from devices is written as text, never as markup.
import { age, at, bytes, deviceLine, drawNotice, faultList, figure, kindOf, listen, make, number, percent, setClock, span } from "/parts.js";

const REASONS = {
  low_score: "not sure enough", margin: "two close answers", entropy: "spread over many answers",
  expected_loss: "mistakes expected", errors: "mistakes expected", any_error: "a mistake is likely", count_gap: "more nearly seen",
  out_of_distribution: "unlike what it knows", spot_check: "spot check", policy: "by policy", unusable: "no usable answer",
};

let onlyDevice = null;
let latest = { figures: null, devices: [], cases: [] };

function drawFigures(f) {
  latest.figures = f;
  setClock(f.now_ms);
  at("instance").textContent = `${f.instance} on ${f.broker}` + (f.tasks.length ? ` · answers ${f.tasks.join(", ")}` : " · no model");
  const compared = f.agreed + f.disagreed;
  const aside = f.dead + f.failed + f.refused;
  const why = [[f.dead, "dead"], [f.failed, "failed"], [f.refused, "refused"]]
    .filter(([n]) => n).map(([n, what]) => `${number(n)} ${what}`).join(", ");
  at("figures").replaceChildren(
    figure(number(f.cases), "cases taken", f.cases ? `${bytes(f.received_bytes)} of samples` : "no data yet"),
    figure(number(f.answered), "answered", f.repeated ? `${number(f.repeated)} asked again` : ""),
    figure(number(f.waiting), "waiting for an answer", f.tasks.length ? "" : "no model here: they are held"),
    figure(percent(f.agreed, compared), "agreement", compared ? `${number(f.disagreed)} corrected` : "no data yet"),
    figure(bytes(f.payload_bytes), "samples kept", ""),
    figure(number(aside), "set aside", why || "nothing"),
    ...(f.malformed ? [figure(number(f.malformed), f.malformed === 1 ? "unreadable message" : "unreadable messages", "of devices; no cases")] : []),
  );
  if (!at("fleet").classList.contains("wrong")) drawFleet(f);
  drawNotice(f);
}

function deviceCard(d) {
  const t = d.telemetry;
  const s = t ? t.samples : null;
  const cell = (label, value) => make("div", "", make("dt", "", label), make("dd", "", value));
  const shown = (value) => (s ? number(value(s)) : "–");
  const queued = t ? t.queue.waiting : 0;
  let queue = "no figures yet";
  if (t) queue = queued ? `${number(queued)} queued` + (t.queue.oldest_s ? `, oldest ${span(t.queue.oldest_s)}` : "") : "queue empty";
  const stamp = d.last_seen_ms ? age(d.last_seen_ms, "heard ", " ago") : "never heard";
  const name = make("a", "name", d.device);
  name.href = `/devices/${encodeURIComponent(d.device)}`;
  name.title = "settings, commands and history of this device";
  const settings = make("a", "link", "settings");
  settings.href = name.href;
  const cases = make("button", "link", onlyDevice === d.device ? "all cases" : "its cases");
  cases.type = "button";
  cases.setAttribute("aria-pressed", String(onlyDevice === d.device));
  cases.addEventListener("click", () => show(onlyDevice === d.device ? null : d.device));
  const trouble = { on_trial: ["warn", "settings on trial"], refused: ["bad", "settings refused"], failed: ["bad", "settings failed"] }[d.outcome];
  const faults = Object.keys(d.faults).length;
  const card = make("article", `device ${d.state}`,
    make("div", "top", name, faults ? make("span", "pill warn", faults === 1 ? "1 fault" : `${faults} faults`) : null, trouble ? make("span", `pill ${trouble[0]}`, trouble[1]) : null, make("span", `pill ${kindOf(d.state)}`, d.state)),
    deviceLine(d),
    faultList(d, 2),
    make("dl", "",
      cell("answered", shown((x) => x.answered)),
      cell("kept", s ? percent(s.kept, s.kept + s.deferred) : "–"),
      cell("deferred", shown((x) => x.deferred)),
      cell("corrected", shown((x) => x.corrected))),
    make("div", "foot", make("span", queued ? "queue some" : "queue", queue), stamp, cases, settings));
  card.title = d.models.map((m) => `${m.name} ${m.version}`).join(", ");
  card.classList.toggle("chosen", onlyDevice === d.device);
  return card;
}

function shot(c) {
  const shown = c.form !== "nothing" && c.picture && c.payload_kept;
  const box = make(shown ? "a" : "div", "shot");
  if (shown) {
    box.href = `/api/cases/${encodeURIComponent(c.id)}/payload`;
    box.title = "as large as it came";
  }
  if (c.form === "nothing") {
    box.classList.add("withheld");
    box.append(make("span", "", make("b", "", "stays on the device"), make("small", "", "nothing of the sample was sent")));
  } else if (!c.picture) {
    const what = c.content_type.startsWith("application/vnd.hedge.tensor") ? "raw numbers, no picture" : "no picture";
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

// What each side found, over the picture: the device's boxes broken, the cloud's solid. Only the whole picture has the
// places that boxes are given in.
const NAMED_MAX = 6; // More names than these would hide the picture; the others are read by pointing at the box.

function drawBoxes(c) {
  const frame = make("div", "boxes");
  const sides = c.form === "crop" ? [] : [["device", things(c.local)], ["cloud", c.verdict ? things(c.verdict.result) : []]];
  for (const [side, found] of sides) {
    found.forEach(({ label, score, place }, index) => {
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

const finds = (c) => Boolean((c.local && c.local.detect) || (c.verdict && c.verdict.result.detect));

function things(said) {
  return said && said.detect ? said.detect.found : [];
}

function classes(said) {
  return Array.isArray(said) ? said : said && said.classify ? said.classify.scores : [];
}

// Each label with how often it was found and its best score, as scores are shown.
function found(said) {
  const best = new Map();
  for (const { label, score } of things(said)) {
    const known = best.get(label) || { count: 0, score: 0 };
    best.set(label, { count: known.count + 1, score: Math.max(known.score, score) });
  }
  return [...best].map(([label, { count, score }]) => ({ label: count > 1 ? `${count} × ${label}` : label, score }));
}

function scoreRows(scores) {
  return scores.slice(0, 3).map(({ label, score }) => {
    const bar = make("i", "bar");
    bar.style.width = `${Math.max(0, Math.min(1, score || 0)) * 100}%`;
    return make("div", "score", bar, make("span", "", label), make("b", "", `${Math.round((score || 0) * 100)} %`));
  });
}

function headline(result) {
  if (classes(result).length) return classes(result)[0].label;
  if (result && result.detect) return things(result).length ? `${things(result).length} found` : "nothing found";
  return "an answer of a kind this page does not know";
}

function cloudSide(c) {
  const title = make("h3", "", "Cloud");
  const side = make("div", "side cloud", title);
  if (c.verdict && c.verdict.authority === "device") {
    side.append(make("p", "said none", "saw nothing of it: the device's answer stands"));
  } else if (c.verdict) {
    const took = c.verdict.given_ms ? c.verdict.given_ms - c.received_ms : null;
    if (took !== null) title.append(make("small", "", ` after ${took < 1000 ? `${took} ms` : span(took / 1000)}`));
    const name = headline(c.verdict.result);
    const said = make("p", "said", name);
    said.title = `${name} (${c.verdict.model.name} ${c.verdict.model.version})`;
    side.append(said, ...scoreRows([...classes(c.verdict.result), ...found(c.verdict.result)]));
  } else {
    const held = latest.figures && !latest.figures.tasks.includes(c.task) ? `held: no model here for ${c.task}` : "waiting…";
    side.append(make("p", "said none", { waiting: held, failed: "could not answer: ", dead: "will not answer: " }[c.state] + (c.why || "")));
  }
  return side;
}

function mark(c) {
  const share = c.local && c.local.detect && typeof c.agreement === "number" ? ` ${Math.round(c.agreement * 100)} %` : "";
  if (c.agrees === true) return make("span", "pill mark good", share ? `✓ agreement${share}` : "✓ agrees");
  if (c.agrees === false) return make("span", "pill mark bad", share ? `✗ agreement${share}` : "✗ corrected");
  if (c.state === "dead" || c.state === "failed") return make("span", "pill mark bad", c.state === "dead" ? "set aside" : "failed");
  if (c.verdict && c.verdict.authority === "device") return make("span", "pill mark quiet", "noted");
  return c.state === "waiting" ? make("span", "pill mark quiet", "waiting") : make("span", "pill mark quiet", "answered");
}

function caseCard(c) {
  const none = Array.isArray(c.local) && !c.local.length;
  const said = make("p", none ? "said none" : "said", none ? "no usable answer" : headline(c.local));
  said.title = `${none ? "" : headline(c.local)} (${c.local_model.name} ${c.local_model.version})`;
  const why = make("span", "chip", REASONS[c.reason] || c.reason.replaceAll("_", " "));
  why.title = `threshold ${c.threshold.toFixed(2)}, ${c.mode}`;
  return make("article", finds(c) ? "case finds" : "case",
    shot(c),
    make("div", "body",
      make("div", "meta", make("span", "who", `${c.device} · ${c.source}`), age(c.received_ms, "", " ago")),
      make("div", "sides", make("div", "side", make("h3", "", "Device"), said, ...scoreRows([...classes(c.local), ...found(c.local)])), cloudSide(c)),
      make("div", "end", mark(c), why)));
}

// Replaces only what has changed, so that pictures do not flicker and focus stays.
function drawList(parent, items, key, draw) {
  const before = new Map([...parent.children].filter((e) => e.dataset.key).map((e) => [e.dataset.key, e]));
  const active = document.activeElement && document.activeElement.closest("[data-key]");
  const focused = active && parent.contains(active) ? [active.dataset.key, document.activeElement.tagName] : null;
  const now = items.map((item) => {
    const text = JSON.stringify(item) + (item.device === onlyDevice);
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
  if (!now.length) parent.append(parent.emptyNote);
  const again = focused && now.find((element) => element.dataset.key === focused[0]);
  const place = again && again.querySelector(focused[1]);
  if (place && document.activeElement !== place) place.focus({ preventScroll: true });
}

const DEVICES_SHOWN = 60;

function drawDevices(devices) {
  latest.devices = devices;
  if (asked.text || asked.offset) { findLater(); return; }
  const inOrder = (a, b) => a.trouble - b.trouble || (a.device < b.device ? -1 : 1);
  const sorted = [...devices].sort(inOrder).slice(0, DEVICES_SHOWN);
  drawList(at("devices"), sorted, "device", deviceCard);
  drawPages(latest.figures ? Object.values(inFleet(latest.figures)).reduce((sum, n) => sum + n, 0) : sorted.length);
}

const inFleet = ({ fleet: { with_faults, ...states } }) => states;

function drawFleet(f) {
  const parts = Object.entries(inFleet(f)).filter(([, n]) => n).map(([state, n]) => `${number(n)} ${state}`);
  if (f.fleet.with_faults) parts.push(`${number(f.fleet.with_faults)} with faults`);
  at("fleet").textContent = parts.join(" · ");
}

// What is asked for beside the first page of all.
const asked = { text: "", offset: 0 };
const FIND_PAUSE_MS = 2000;
let finding = null;

function findLater() {
  if (!finding) finding = setTimeout(find, FIND_PAUSE_MS);
}

async function find() {
  clearTimeout(finding);
  finding = null;
  if (!asked.text && !asked.offset) { at("fleet").classList.remove("wrong"); if (latest.figures) drawFleet(latest.figures); drawDevices(latest.devices); return; }
  const { text, offset } = asked;
  const query = new URLSearchParams({ order: "trouble", offset, limit: DEVICES_SHOWN });
  if (text) query.set("where", text.includes("=") ? text : `name=*${text}*`);
  try {
    const response = await fetch(`/api/devices?${query}`);
    const found = await response.json();
    if (text !== asked.text || offset !== asked.offset) return;
    at("fleet").classList.toggle("wrong", !response.ok);
    if (!response.ok) { at("fleet").textContent = found.error; return; }
    if (latest.figures) drawFleet(latest.figures);
    drawList(at("devices"), found, "device", deviceCard);
    drawPages(Number(response.headers.get("Hedge-Count")));
  } catch { /* The live mark shows that the server is gone. */ }
}

function drawPages(count) {
  const { offset, text } = asked;
  const last = Math.min(offset + DEVICES_SHOWN, count);
  at("pages").hidden = count <= DEVICES_SHOWN && !offset && !text;
  at("where").textContent = count ? `${number(offset + 1)} to ${number(last)} of ${number(count)}` : "none is so";
  at("before").disabled = offset === 0;
  at("after").disabled = last >= count;
}

function turn(by) {
  asked.offset = Math.max(0, asked.offset + by * DEVICES_SHOWN);
  find();
}

at("before").addEventListener("click", () => turn(-1));
at("after").addEventListener("click", () => turn(1));
at("find").addEventListener("input", () => { asked.text = at("find").value.trim(); asked.offset = 0; find(); });

const drawCases = (cases) => drawList(at("cases"), cases, "id", caseCard);

async function show(device) {
  onlyDevice = device;
  at("filter").hidden = !device;
  at("filter").textContent = device ? `only ${device} ✕` : "";
  drawDevices(latest.devices);
  await casesChanged(latest.cases);
}

async function casesChanged(cases) {
  latest.cases = cases;
  if (!onlyDevice) { drawCases(cases); return; }
  const wanted = onlyDevice;
  try {
    const response = await fetch(`/api/cases?device=${encodeURIComponent(wanted)}`);
    const theirs = await response.json();
    if (response.ok && wanted === onlyDevice) drawCases(theirs);
  } catch { /* The live mark shows that the server is gone. */ }
}

at("filter").addEventListener("click", () => show(null));
const CASES_SHOWN = 24;

// What is new or has changed takes its place in the list.
function merged(list, changed, key) {
  const fresh = new Map(changed.map((item) => [item[key], item]));
  return [...changed.filter((item) => !list.some((old) => old[key] === item[key])), ...list.map((old) => fresh.get(old[key]) || old)];
}

listen({
  figures: drawFigures,
  devices: drawDevices,
  cases: casesChanged,
  changed_devices: (changed) => drawDevices(merged(latest.devices, changed, "device")),
  changed_cases: (changed) => casesChanged(merged(latest.cases, changed, "id").sort((a, b) => b.received_ms - a.received_ms).slice(0, CASES_SHOWN)),
});
