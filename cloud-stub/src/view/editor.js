// The settings of one device as a form made from their schema, or as the document itself. The device and the server
// decide what is valid; this only sends what was changed and shows what they say at its field.
import { bytes, make, number } from "/parts.js";

// What most people come for stands first.
const ORDER = ["model", "source", "link", "verdicts", "telemetry", "outbox", "broker", "log"];

// Models come with the device's own file; an overlay cannot add one.
const CLOSED = ["model"];

export const show = (value) => (typeof value === "string" ? value : JSON.stringify(value));

// A part of a name that has a dot is quoted, as on the command line.
const quoted = (path) => path.map((part) => (/^[A-Za-z0-9_-]+$/.test(part) ? part : JSON.stringify(part))).join(".");
const dig = (document, path) => path.reduce((value, part) => (value === null || value === undefined ? undefined : value[part]), document);
const same = (a, b) => JSON.stringify(a) === JSON.stringify(b);
const isObject = (value) => value !== null && typeof value === "object" && !Array.isArray(value);

// A schema without its references and without the `null` that every field may be.
function resolve(schema, root) {
  let { description } = schema;
  for (;;) {
    if (schema.$ref) {
      schema = root.$defs[schema.$ref.split("/").pop()];
    } else if (schema.anyOf) {
      schema = schema.anyOf.find((one) => one.type !== "null");
    } else {
      break;
    }
    description = description || schema.description;
  }
  const type = Array.isArray(schema.type) ? schema.type.find((one) => one !== "null") : schema.type;
  return { ...schema, type, description };
}

// What an entry of a map looks like, if the schema is one: models by name, classes by label.
function entrySchema(schema) {
  if (schema.patternProperties) return Object.values(schema.patternProperties)[0];
  return isObject(schema.additionalProperties) ? schema.additionalProperties : null;
}

// A field of one of some words, or of a word with a number.
function choicesOf(schema) {
  if (schema.enum) return schema.enum.map((word) => ({ word }));
  if (!schema.oneOf) return null;
  return schema.oneOf.flatMap((one) => {
    if (one.const !== undefined) return [{ word: one.const }];
    if (one.enum) return one.enum.map((word) => ({ word }));
    return Object.keys(one.properties || {}).map((word) => ({ word, takes: one.properties[word] }));
  });
}

function bounds(schema) {
  const { minimum: least, maximum: most } = schema;
  // What a number of JSON can be at most bounds nothing.
  if (least !== undefined && most >= Number.MAX_SAFE_INTEGER) return `${least} or more`;
  if (least !== undefined && most !== undefined) return `${least} to ${most}`;
  return least ? `at least ${least}` : "";
}

let ids = 0;

