// What became of a device over time, and how well it judges: charts of what it reports and of the cloud's answers. What
// it does not report is not drawn, and is said in words.
import { barsOverTime, histogram, latencies, lineOverTime, meter, reliability, statesOverTime } from "/charts.js";
import { at, make, number, percent, span } from "/parts.js";
import { caseCard } from "/case-parts.js";
import { makeSaved } from "/saved.js";

const SPANS = { hour: "hour", day: "day", week: "week", month: "month" };
const AGAIN_MS = { hour: 15000, day: 60000, week: 60000, month: 60000 };
const CASES_SHOWN = 3;
const ICE = 2731.5; // Tenths of a kelvin at 0 °C.

const words = (name) => name.replaceAll("_", " ");
const sum = (buckets, value) => buckets.reduce((all, bucket) => all + (value(bucket) || 0), 0);
const most = (buckets, value) => buckets.reduce((all, bucket) => Math.max(all, value(bucket) || 0), 0);
const milliseconds = (ms) => (ms < 1 ? `${ms.toFixed(2)} ms` : ms < 100 ? `${ms.toFixed(1)} ms` : ms < 10000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(0)} s`);
const short = (n) => (n >= 10000 ? `${(n / 1000).toFixed(0)}k` : n >= 1000 ? `${(n / 1000).toFixed(1)}k` : n >= 10 || Number.isInteger(n) ? n.toFixed(0) : n.toFixed(1));
const bytesShort = (n) => (n >= 1e6 ? `${(n / 1e6).toFixed(1)} MB` : n >= 1e3 ? `${(n / 1e3).toFixed(0)} KB` : `${n} B`);

// One chart with its title and what it comes to in words; without a chart, why there is none.
function panel(title, note, draw, wide = false) {
  const figure = make("figure", wide ? "panel wide" : "panel", make("figcaption", "", make("h3", "", title), note ? make("p", "soft", note) : null));
  return { figure, draw };
}

function legend(entries) {
  return make("ul", "legend", ...entries.map(([kind, label]) => make("li", "", make("i", `swatch ${kind}`), label)));
}

const thresholdOf = (model, settings) => (settings && settings.model && settings.model[model] && settings.model[model].threshold) || {};

// What may be spent on cases, as far as it is set: by models' budgets and by the ceilings of the link.
function limits(telemetry, settings) {
  const found = [];
  for (const model of Object.keys((telemetry && telemetry.models) || {})) {
    const { mode, budget } = thresholdOf(model, settings);
    if (mode !== "budget" || !budget) continue;
    if (budget.share !== undefined && budget.share !== null) found.push({ share: budget.share, words: `budget of ${model}: ${percent(budget.share, 1)}` });
    if (budget.cases_per_hour) found.push({ hourly: budget.cases_per_hour, words: `budget of ${model}: ${number(budget.cases_per_hour)} an hour` });
    if (budget.cases_per_day) found.push({ hourly: budget.cases_per_day / 24, words: `budget of ${model}: ${number(budget.cases_per_day)} a day` });
  }
  for (const [name, hours] of [["cases_per_hour", 1], ["cases_per_day", 24], ["cases_per_month", 720]]) {
    const ceiling = telemetry && telemetry.budget ? telemetry.budget[name] : null;
    if (ceiling && ceiling.max) found.push({ hourly: ceiling.max / hours, words: `ceiling: ${ceiling.max.toLocaleString("en")} ${words(name.replace("cases_", ""))}` });
  }
  return found;
}

function deferral(view, telemetry, settings) {
  const [asked, answered] = [sum(view.buckets, (b) => b.deferred), sum(view.buckets, (b) => (b.kept || 0) + (b.deferred || 0))];
  const set = limits(telemetry, settings);
  const share = set.find((limit) => limit.share !== undefined);
  const hourly = set.filter((limit) => limit.hourly).sort((a, b) => a.hourly - b.hourly)[0];
  const rate = (b) => ((b.deferred || 0) * 3600) / b.span_s;
  const part = (b) => (b.deferred || 0) / Math.max(1, (b.kept || 0) + (b.deferred || 0));
  const highest = most(view.buckets, rate);
  const isNear = hourly && hourly.hourly <= 4 * highest;
  const note = `${number(asked)} of ${number(answered)} answers deferred (${percent(asked, answered)}).`
    + (share ? ` The ${share.words}.` : hourly ? ` The ${hourly.words}${isNear ? "" : ", far above what is used"}.` : " No budget is set, and no ceiling reported.");
  const say = (b) => `${number(b.deferred || 0)} of ${number((b.kept || 0) + (b.deferred || 0))} deferred`;
  return panel("Deferred, against its budget", note, answered ? (width) => (share
    ? barsOverTime(view, { width, label: `Share of answers deferred over time. ${note}`, parts: [{ class: "bar asks", value: part }], line: { value: share.share, words: "budget" }, write: (v) => percent(v, 1), say })
    : barsOverTime(view, { width, label: `Answers deferred per hour over time. ${note}`, parts: [{ class: "bar asks", value: rate }], line: isNear ? { value: hourly.hourly, words: hourly.words } : null, write: (v) => `${short(v)}/h`, say })) : null);
}

function answers(view) {
  const [kept, asked, corrected] = ["kept", "deferred", "corrected"].map((name) => sum(view.buckets, (b) => b[name]));
  const note = kept + asked ? `${number(kept)} kept, ${number(asked)} deferred; ${number(corrected)} were corrected.` : "It has answered nothing in this time.";
  const say = (b) => `${number(b.kept || 0)} kept, ${number(b.deferred || 0)} deferred, ${number(b.corrected || 0)} corrected`;
  const figure = panel("Answers", note, kept + asked ? (width) => barsOverTime(view, {
    width, label: `Answers over time, kept and deferred. ${note}`, write: (v) => `${short(v)}/h`, say,
    parts: [{ class: "bar", value: (b) => ((b.kept || 0) * 3600) / b.span_s }, { class: "bar asks", value: (b) => ((b.deferred || 0) * 3600) / b.span_s }],
  }) : null);
  figure.legend = kept + asked ? legend([["kept", "kept on the device"], ["asks", "deferred to the cloud"]]) : null;
  return figure;
}

function link(view) {
  const seconds = view.states.map((_, state) => sum(view.buckets, (b) => (b.link_s || [])[state]));
  const all = seconds.reduce((total, one) => total + one, 0);
  const parts = view.states.map((state, index) => [words(state), seconds[index]]).filter(([, one]) => one);
  const note = all ? `${parts.map(([state, one]) => `${state} ${percent(one, all)}`).join(", ")}. Grey: nothing heard of that time yet.` : "It has reported nothing of its link in this time.";
  const say = (b) => view.states.map((state, index) => [state, (b.link_s || [])[index]]).filter(([, one]) => one).map(([state, one]) => `${words(state)} ${span(one)}`).join(", ") + (b.why ? `: ${b.why}` : "");
  const figure = panel("Link", note, all ? (width) => statesOverTime(view, { width, label: `State of the link over time. ${note}`, say }) : null, true);
  figure.legend = all ? legend(view.states.map((state, index) => [state, seconds[index]]).filter(([, one]) => one).map(([state]) => [`state-${state}`, words(state)])) : null;
  const reasons = view.buckets.filter((b) => b.why).slice(-5).reverse();
  figure.after = reasons.length
    ? make("ul", "reasons", ...reasons.map((b) => make("li", "", make("time", "", new Date(b.at_ms).toLocaleString("en-GB", { day: "numeric", month: "short", hour: "2-digit", minute: "2-digit" })), ` ${b.why}`)))
    : all ? make("p", "hint", "It named no reason for a state other than online.") : null;
  return figure;
}

function queue(view, telemetry) {
  const highest = most(view.buckets, (b) => b.queue_max);
  const now = telemetry ? telemetry.queue : null;
  const oldest = most(view.buckets, (b) => b.oldest_max_s);
  const room = now && now.bytes_max ? ` It takes ${percent(now.bytes, now.bytes_max)} of its room on the disk.` : "";
  const note = view.buckets.some((b) => b.reports)
    ? `At most ${number(highest)} ${highest === 1 ? "case" : "cases"} waited${oldest ? `, the oldest for ${span(oldest)}` : ""}.${now ? ` Now ${number(now.waiting)}${now.oldest_s ? `, the oldest ${span(now.oldest_s)}` : ""}.` : ""}${room} What each is worth the device does not report.`
    : "It has reported no queue in this time.";
  return panel("Queue", note, view.buckets.some((b) => b.reports) ? (width) => barsOverTime(view, {
    width, label: `Most cases that waited over time. ${note}`, parts: [{ class: "bar", value: (b) => b.queue_max }], write: short,
    say: (b) => `${number(b.queue_max || 0)} waited${b.oldest_max_s ? `, the oldest ${span(b.oldest_max_s)}` : ""}`,
  }) : null);
}

function heat(view, telemetry) {
  const degrees = (b) => (b.temperatures ? (b.temperature_sum / b.temperatures - ICE) / 10 : null);
  const known = view.buckets.some((b) => b.temperatures);
  const highest = (most(view.buckets, (b) => b.temperature_max) - ICE) / 10;
  const bits = view.buckets.reduce((all, b) => all | (b.throttling || 0), 0);
  const held = view.throttling.filter((_, bit) => bits & (1 << bit)).map(words);
  const reports = telemetry && telemetry.board && telemetry.board.throttling;
  const note = (known ? `At most ${highest.toFixed(1)} °C.` : "Its board reports no temperature.")
    + (held.length ? ` Held back: ${held.join(", ")} (red below).` : reports ? " It was not held back." : " It does not report whether it is held back.");
  return panel("Temperature and throttling", note, known ? (width) => lineOverTime(view, {
    width, label: `Temperature over time. ${note}`, value: degrees, write: (v) => `${v.toFixed(0)}°`, least: 60, mark: (b) => b.throttled,
    say: (b) => `${degrees(b) === null ? "" : `${degrees(b).toFixed(1)} °C`}${b.throttled ? ", held back" : ""}`,
  }) : null);
}

function took(view, telemetry) {
  const rows = Object.entries((telemetry && telemetry.latency) || {}).filter(([, l]) => l.count).map(([name, l]) => ({ name, p50: l.p50_ms, p99: l.p99_ms }));
  const at = view.stages.indexOf("kept");
  const mean = (b) => (b.stages && b.stages[at][0] ? b.stages[at][1] / b.stages[at][0] / 10 : null);
  const note = rows.length ? "Half of all, and all but one in a hundred, took at most so long since its start." : "It reports no latencies.";
  const figure = panel("How long it takes", note, rows.length ? (width) => latencies(rows, { width, label: `${note} ${rows.map((row) => `${row.name}: ${milliseconds(row.p50)}, ${milliseconds(row.p99)}`).join("; ")}.`, write: milliseconds }) : null);
  if (view.buckets.some((b) => mean(b) !== null)) {
    figure.more = (width) => lineOverTime(view, { width, height: 96, label: `Mean time of a kept answer over time, at most ${milliseconds(most(view.buckets, mean))}.`, value: mean, write: (v) => `${short(v)} ms`, say: (b) => `kept answers took ${milliseconds(mean(b))} on average` });
  }
  return figure;
}

function doubt(model, figures) {
  const { judge } = figures;
  const shares = (judge && judge.doubt) || [];
  const all = shares.reduce((total, one) => total + one, 0);
  // Under a budget or a target the device says where the threshold is by now; a fixed one is set.
  const least = judge && judge.mode !== "fixed" ? judge.score_min : figures.score_min;
  const marks = typeof least === "number" ? [{ at: 1 - least, words: `asks from ${(1 - least).toFixed(2)}` }] : [];
  const beyond = marks.length ? shares.reduce((total, one, index) => total + one * Math.max(0, Math.min(1, (index + 1) - marks[0].at * shares.length)), 0) / Math.max(1, all) : 0;
  const note = !all ? "The device does not report how its doubt is spread." : marks.length
    ? `Of its latest answers ${percent(Math.round(beyond * 1000), 1000)} lie beyond the threshold (a score of ${least.toFixed(2)}).`
    : judge.mode === "target" ? "Of its latest answers. Without a certificate all of them are deferred, or checked." : "Of its latest answers. No threshold of the score is in force.";
  return panel(`Doubt of ${model}`, note, all ? (width) => histogram(shares.map((one) => one / all), {
    width, label: `Histogram of the doubt of ${model}. ${note}`, marks, below: "doubt",
    say: (from, to, share) => `doubt ${from.toFixed(2)} to ${to.toFixed(2)}: ${percent(Math.round(share * 10000), 10000)} of answers`,
  }) : null);
}

function confidence(view, telemetry) {
  const ranges = Array.from({ length: 10 }, (_, range) => [0, 1].map((at) => sum(view.buckets, (b) => (b.agreement || [])[range] && b.agreement[range][at])));
  const asked = ranges.reduce((total, [one]) => total + one, 0);
  const agreed = ranges.reduce((total, [, one]) => total + one, 0);
  const off = ranges.reduce((total, [n, right], index) => total + Math.abs(right - (n * (index + 0.5)) / 10), 0);
  const errors = Object.entries((telemetry && telemetry.model_figures) || {}).filter(([, m]) => m.judge && typeof m.judge.calibration_error === "number");
  const own = errors.map(([name, m]) => ` By its own count ${name} is off by ${percent(Math.round(m.judge.calibration_error * 1000), 1000)} (${number(Math.round(m.judge.labels))} verdicts).`).join("");
  const note = asked ? `Of ${number(asked)} answers the cloud was asked about it confirmed ${percent(agreed, asked)}; the scores are off by ${percent(Math.round((1000 * off) / asked), 1000)} on average.${own} Mostly doubtful answers: sure ones are asked about as spot checks only.` : `The cloud has answered no case of it in this time.${own}`;
  return panel("Is it right as often as it says?", note, asked ? (width) => reliability(ranges, {
    width, label: `How often the cloud agreed, by the device's score. ${ranges.map(([n, right], index) => (n ? `${index * 10} to ${index * 10 + 10} %: ${percent(right, n)} of ${n}` : "")).filter(Boolean).join("; ")}.`,
    say: (score, n, right) => `score ${(score * 100 - 5).toFixed(0)} to ${(score * 100 + 5).toFixed(0)} %: the cloud agreed with ${number(right)} of ${number(n)}`,
  }) : null);
}

