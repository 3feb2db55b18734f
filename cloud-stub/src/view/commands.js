// Gives a device commands and shows what it says to them.
import { age, make } from "/parts.js";

const RESULTS_MAX = 20;

// What each does, and what it takes. `sure`: it is asked for twice.
const QUESTIONS = [
  { command: "ping", label: "Ping", title: "answers at once" },
  { command: "status", label: "Figures", title: "its figures now" },
  { command: "queue_stats", label: "Queue", title: "what waits on its disk" },
  { command: "dead_letters", label: "Dead letters", title: "cases the cloud could not answer" },
];
const EFFECTS = [
  { command: "drain", label: "Send now", title: "send what waits, without the waits of earlier failures" },
  { command: "requeue", label: "Retry dead letters", title: "give all dead letters another chance" },
  { command: "reload", label: "Reload its file", title: "read the local configuration file again" },
  { command: "restart", label: "Restart", title: "stop in good order and begin anew", sure: true },
];

export function makeCommands(root, give) {
  let page = null;
  const buttons = [];
  const results = make("ol", "results");
  results.setAttribute("aria-live", "polite");

  function button({ command, label, title, sure }, args) {
    const element = make("button", "", label);
    element.type = "button";
    element.title = title || "";
    let asked = null;
    element.addEventListener("click", () => {
      if (sure && !asked) {
        element.textContent = `${label}: sure?`;
        asked = setTimeout(() => { asked = null; element.textContent = label; }, 4000);
        return;
      }
      clearTimeout(asked);
      asked = null;
      element.textContent = label;
      run(command, args ? args() : null, element);
    });
    buttons.push(element);
    return element;
  }

  async function run(command, args, element) {
    if (page && page.look_only) return;
    const said = make("li", "", make("p", "", make("code", "", command), args ? make("span", "soft", ` ${Object.values(args).join(", ")}`) : null, " ", make("span", "pill quiet", "waiting")));
    results.prepend(said);
    while (results.children.length > RESULTS_MAX) results.lastElementChild.remove();
    element.disabled = true;
    const report = await give({ command, args });
    element.disabled = Boolean(page && page.look_only);
    said.replaceWith(result(command, args, report));
  }

  function result(command, args, report) {
    const outcome = report.error ? "not sent" : report.outcome.replaceAll("_", " ");
    const line = make("p", "", make("code", "", command), args ? make("span", "soft", ` ${Object.values(args).join(", ")}`) : null, " ",
      make("span", `pill ${outcome === "done" ? "good" : "bad"}`, outcome), " ", age(Date.now(), "", " ago"));
    const why = report.error || report.reason;
    const item = make("li", "", line, why ? make("p", "wrong", why) : null);
    if (report.result !== undefined) {
      const shown = make("pre", "", JSON.stringify(report.result, null, 2));
      shown.tabIndex = 0;
      item.append(make("details", "", make("summary", "", "result"), shown));
      item.querySelector("details").open = true;
      results.querySelectorAll("details").forEach((older) => { older.open = false; });
    }
    return item;
  }

  const select = (id, ...words) => { const element = make("select", "", ...words.map((word) => { const one = make("option", "", word); one.value = word; return one; })); element.id = id; return element; };
  const count = (id, value, most) => { const element = make("input"); Object.assign(element, { id, type: "number", min: 1, max: most, value }); return element; };
  const labelled = (text, input) => { const label = make("label", "", text); label.htmlFor = input.id; return make("span", "pair", label, input); };

  const source = make("select");
  source.id = "command-source";
  const ofSource = () => (source.value ? { source: source.value } : null);
  const last = count("command-last", 10, 100);
  const level = select("command-level", "debug", "info", "warn", "error");
  const minutes = count("command-minutes", 10, 1440);
  const snapshot = button({ command: "snapshot", label: "Snapshot", title: "answer a sample of this source now" }, ofSource);
  root.append(
    make("div", "set", make("h3", "", "Ask"), make("div", "row", ...QUESTIONS.map((one) => button(one)))),
    make("div", "row", labelled("Last", last), button({ command: "explain", label: "Explain decisions", title: "its last decisions, newest first" }, () => ({ last: Number(last.value) }))),
    make("div", "set", make("h3", "", "Samples"), make("div", "row", labelled("Source", source),
      button({ command: "pause", label: "Pause", title: "take no samples" }, ofSource),
      button({ command: "resume", label: "Resume", title: "take samples again" }, ofSource), snapshot)),
    make("div", "set", make("h3", "", "Do"), make("div", "row", ...EFFECTS.map((one) => button(one)))),
    make("div", "row", labelled("Log", level), labelled("for min", minutes), button({ command: "log_level", label: "Log so", title: "log more, or less, for a time" }, () => ({ level: level.value, for_s: 60 * Number(minutes.value) }))),
    results,
  );

  return {
    run,
    take(now) {
      page = now;
      const known = now.reported && now.reported.settings.source ? Object.keys(now.reported.settings.source) : [];
      const names = ["", ...known];
      if (JSON.stringify(names) !== source.dataset.names) {
        source.dataset.names = JSON.stringify(names);
        const before = source.value;
        source.replaceChildren(...names.map((name) => { const one = make("option", "", name || "all"); one.value = name; return one; }));
        source.value = names.includes(before) ? before : "";
      }
      buttons.forEach((element) => { element.disabled = Boolean(now.look_only); });
    },
  };
}
