// Draws charts as SVG, without a library. Each is an image with a sentence that says what it shows; what it says of a
// device is text, never markup.
import { make } from "/parts.js";

const SVG = "http://www.w3.org/2000/svg";

function shape(tag, attributes, ...content) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...content.filter((part) => part !== null && part !== undefined));
  return element;
}

const text = (x, y, words, more = {}) => shape("text", { x, y, ...more }, words);
const told = (words) => shape("title", {}, words);

// Room for the numbers at the left and the times below.
const LEFT = 44;
const RIGHT = 8;
const TOP = 8;
const BOTTOM = 20;

function frame(width, height, label) {
  return shape("svg", { class: "chart", role: "img", "aria-label": label, width, height, viewBox: `0 0 ${width} ${height}` });
}

// The nearest above that reads well.
export function roundUp(value) {
  if (!(value > 0)) return 1;
  const unit = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 2.5, 5, 10].map((times) => times * unit).find((limit) => limit >= value * 0.999);
}

function clock(ms, span_s) {
  const at = new Date(ms);
  if (span_s <= 2 * 86400) return at.toLocaleTimeString("en-GB", { hour: "2-digit", minute: "2-digit" });
  return at.toLocaleDateString("en-GB", { day: "numeric", month: "short" });
}

// The ground of everything over time: lines across, their numbers, and times below.
function timeGround(view, width, height, label, top, write) {
  const svg = frame(width, height, label);
  const [from, to] = [view.since_ms, view.now_ms];
  const x = (ms) => LEFT + ((ms - from) / (to - from)) * (width - LEFT - RIGHT);
  const y = (value) => TOP + (1 - Math.max(0, Math.min(1, value / top))) * (height - TOP - BOTTOM);
  for (const part of [0, 0.5, 1]) {
    svg.append(shape("line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: y(part * top), y2: y(part * top) }));
    svg.append(text(LEFT - 6, y(part * top) + 4, write(part * top), { class: "tick", "text-anchor": "end" }));
  }
  const ticks = width > 420 ? 4 : 2;
  for (let tick = 0; tick <= ticks; tick += 1) {
    const ms = from + ((to - from) * tick) / ticks;
    svg.append(text(x(ms), height - 5, clock(ms, (to - from) / 1000), { class: "tick", "text-anchor": ["start", "middle", "end"][tick === 0 ? 0 : tick === ticks ? 2 : 1] }));
  }
  return { svg, x, y };
}

const when = (view, bucket) => new Date(bucket.at_ms).toLocaleString("en-GB", { day: "numeric", month: "short", hour: "2-digit", minute: "2-digit" });

// A bar for each bucket; `parts` has functions of a bucket, from below, each with a class. `line` is a limit to compare with.
export function barsOverTime(view, { width, height = 150, label, parts, line, write, say }) {
  const sums = view.buckets.map((bucket) => parts.map((part) => part.value(bucket) || 0));
  const highest = Math.max(0, ...sums.map((sum) => sum.reduce((all, one) => all + one, 0)));
  const top = roundUp(Math.max(highest, line ? line.value : 0));
  const { svg, x, y } = timeGround(view, width, height, label, top, write);
  view.buckets.forEach((bucket, index) => {
    const [left, right] = [x(Math.max(bucket.at_ms, view.since_ms)), x(Math.min(bucket.at_ms + bucket.span_s * 1000, view.now_ms))];
    let below = 0;
    parts.forEach((part, at) => {
      const value = sums[index][at];
      if (!value) return;
      const above = below + value;
      const tall = Math.max(1, y(below) - y(above));
      svg.append(shape("rect", { class: part.class, x: left, y: y(below) - tall, width: Math.max(1, right - left - 1), height: tall }, told(`${when(view, bucket)}: ${say(bucket)}`)));
      below = above;
    });
  });
  if (line) {
    svg.append(shape("line", { class: "limit", x1: LEFT, x2: width - RIGHT, y1: y(line.value), y2: y(line.value) }));
    const above = y(line.value) > TOP + 14;
    svg.append(text(width - RIGHT - 2, y(line.value) + (above ? -4 : 13), line.words, { class: "limit-words", "text-anchor": "end" }));
  }
  return svg;
}

// A line through the buckets that have a value, broken where there is none; marks along the ground where something was so.
export function lineOverTime(view, { width, height = 150, label, value, write, least = 0, mark, say }) {
  const points = view.buckets.map((bucket) => ({ bucket, value: value(bucket) })).filter((point) => point.value !== null);
  const top = roundUp(Math.max(least, ...points.map((point) => point.value)));
  const { svg, x, y } = timeGround(view, width, height, label, top, write);
  const middle = (bucket) => x(Math.min(view.now_ms, Math.max(view.since_ms, bucket.at_ms + bucket.span_s * 500)));
  const runs = [];
  points.forEach((point, index) => {
    const before = points[index - 1];
    const joins = before && point.bucket.at_ms - before.bucket.at_ms <= 2.5 * Math.max(before.bucket.span_s, point.bucket.span_s) * 1000;
    if (joins) runs[runs.length - 1].push(point); else runs.push([point]);
  });
  for (const run of runs) {
    svg.append(shape("polyline", { class: "line", points: run.map((point) => `${middle(point.bucket)},${y(point.value)}`).join(" ") }));
    for (const point of run) {
      svg.append(shape("circle", { class: run.length > 1 && points.length > 40 ? "dot none" : "dot", cx: middle(point.bucket), cy: y(point.value), r: 2.5 }, told(`${when(view, point.bucket)}: ${say(point.bucket)}`)));
    }
  }
  for (const bucket of mark ? view.buckets.filter(mark) : []) {
    const wide = Math.max(3, x(bucket.at_ms + bucket.span_s * 1000) - x(bucket.at_ms));
    svg.append(shape("rect", { class: "alarm", x: Math.max(LEFT, x(bucket.at_ms)), y: height - BOTTOM - 5, width: wide, height: 5 }, told(`${when(view, bucket)}: ${say(bucket)}`)));
  }
  return svg;
}

// A column for each bucket, filled in proportion to the states it was in.
export function statesOverTime(view, { width, height = 62, label, say }) {
  const { svg, x } = timeGround(view, width, height, label, 1, () => "");
  svg.querySelectorAll(".grid").forEach((line) => line.remove());
  const tall = height - TOP - BOTTOM;
  svg.append(shape("rect", { class: "unheard", x: LEFT, y: TOP, width: width - LEFT - RIGHT, height: tall }));
  for (const bucket of view.buckets) {
    const seconds = bucket.link_s || [];
    const all = seconds.reduce((sum, one) => sum + one, 0);
    const [left, right] = [x(Math.max(bucket.at_ms, view.since_ms)), x(Math.min(bucket.at_ms + bucket.span_s * 1000, view.now_ms))];
    let from = TOP;
    seconds.forEach((one, state) => {
      if (!one) return;
      const part = (one / all) * tall;
      svg.append(shape("rect", { class: `state-${view.states[state]}`, x: left, y: from, width: Math.max(1, right - left + 0.4), height: part }, told(`${when(view, bucket)}: ${say(bucket)}`)));
      from += part;
    });
  }
  return svg;
}

// Shares of all in ranges of the same width from 0 to 1, and marks in it.
export function histogram(shares, { width, height = 150, label, marks, below, say }) {
  const svg = frame(width, height, label);
  const top = Math.max(...shares, 1e-9);
  const x = (at) => LEFT + at * (width - LEFT - RIGHT);
  const y = (share) => TOP + (1 - share / top) * (height - TOP - BOTTOM);
  for (const part of [0, 0.5, 1]) {
    svg.append(shape("line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: y(part * top), y2: y(part * top) }));
    svg.append(text(LEFT - 6, y(part * top) + 4, `${(100 * part * top).toFixed(top < 0.1 ? 1 : 0)} %`, { class: "tick", "text-anchor": "end" }));
  }
  shares.forEach((share, index) => {
    if (!share) return;
    const [from, to] = [index / shares.length, (index + 1) / shares.length];
    const asks = marks.length && from >= marks[0].at - 1e-6;
    const tall = Math.max(1, y(0) - y(share));
    svg.append(shape("rect", { class: asks ? "bar asks" : "bar", x: x(from) + 0.5, y: y(0) - tall, width: x(to) - x(from) - 1, height: tall }, told(say(from, to, share))));
  });
  for (const mark of marks) {
    svg.append(shape("line", { class: "limit", x1: x(mark.at), x2: x(mark.at), y1: TOP, y2: height - BOTTOM }));
    const right = mark.at > 0.6;
    svg.append(text(x(mark.at) + (right ? -5 : 5), TOP + 10, mark.words, { class: "limit-words", "text-anchor": right ? "end" : "start" }));
  }
  for (const [at, words, anchor] of [[0, "sure", "start"], [0.5, below, "middle"], [1, "nothing but doubt", "end"]]) {
    svg.append(text(x(at), height - 5, words, { class: "tick", "text-anchor": anchor }));
  }
  return svg;
}

// How often the cloud said the same, by how sure the device was; the diagonal is a score that is as good as it says.
export function reliability(ranges, { width, label, say }) {
  const size = Math.min(width, 300);
  const svg = frame(size, size * 0.8, label);
  const [wide, high] = [size - LEFT - RIGHT, size * 0.8 - TOP - BOTTOM];
  const x = (at) => LEFT + at * wide;
  const y = (at) => TOP + (1 - at) * high;
  for (const part of [0, 0.5, 1]) {
    svg.append(shape("line", { class: "grid", x1: LEFT, x2: size - RIGHT, y1: y(part), y2: y(part) }));
    svg.append(text(LEFT - 6, y(part) + 4, `${100 * part} %`, { class: "tick", "text-anchor": "end" }));
    svg.append(text(x(part), size * 0.8 - 5, `${100 * part} %`, { class: "tick", "text-anchor": ["start", "middle", "end"][part * 2] }));
  }
  svg.append(shape("line", { class: "diagonal", x1: x(0), y1: y(0), x2: x(1), y2: y(1) }));
  const most = Math.max(1, ...ranges.map(([asked]) => asked));
  const points = ranges.map(([asked, agreed], index) => ({ asked, agreed, at: (index + 0.5) / ranges.length })).filter(({ asked }) => asked);
  svg.append(shape("polyline", { class: "line", points: points.map(({ asked, agreed, at }) => `${x(at)},${y(agreed / asked)}`).join(" ") }));
  for (const { asked, agreed, at } of points) {
    svg.append(shape("circle", { class: "dot", cx: x(at), cy: y(agreed / asked), r: 3 + 5 * Math.sqrt(asked / most) }, told(say(at, asked, agreed))));
  }
  return svg;
}

// A share of a whole, as a bar with its words.
export function meter(share, words, kind = "") {
  const svg = shape("svg", { class: "meter", role: "img", "aria-label": words, viewBox: "0 0 100 6", preserveAspectRatio: "none" },
    shape("rect", { class: "track", width: 100, height: 6 }),
    shape("rect", { class: `bar ${kind}`, width: 100 * Math.max(0, Math.min(1, share)), height: 6 }));
  return make("div", "metered", make("span", "", words), svg);
}

// Half of all took at most so long, all but one in a hundred at most so long: on one scale for all rows.
export function latencies(rows, { width, label, write }) {
  const ROW = 24;
  const svg = frame(width, rows.length * ROW + 4, label);
  const [from, to] = [84, width - 118];
  const most = Math.max(...rows.map((row) => row.p99), 0.001);
  // Stages differ by thousands: the scale is one of magnitudes.
  const x = (ms) => from + (to - from) * Math.min(1, Math.log10(1 + 100 * ms) / Math.log10(1 + 100 * most));
  rows.forEach((row, index) => {
    const y = index * ROW + 4;
    svg.append(text(0, y + 13, row.name, { class: "row-name" }));
    svg.append(shape("rect", { class: "far", x: from, y: y + 2, width: Math.max(1, x(row.p99) - from), height: 14 }));
    svg.append(shape("rect", { class: "bar", x: from, y: y + 2, width: Math.max(1, x(row.p50) - from), height: 14 }));
    svg.append(text(width, y + 13, `${write(row.p50)} · ${write(row.p99)}`, { class: "tick", "text-anchor": "end" }));
  });
  return svg;
}

// The numbers of each column in a sample of rows: CSV with or without headings, a JSON list, or a JSON value a line.
function columns(text) {
  const cells = (row) => (Array.isArray(row) ? row : row && typeof row === "object" ? Object.values(row) : [row]);
  const lines = text.split("\n").filter((line) => line.trim());
  let rows;
  if (/^\s*[[{]/.test(text)) {
    try { rows = JSON.parse(text); } catch { rows = lines.map((line) => JSON.parse(line)); }
    if (!Array.isArray(rows)) return Object.values(rows).map((column) => [].concat(column));
    rows = rows.map(cells);
  } else {
    rows = lines.map((line) => line.split(/[,;\t]/)).filter((row, at) => at > 0 || row.every((cell) => cell.trim() === "" || !isNaN(cell)));
  }
  return (rows[0] || []).map((_, at) => rows.map((row) => (row[at] === "" || row[at] === null ? NaN : Number(row[at]))));
}

const LINES_MAX = 24; // More columns than these are no drawing any more.

// Each column as a line of its own scale. Nothing if the text holds no rows of numbers.
export function seriesChart(sample, label) {
  const width = 480, height = 200, svg = frame(width, height, label);
  let lines;
  try { lines = columns(sample); } catch { return null; }
  for (const line of lines.slice(0, LINES_MAX)) {
    const known = line.filter(Number.isFinite);
    if (!known.length) continue;
    const [low, high] = [known.reduce((a, b) => Math.min(a, b)), known.reduce((a, b) => Math.max(a, b))];
    const y = (value) => 10 + (height - 20) * (1 - (high > low ? (value - low) / (high - low) : 0.5));
    const points = line.map((value, at) => (Number.isFinite(value) ? `${((at + 0.5) * width) / line.length},${y(value)}` : "")).filter(Boolean);
    svg.append(points.length === 1 ? shape("circle", { class: "column", cx: points[0].split(",")[0], cy: points[0].split(",")[1], r: 3 }) : shape("polyline", { class: "column", points: points.join(" ") }));
  }
  return svg.childElementCount ? svg : null;
}