function learnedDoubt({ used, checks, auroc, plain_auroc }) {
  const ranks = typeof auroc === "number" && typeof plain_auroc === "number"
    ? `: of ${number(Math.round(checks))} spot checks it ranks a contradicted answer above another in ${percent(Math.round(auroc * 1000), 1000)} of pairs, the score in ${percent(Math.round(plain_auroc * 1000), 1000)}`
    : "";
  return used ? `A doubt learned from verdicts counts in place of the score${ranks}.` : `A doubt is learned from verdicts and does not count yet${ranks}.`;
}

function certificate(model, figures, settings) {
  const judge = figures.judge || {};
  const { target } = thresholdOf(model, settings);
  const contradicted = judge.contradicted === undefined ? 0 : judge.contradicted;
  const checks = (judge.checks || 0) + (judge.checks_lost || 0);
  const evidence = checks
    ? `${number(checks)} spot checks${judge.checks_lost ? `, of which ${number(judge.checks_lost)} were lost and count as contradicted` : ""}; ${Number.isInteger(contradicted) ? number(contradicted) : contradicted.toFixed(1)} contradicted.`
    : "No spot check was answered yet.";
  const parts = [];
  if (judge.mode !== "target") {
    parts.push(make("p", "", figures.judge ? `No certificate: the threshold of ${model} is ${judge.mode === "budget" ? "steered by a budget" : "a fixed number"}.` : "The device does not report how it judges."));
    if (figures.judge) parts.push(make("p", "soft", evidence));
  } else {
    const least = target && (target.of === "kept" ? "of the answers that are kept the cloud would contradict" : "of all answers are kept that the cloud would contradict");
    const promise = target ? `at most ${percent(target.risk, 1)} ${least}, with a confidence of ${percent(target.confidence ?? 0.95, 1)}` : "a target is set";
    const stands = typeof judge.score_min === "number";
    parts.push(make("p", "", make("span", `pill ${stands ? "good" : "warn"}`, stands ? "certified" : "not certified yet"), ` ${promise}.`));
    parts.push(make("p", "soft", evidence));
    if (stands) parts.push(make("p", "soft", `Answers with a score from ${judge.score_min.toFixed(3)} on may stay.`));
    if (typeof judge.checks_missing === "number") {
      parts.push(meter(checks / Math.max(1, checks + judge.checks_missing), judge.checks_missing ? `${number(judge.checks_missing)} more spot checks until half of the answers may stay, if none is contradicted` : "half of the answers may stay"));
    } else if (!stands) {
      parts.push(make("p", "soft", "How many more it needs the device does not say."));
    }
  }
  if (judge.learned) parts.push(make("p", "soft", learnedDoubt(judge.learned)));
  return { figure: make("figure", "panel", make("figcaption", "", make("h3", "", `Certificate of ${model}`)), ...parts) };
}