// One field. `value()` is what it says: `undefined` for what is in the device's own file.
function makeField(path, schema, trial, changed) {
  const id = `field-${ids += 1}`;
  const choices = schema.type === "boolean" ? [{ word: true }, { word: false }] : choicesOf(schema);
  const numeric = schema.type === "number" || schema.type === "integer";
  const box = make("div", "field");
  const label = make("label", "", path[path.length - 1]);
  label.htmlFor = id;
  const hint = [schema.description, bounds(schema)].filter(Boolean).join(" ");
  const told = make("small", "", hint);
  told.id = `${id}-hint`;
  const head = make("div", "head", make("span", "", label, trial ? make("span", "chip", "on trial") : null), hint ? told : null);
  const number = make("input");
  let input = make("input");
  if (choices) {
    input = make("select", "", option("", "as in its file"), ...choices.map(({ word, takes }) => option(String(word), takes ? `${word}…` : String(word))));
    number.inputMode = "numeric";
    number.setAttribute("aria-label", `number for ${path[path.length - 1]}`);
    number.addEventListener("input", changed);
  } else {
    input.type = "text";
    input.autocomplete = "off";
    input.spellcheck = false;
    if (numeric) input.inputMode = "decimal";
  }
  input.id = id;
  input.setAttribute("aria-describedby", `${id}-hint ${id}-wrong`);
  input.addEventListener("input", changed);
  const back = make("button", "back", "↺");
  back.type = "button";
  back.title = "as in the device's own file";
  back.setAttribute("aria-label", `${path.join(" ")}: as in the device's own file`);
  const wrong = make("p", "wrong");
  wrong.id = `${id}-wrong`;
  const now = make("div", "now");
  box.append(head, make("div", "entry", input, number, back), now, wrong);

  const chosen = () => choices && choices.find(({ word }) => String(word) === input.value);
  const read = (text) => (text.trim() !== "" && Number.isFinite(Number(text)) ? Number(text) : text);
  const field = {
    box, path, input,
    value() {
      const choice = chosen();
      if (choices && !choice) return undefined;
      if (choice) return choice.takes ? { [choice.word]: read(number.value) } : choice.word;
      if (input.value === "") return undefined;
      return numeric ? read(input.value) : input.value;
    },
    set(value) {
      const choice = choices && isObject(value) ? Object.keys(value)[0] : undefined;
      number.value = choice === undefined ? "" : String(value[choice]);
      input.value = value === undefined || value === null ? "" : choice === undefined ? show(value) : choice;
      field.dress();
    },
    // Shows what is in force beside the field, and where from.
    compare(wanted, inForce, suggested) {
      const isSuggested = inForce === undefined && suggested !== undefined;
      if (isSuggested) inForce = suggested;
      if (!choices) input.placeholder = inForce === undefined ? "" : show(inForce);
      const origin = wanted !== undefined && same(wanted, inForce) ? "remote setting" : isSuggested ? "the bundle suggests it" : wanted === undefined && inForce !== undefined ? "its own file" : "";
      const amount = /^bytes_/.test(path[path.length - 1]) && typeof inForce === "number" ? bytes(inForce) : "";
      now.replaceChildren(inForce === undefined ? make("i", "", "not set") : make("span", "", show(inForce)),
        make("small", "", [amount, origin].filter(Boolean).join(" · ")));
      now.title = "in force";
    },
    dress() {
      const choice = chosen();
      number.hidden = !(choice && choice.takes);
      back.hidden = input.value === "";
    },
    mark(dirty) { box.classList.toggle("dirty", dirty); },
    blame(reason) {
      wrong.textContent = reason || "";
      box.classList.toggle("bad-field", Boolean(reason));
      if (reason) input.setAttribute("aria-invalid", "true"); else input.removeAttribute("aria-invalid");
    },
  };
  back.addEventListener("click", () => { field.set(undefined); changed(); input.focus(); });
  field.dress();
  return field;
}

function option(value, text) {
  const element = make("option", "", text);
  element.value = value;
  return element;
}

const percent = (share) => `${(100 * share).toFixed(1)} %`;

// What a device foresees of a threshold, in a line.
function foreseen(model, { in_force: before, then }) {
  const both = (text) => (before ? `${text(then)} (now ${text(before)})` : text(then));
  const parts = [`${both((f) => percent(f.deferred))} of the answers sent`, `${both((f) => number(Math.round(f.cases_per_day)))} cases a day`];
  if (then.bytes_per_day !== undefined) parts.push(`${both((f) => bytes(Math.round(f.bytes_per_day ?? 0)))} a day`);
  parts.push(then.contradicted === undefined ? "how many would be contradicted is not known yet"
    : `${both((f) => percent(f.contradicted ?? 0))} kept that the cloud would contradict`
      + (then.deferred < 1 ? `, ${both((f) => percent((f.contradicted ?? 0) / (1 - f.deferred || 1)))} of the kept` : ""));
  return `${model}: ${parts.join(", ")}. By the last ${number(then.answers)} answers.`;
}

