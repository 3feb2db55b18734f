// What both pages draw with. Everything from devices is written as text, never as markup.
export const at = (id) => document.getElementById(id);

export function make(tag, className, ...content) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  element.append(...content.filter((part) => part !== null && part !== undefined));
  return element;
}

export const number = (n) => (n >= 100000 ? `${(n / 1000).toFixed(0)}k` : n.toLocaleString("en"));
export const percent = (part, whole) => (whole ? `${((100 * part) / whole).toFixed(part === whole || part === 0 ? 0 : 1)} %` : "–");

export function bytes(n) {
  const units = ["B", "KB", "MB", "GB", "TB"];
  let unit = 0;
  while (n >= 1000 && unit < units.length - 1) { n /= 1000; unit += 1; }
  return `${n >= 100 || unit === 0 ? n.toFixed(0) : n.toFixed(1)} ${units[unit]}`;
}

export function span(seconds) {
  if (seconds < 60) return `${Math.floor(seconds)} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min`;
  if (seconds < 172800) return `${Math.floor(seconds / 3600)} h`;
  return `${Math.floor(seconds / 86400)} days`;
}
let clockOffsetMs = 0;

// The server's clock is what all its times are by.
export function setClock(nowMs) {
  clockOffsetMs = Date.now() - nowMs;
}

export const serverNow = () => Date.now() - clockOffsetMs;

// A time that keeps itself up to date: see `tick`.
export function age(ms, before, after) {
  const element = make("time");
  element.dataset.ms = ms;
  element.dataset.before = before;
  element.dataset.after = after;
  element.dateTime = new Date(ms).toISOString();
  element.title = new Date(ms).toLocaleString();
  writeAge(element);
  return element;
}

function writeAge(element) {
  const seconds = Math.max(0, (Date.now() - clockOffsetMs - Number(element.dataset.ms)) / 1000);
  const { before, after } = element.dataset;
  element.textContent = seconds < 2 && after === " ago" ? `${before}now` : `${before}${span(seconds)}${after}`;
}

export function figure(value, label, note) {
  return make("div", "figure", make("b", "", value), make("span", "", label), make("small", "", note || ""));
}

export const kindOf = (state) => ({ online: "good", degraded: "warn", offline: "bad" }[state] || "quiet");

// What is wrong with a device; on a card only the beginning.
export function faultList(d, most) {
  const faults = Object.entries(d.faults);
  if (!faults.length) return null;
  const lines = faults.slice(0, most).map(([part, sentence]) => {
    const line = make("li", "", make("b", "", part.replaceAll("_", " ")), `: ${sentence}`);
    line.title = sentence;
    return line;
  });
  if (faults.length > lines.length) lines.push(make("li", "", `and ${faults.length - lines.length} more`));
  return make("ul", "faults", ...lines);
}

function until(ms) {
  const seconds = (ms - (Date.now() - clockOffsetMs)) / 1000;
  return seconds > 0 ? `; it connects again in ${span(seconds)}` : "; it should connect about now";
}

// `brief` leaves out how old its figures are, where that is said beside it.
export function deviceLine(d, brief = false) {
  if (d.state === "offline") return make("p", "say", age(d.status_ms, "offline for ", "; nothing is known of it since"));
  if (d.state === "resting") return make("p", "say", age(d.status_ms, "its radio has rested for ", ""), until(d.back_ms));
  if (d.state === "unknown" && d.connection === null) return make("p", "say", "has sent cases, but no status");
  if (d.state === "unknown") return make("p", "say", d.last_seen_ms ? age(d.last_seen_ms, "unknown for ", ": not heard since, and no word that it went") : "not heard yet by this cloud; it was online once");
  if (!d.telemetry) return make("p", "say", "no figures from it yet");
  return make("p", "say", d.link_reason || "link is fine", brief ? null : age(d.telemetry_ms, " (", " ago)"));
}

export function drawNotice(f) {
  const notice = at("notice");
  let text = "";
  if (f.link === "broken") text = `No connection to the broker (${f.link_reason}). What you see is as old as that.`;
  if (f.link === "connecting") text = "Connecting to the broker… What you see may be old.";
  notice.textContent = text;
  notice.hidden = !text;
}

const QUIET_MAX_MS = 25000; // The server says something every 10 s.
let lastWordMs = 0;

function setLive(state, text) {
  at("live").className = `pill ${state}`;
  at("live").textContent = text;
}

function tick() {
  document.querySelectorAll("time[data-ms]").forEach(writeAge);
  if (lastWordMs && Date.now() - lastWordMs > QUIET_MAX_MS) {
    setLive("bad", `not live: nothing heard for ${span((Date.now() - lastWordMs) / 1000)}`);
  }
}

// Listens to /events for as long as the page is open; `draw` has a function for each kind of event.
export function listen(draw) {
  let events = null;
  const open = () => {
    if (events && events.readyState !== EventSource.CLOSED) return;
    const source = new EventSource("/events");
    events = source;
    for (const [name, drawOne] of Object.entries(draw)) {
      source.addEventListener(name, (event) => {
        lastWordMs = Date.now();
        setLive("good", "live");
        drawOne(JSON.parse(event.data));
      });
    }
    source.addEventListener("error", () => {
      setLive("bad", "not live: reconnecting…");
      document.dispatchEvent(new Event("unheard"));
      // A refused request ends the source for good; ask again later.
      if (source.readyState === EventSource.CLOSED) setTimeout(open, 5000);
    });
  };
  open();
  // A browser keeps pages that were left, for the way back. Their streams would take up the six connections that it has for one
  // server, and the sixth page would wait for half a minute.
  addEventListener("pagehide", () => events.close());
  addEventListener("pageshow", ({ persisted }) => { if (persisted) open(); });
}

setInterval(tick, 1000);