function shift(model, figures, view) {
  const judge = figures.judge || {};
  const raised = view.buckets.filter((b) => b.shifted).length;
  const near = judge.shift_suspicion || 0;
  const now = judge.shift ? `Alarm: its input looks unlike what it was checked on (${words(judge.shift)}).` : "No alarm: its input looks like what it was checked on.";
  const before = raised ? ` It was raised in ${number(raised)} parts of this time.` : "";
  const figure = { figure: make("figure", "panel", make("figcaption", "", make("h3", "", `Shift of the input of ${model}`), make("p", judge.shift ? "wrong" : "soft", figures.judge ? now + before : "The device does not report it."))) };
  if (figures.judge) figure.figure.append(meter(judge.shift ? 1 : near, judge.shift ? "alarm" : `${percent(Math.round(near * 100), 100)} of the way to an alarm`, judge.shift ? "alarm" : ""));
  if (view.buckets.some((b) => b.suspicion_max)) {
    figure.draw = (width) => lineOverTime(view, { width, height: 96, label: "How near the alarm was over time.", value: (b) => (b.reports ? (b.suspicion_max || 0) / 1000 : null), least: 1, write: (v) => percent(v, 1), mark: (b) => b.shifted, say: (b) => `${percent((b.suspicion_max || 0) / 1000, 1)} of the way${b.shifted ? ", alarm" : ""}` });
  }
  return figure;
}