// `publish` sends a request and gives a report; `command` does so with a command.
export function makeEditor(root, schema, publish, command) {
  let page = null;
  let fields = new Map(); // by quoted name
  let drafts = new Map(); // what was typed and is not published: by quoted name, `undefined` for the file's
  let added = []; // entries of maps that exist only in the form so far
  let shape = "";
  let busy = false;
  let answered = null; // the last report that has a version
  let documentOf = null; // the version its text was made from

  const form = make("form", "form");
  const text = make("textarea");
  text.spellcheck = false;
  text.rows = 18;
  text.setAttribute("aria-label", "all wanted settings as JSON");
  const writing = make("div", "document", make("p", "hint", "All wanted remote settings. What is left out keeps the value of the device's own file."), text);
  writing.hidden = true;
  const tabs = ["Form", "Document"].map((name) => {
    const tab = make("button", "", name);
    tab.type = "button";
    tab.setAttribute("aria-pressed", String(name === "Form"));
    tab.addEventListener("click", () => choose(name));
    return tab;
  });
  const review = make("ul", "review");
  const said = make("div", "said-back");
  said.setAttribute("role", "status");
  const by = make("input");
  by.id = "who";
  by.maxLength = 60;
  by.value = localStorage.getItem("who") || "";
  by.placeholder = "for the log";
  by.addEventListener("change", () => localStorage.setItem("who", by.value.trim()));
  const confirm = make("select", "", option("auto", "the device"), option("operator", "an operator"));
  confirm.id = "confirm";
  confirm.title = "Settings that could cut the link are kept once this one confirms them";
  const onto = make("select", "", option("", "ask"), option("in_force", "what is in force"), option("wanted", "what is wanted"));
  onto.id = "onto";
  onto.title = "The device has not taken yet what is wanted of it: the change drops that, or includes it";
  const publishing = make("button", "main", "Publish");
  publishing.type = "button";
  const discard = make("button", "", "Discard");
  discard.type = "button";
  const foresee = make("button", "", "What if");
  foresee.type = "button";
  foresee.title = "What these thresholds would have made of the last day";
  const labelled = (text, input) => { const label = make("label", "", text); label.htmlFor = input.id; return make("span", "pair", label, input); };
  const building = labelled("Builds on", onto);
  const note = make("p", "hint");
  const bar = make("div", "bar", note, said, review, make("div", "row", labelled("Your name", by), labelled("A trial is confirmed by", confirm), building, make("span", "gap"), foresee, discard, publishing));
  const box = make("div", "tabs", ...tabs);
  box.setAttribute("role", "group");
  box.setAttribute("aria-label", "how to edit");
  root.append(box, form, writing, bar);

  // What an edit builds on: what is in force, never what was refused or failed.
  const wantedNow = () => page.base || (page.desired && page.desired.settings) || {};
  // What a model's bundle suggests is in force where no setting says anything.
  const suggestion = ([group, model, part, ...rest]) => (group === "model" && part === "threshold"
    ? dig(((page.reported && page.reported.suggested) || {})[model], rest) : undefined);
  const inForceNow = () => (page.reported && page.reported.settings) || {};
  const isDocument = () => !writing.hidden;
  const documentText = () => JSON.stringify(wantedNow(), null, 2);

  function choose(name) {
    const toDocument = name === "Document";
    if (toDocument && !isDocument()) { text.value = documentText(); documentOf = page.desired ? page.desired.version : 0; }
    writing.hidden = !toDocument;
    form.hidden = toDocument;
    tabs.forEach((tab) => tab.setAttribute("aria-pressed", String(tab.textContent === name)));
    drawBar();
  }

  function keysOf(path) {
    const names = [wantedNow(), inForceNow()].map((document) => dig(document, path)).filter(isObject).flatMap(Object.keys);
    const mine = added.filter((one) => one.length === path.length + 1 && same(one.slice(0, -1), path)).map((one) => one[path.length]);
    return [...new Set([...names, ...mine])].sort();
  }

  // Each field's path, its schema and whether it is on trial; and where entries can be added.
  function plan(node, path, onTrial) {
    const here = resolve(node, schema);
    const trial = onTrial || /^On trial/.test(here.description || "");
    const entry = entrySchema(here);
    if (entry) return { path, here, map: true, inner: keysOf(path).map((key) => plan(entry, [...path, key], trial)) };
    if (!here.properties) return { path, here, trial };
    const inner = Object.keys(here.properties).map((key) => plan(here.properties[key], [...path, key], trial));
    // Single values first, groups of them below.
    return { path, here, inner: [...inner.filter((one) => !one.inner), ...inner.filter((one) => one.inner)] };
  }

  const leaves = (node) => (node.inner ? node.inner.flatMap(leaves) : [quoted(node.path)]);

  function build(node, level, title = node.path[node.path.length - 1]) {
    const lone = node.inner && !node.map && level > 1 && node.inner.length === 1 ? node.inner[0] : null;
    if (lone && lone.inner) return build(lone, level, `${title} · ${lone.path[lone.path.length - 1]}`);
    if (!node.inner) {
      const field = makeField(node.path, node.here, node.trial, () => edited(field));
      fields.set(quoted(node.path), field);
      return field.box;
    }
    const parts = node.inner.map((inner) => build(inner, level + 1));
    if (node.map && !CLOSED.includes(node.path.join("."))) parts.push(adder(node));
    if (level === 1) {
      const group = make("details", "group", make("summary", "", make("b", "", title), make("span", "count")), node.here.description && !node.map ? make("p", "hint", node.here.description) : null, ...parts);
      group.dataset.group = title;
      group.open = title === "model";
      return group;
    }
    const legend = make("legend", "", title);
    const set = make("fieldset", `level-${level}`, legend, node.here.description && level === 2 ? make("p", "hint", node.here.description) : null, ...parts);
    if (!parts.length) set.append(make("p", "hint", "nothing is set here"));
    return set;
  }

  function adder(node) {
    const what = node.path[node.path.length - 1];
    const input = make("input");
    input.placeholder = { classes: "a class's label", weights: "a class's label", policies: "a class's label", source: "a new source's name" }[what] || "name";
    input.setAttribute("aria-label", `add to ${node.path.join(" ")}`);
    const button = make("button", "", "Add");
    button.type = "button";
    const add = () => {
      const key = input.value.trim();
      if (!key) return;
      added.push([...node.path, key]);
      input.value = "";
      draw(true);
      const first = [...fields.values()].find((field) => same(field.path.slice(0, node.path.length + 1), [...node.path, key]));
      if (first) first.input.focus();
    };
    button.addEventListener("click", add);
    input.addEventListener("keydown", (event) => { if (event.key === "Enter") { event.preventDefault(); add(); } });
    return make("div", "adder", input, button);
  }

  function draw(anew) {
    const order = (key) => (ORDER.includes(key) ? ORDER.indexOf(key) : ORDER.length);
    const keys = Object.keys(schema.properties).sort((a, b) => order(a) - order(b));
    const groups = keys.map((key) => plan(schema.properties[key], [key], false));
    const now = JSON.stringify(groups.flatMap(leaves));
    if (anew || now !== shape) {
      const open = new Set([...form.querySelectorAll("details[open]")].map((group) => group.dataset.group));
      const first = shape === "";
      shape = now;
      fields = new Map();
      form.replaceChildren(...groups.map((group) => build(group, 1)));
      if (!first) form.querySelectorAll("details").forEach((group) => { group.open = open.has(group.dataset.group); });
    }
    for (const [name, field] of fields) {
      const wanted = dig(wantedNow(), field.path);
      field.compare(wanted, dig(inForceNow(), field.path), suggestion(field.path));
      if (document.activeElement !== field.input) field.set(drafts.has(name) ? drafts.get(name) : wanted);
      field.mark(drafts.has(name));
    }
    note.textContent = page.base_note || "";
    building.hidden = !page.pending;
    drawCounts();
    drawBar();
  }

  function drawCounts() {
    for (const group of form.querySelectorAll("details")) {
      const inside = [...fields].filter(([, field]) => field.path[0] === group.dataset.group);
      const set = inside.filter(([, field]) => dig(wantedNow(), field.path) !== undefined && dig(wantedNow(), field.path) !== null).length;
      const dirty = inside.filter(([name]) => drafts.has(name)).length;
      const wrong = inside.filter(([, field]) => field.box.classList.contains("bad-field")).length;
      group.querySelector(".count").replaceChildren(
        set ? make("span", "", `${set} set remotely`) : "", dirty ? make("span", "pill warn", `${dirty} changed`) : "", wrong ? make("span", "pill bad", `${wrong} wrong`) : "");
    }
  }

  function edited(field) {
    const name = quoted(field.path);
    const wanted = dig(wantedNow(), field.path);
    const value = field.value();
    if (same(value, wanted === null ? undefined : wanted)) drafts.delete(name); else drafts.set(name, value);
    field.dress();
    field.mark(drafts.has(name));
    field.blame("");
    drawCounts();
    drawBar();
  }

  function drawBar() {
    const dirty = isDocument() ? text.value !== documentText() : drafts.size > 0;
    bar.classList.toggle("ready", dirty);
    publishing.disabled = busy || !dirty || Boolean(page && page.look_only);
    discard.disabled = busy || !dirty;
    foresee.hidden = isDocument() || !Object.keys(thresholds()).length;
    foresee.disabled = publishing.disabled;
    publishing.textContent = busy ? "Waiting for the device…" : "Publish";
    const lines = isDocument() ? [] : [...drafts].map(([name, value]) => {
      const before = fields.has(name) ? dig(wantedNow(), fields.get(name).path) : undefined;
      return make("li", "", make("code", "", name), " ", make("del", "", before === undefined ? "own file" : show(before)), " → ", make("ins", "", value === undefined ? "own file" : show(value)));
    });
    if (isDocument() && dirty && page && documentOf !== (page.desired ? page.desired.version : 0)) {
      lines.push(make("li", "wrong", "Somebody has changed the wanted settings since. Discard to see them."));
    }
    review.replaceChildren(...lines);
  }

  // Shows each error at its field, and returns those that have none here.
  function blameAll(errors, focus) {
    fields.forEach((field) => field.blame(""));
    const left = [];
    for (const error of errors) {
      const exact = [...fields.values()].filter((field) => {
        const plain = field.path.join(".");
        return error.field === plain || error.field === quoted(field.path) || error.field.startsWith(`${plain}.`);
      });
      const field = exact[0] || [...fields.values()].find((one) => one.path.join(".").startsWith(`${error.field}.`) && one.box.classList.contains("dirty"));
      if (field && !isDocument()) {
        field.blame(error.reason);
        const group = field.box.closest("details");
        if (group) group.open = true;
      } else {
        left.push(error);
      }
    }
    drawCounts();
    const first = form.querySelector(".bad-field input, .bad-field select");
    if (focus && first && !isDocument()) first.focus();
    return left;
  }

  function answer(report) {
    if (report.error) {
      said.replaceChildren(make("p", "wrong", report.error));
      return;
    }
    answered = report.version ? report : null;
    const kind = { applied: "good", on_trial: "warn" }[report.outcome] || "bad";
    const left = blameAll(report.errors || [], true);
    said.replaceChildren(make("p", "", make("span", `pill ${kind}`, report.outcome.replaceAll("_", " ")),
      report.version ? ` version ${report.version}` : "", report.reason ? `: ${report.reason}` : ""));
    if (report.note) said.append(make("p", "hint", report.note));
    if (left.length) said.append(make("ul", "wrong", ...left.map((e) => make("li", "", make("code", "", e.field), `: ${e.reason}`))));
    // It is at the broker now: what was a draft is what is wanted.
    if (report.version) { drafts = new Map(); added = []; documentOf = report.version; }
  }

  // The thresholds that are typed and not published, by model.
  function thresholds() {
    const models = {};
    for (const [name, value] of drafts) {
      const [group, model, part, ...rest] = fields.has(name) ? fields.get(name).path : [];
      if (group !== "model" || part !== "threshold") continue;
      let inner = models[model] = models[model] || {};
      for (const key of rest.slice(0, -1)) inner = inner[key] = inner[key] || {};
      inner[rest[rest.length - 1]] = value === undefined ? null : value;
    }
    return models;
  }

  async function ask() {
    busy = true;
    drawBar();
    const lines = [];
    for (const [model, threshold] of Object.entries(thresholds())) {
      const report = await command({ command: "what_if", args: { model, threshold } });
      const why = report.error || report.reason;
      lines.push(make("p", why ? "wrong" : "", why || foreseen(model, report.result)));
    }
    said.replaceChildren(...lines);
    busy = false;
    drawBar();
  }

  async function send() {
    const request = { confirm: confirm.value };
    if (isDocument()) {
      try {
        request.whole = JSON.parse(text.value);
      } catch (error) {
        said.replaceChildren(make("p", "wrong", `This is not JSON: ${error.message}`));
        return;
      }
      request.based_on = documentOf;
    } else {
      if (page.pending && onto.value) request.onto = onto.value;
      request.edits = Object.fromEntries([...drafts].map(([name, value]) => [name, value === undefined ? null : value]));
    }
    localStorage.setItem("who", by.value.trim());
    busy = true;
    said.replaceChildren();
    drawBar();
    answer(await publish(request));
    busy = false;
    drawBar();
  }

  publishing.addEventListener("click", send);
  foresee.addEventListener("click", ask);
  // Enter leads to the button, beside which stands what would be changed, and another one presses it.
  const toTheEnd = (event) => { event.preventDefault(); publishing.focus(); };
  form.addEventListener("submit", toTheEnd);
  form.addEventListener("keydown", (event) => { if (event.key === "Enter" && event.target.matches(".field input")) toTheEnd(event); });
  text.addEventListener("input", drawBar);
  discard.addEventListener("click", () => {
    drafts = new Map();
    added = [];
    fields.forEach((field) => field.blame(""));
    said.replaceChildren();
    if (isDocument()) { text.value = documentText(); documentOf = page.desired ? page.desired.version : 0; }
    draw(true);
  });

  return {
    take(now) {
      const clean = page && isDocument() && text.value === documentText();
      page = now;
      const last = page.reported && page.reported.last;
      const refused = last && page.desired && last.version === page.desired.version && last.errors;
      // How a trial ended is news about what was published here.
      if (answered && answered.outcome === "on_trial" && last && last.version === answered.version && last.outcome !== "on_trial") answer({ ...answered, ...last });
      if (clean) { text.value = documentText(); documentOf = page.desired ? page.desired.version : 0; }
      draw(false);
      if (!drafts.size) blameAll(refused || [], false);
    },
  };
}
