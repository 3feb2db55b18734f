// The life of a model's bundle on a device: what answers, what is wanted and how far that is, and how two of them compare.
import { bytes, make, number } from "/parts.js";
import { meter } from "/charts.js";

const STEPS = ["waiting", "fetching", "candidate", "current"];
const WORDS = { waiting: "waits", fetching: "is being fetched", candidate: "looks on", current: "answers", failed: "failed" };

function steps(wanted) {
  const at = STEPS.indexOf(wanted.state);
  const shown = wanted.shadow || wanted.state === "candidate" ? STEPS : STEPS.filter((step) => step !== "candidate");
  const list = shown.map((step) => {
    const kind = step === wanted.state ? (step === "current" ? "over" : "now") : STEPS.indexOf(step) < at ? "over" : "";
    const item = make("li", kind, WORDS[step]);
    if (kind === "now") item.setAttribute("aria-current", "step");
    return item;
  });
  if (at < 0) list.push(make("li", "broken", WORDS[wanted.state] || wanted.state));
  return make("ol", "stages", ...list);
}

export function compared(rival, current) {
  const [newer, older] = rival.role === "candidate" ? [rival.version, current] : [current, rival.version];
  const seen = `${number(rival.compared || 0)} samples seen by both, ${number(rival.differed || 0)} answered differently`;
  const speak = rival.newer || rival.older ? `; the cloud spoke ${number(Math.round(rival.newer || 0))} times for version ${newer}, ${number(Math.round(rival.older || 0))} times for ${older || "the other"}` : "";
  const slower = rival.slower ? `; version ${newer} takes ${rival.slower.toFixed(1)} times as long` : "";
  const finding = { better: ["good", "better"], worse: ["bad", "worse"], alike: ["quiet", "alike"] }[rival.finding];
  return make("p", "", rival.role === "candidate" ? `Version ${newer} looks on: ` : `Version ${newer} is watched beside ${older}: `,
    `${seen}${speak}${slower}. `, finding ? make("span", `pill ${finding[0]}`, finding[1]) : make("span", "soft", "No finding yet."));
}

function one(model, figures, device, settings) {
  const { wanted, rival } = figures;
  const bundle = wanted ? wanted.name : null;
  const loaded = device.models.find((m) => m.name === bundle) || (device.models.length === 1 ? device.models[0] : null);
  const asked = settings && settings.model && settings.model[model] ? settings.model[model].wanted : null;
  const parts = [make("h3", "", model)];
  if (loaded) parts.push(make("p", "soft", `${loaded.name} ${loaded.version} answers${figures.local ? "; it was put there by hand, and nobody's signature was asked for" : ""}.`));
  if (wanted) {
    parts.push(make("p", "", `Wanted: ${wanted.name} ${wanted.version}`), steps({ ...wanted, shadow: asked && asked.shadow }));
    if (wanted.state === "fetching" && wanted.bytes) parts.push(meter((wanted.came || 0) / wanted.bytes, `${bytes(wanted.came || 0)} of ${bytes(wanted.bytes)} have come`));
    if (wanted.reason) parts.push(make("p", wanted.state === "failed" ? "wrong" : "soft", wanted.reason));
  }
  if (rival) parts.push(compared(rival, loaded ? loaded.version : ""));
  return make("div", "panel", ...parts);
}

// Nothing is drawn of a model whose bundle is not wanted from afar, not compared, and signed.
export function drawBundles(section, root, device, settings) {
  const models = Object.entries((device.telemetry && device.telemetry.model_figures) || {});
  const told = models.filter(([, figures]) => figures.wanted || figures.rival);
  section.hidden = !told.length;
  root.replaceChildren(...told.map(([model, figures]) => one(model, figures, device, settings)));
}