// The same numbers for those who read them, or have them read.
function table(view) {
  const heads = ["from", "answered", "kept", "deferred", "corrected", "queue, at most", "over the link", "link"];
  const head = make("tr", "", ...heads.map((text) => { const th = make("th", "", text); th.scope = "col"; return th; }));
  const row = (b) => make("tr", "", ...[
    new Date(b.at_ms).toLocaleString("en-GB", { day: "numeric", month: "short", hour: "2-digit", minute: "2-digit" }),
    ...["answered", "kept", "deferred", "corrected", "queue_max"].map((name) => number(b[name] || 0)), bytesShort(b.link_bytes || 0),
    view.states.filter((_, index) => (b.link_s || [])[index]).map(words).join(", ") + (b.why ? `: ${b.why}` : ""),
  ].map((cell) => make("td", "", cell)));
  const box = make("div", "scroll", make("table", "", make("thead", "", head), make("tbody", "", ...[...view.buckets].reverse().map(row))));
  box.tabIndex = 0;
  box.setAttribute("role", "region");
  box.setAttribute("aria-label", "the numbers as a table");
  return make("details", "numbers", make("summary", "", "The numbers as a table"), box);
}

export function makeTrend(root, here) {
  let chosen = SPANS[new URLSearchParams(location.search).get("span")] || "day";
  let view = null;
  let page = null;
  let drawn = [];
  let askedAt = 0;
  const tabs = make("div", "tabs");
  tabs.setAttribute("role", "group");
  tabs.setAttribute("aria-label", "how far back");
  const charts = make("div", "charts");
  const foot = make("div", "");
  const hybrid = make("figure", "panel saved");
  const saved = makeSaved(hybrid, here);
  root.replaceChildren(tabs, charts, hybrid, foot);
  for (const name of Object.values(SPANS)) {
    const button = make("button", "", `Last ${name}`);
    button.type = "button";
    button.addEventListener("click", () => choose(name));
    button.dataset.span = name;
    tabs.append(button);
  }

  function choose(name) {
    chosen = name;
    const told = new URLSearchParams(location.search);
    told.set("span", name);
    history.replaceState(null, "", `?${told}`);
    mark();
    load();
  }

  function mark() {
    for (const button of tabs.children) button.setAttribute("aria-pressed", String(button.dataset.span === chosen));
  }

  // Charts are as wide as their place, so that their words are read on a phone, too.
  function fit() {
    for (const { figure, place, draw: first, more } of drawn) {
      const style = getComputedStyle(figure);
      const width = Math.floor(figure.clientWidth - parseFloat(style.paddingLeft) - parseFloat(style.paddingRight));
      if (width < 40) continue;
      place.replaceChildren(...[first, more].filter(Boolean).map((one) => one(width)));
    }
  }

  function draw() {
    if (!view || !page) return;
    const telemetry = page.device.telemetry;
    const settings = page.reported ? page.reported.settings : null;
    const models = Object.entries((telemetry && telemetry.model_figures) || {});
    const panels = [
      answers(view), deferral(view, telemetry, settings), queue(view, telemetry), link(view),
      ...models.map(([name, figures]) => doubt(name, figures)), confidence(view, telemetry), took(view, telemetry),
      ...models.flatMap(([name, figures]) => [certificate(name, figures, settings), shift(name, figures, view)]),
      heat(view, telemetry),
    ];
    drawn = panels.map((one) => {
      const place = make("div", "place");
      one.figure.append(...[one.legend, place, one.after].filter(Boolean));
      return { ...one, place };
    });
    const open = foot.querySelector("details");
    const numbers = table(view);
    numbers.open = Boolean(open && open.open);
    charts.replaceChildren(...panels.map((one) => one.figure));
    foot.replaceChildren(numbers);
    fit();
  }

  async function load() {
    askedAt = Date.now();
    const wanted = chosen;
    try {
      const response = await fetch(`${here}/trend?span=${wanted}`);
      const said = await response.json();
      if (!response.ok || wanted !== chosen) return;
      view = said;
      draw();
      saved.take(wanted);
    } catch { /* The live mark shows that the server is gone. */ }
  }

  setInterval(() => { if (!document.hidden && Date.now() - askedAt >= AGAIN_MS[chosen]) load(); }, 1000);
  new ResizeObserver(fit).observe(charts);
  mark();
  load();
  return { take(told) { page = told; draw(); } };
}

// The device's latest cases, with the last picture that came of it.
export async function drawLatest(root, device) {
  try {
    const response = await fetch(`/api/cases?device=${encodeURIComponent(device)}&limit=${CASES_SHOWN}`);
    const cases = await response.json();
    if (!response.ok) return;
    root.replaceChildren(...(cases.length ? cases.map((one) => caseCard(one, null)) : [make("p", "empty", "The cloud has seen no case of it yet.")]));
  } catch { /* The live mark shows that the server is gone. */ }
}
