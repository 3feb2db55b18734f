// What asking the cloud about doubtful answers only has saved. Its assumptions can be changed, and stand in the address.
import { bytes, make, number } from "/parts.js";

const FIELDS = [
  { name: "call_price", label: "money for a cloud call", step: "any" },
  { name: "gb_price", label: "money for a GB over the link", step: "any" },
  { name: "sample_bytes", label: "bytes of a sample", step: 1 },
  { name: "cloud_ms", label: "ms until the cloud answers", step: 1 },
];

const KNOWN = { given: "as set here", measured: "as measured", assumed: "assumed: set your own" };
const time = (ms) => (ms === null ? "–" : ms < 10 ? `${ms.toFixed(1)} ms` : ms < 10000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(0)} s`);
const money = (amount) => amount.toLocaleString("en", { minimumFractionDigits: 2, maximumFractionDigits: amount < 1 ? 4 : 2 });

const ROWS = [
  ["cloud calls", (way) => number(way.calls)],
  ["over the link", (way) => bytes(way.bytes)],
  ["money", (way) => money(way.money)],
  ["until an answer", (way) => time(way.first_ms)],
  ["until the last word", (way) => time(way.last_ms)],
  ["known to stay wrong", (way) => number(way.wrong)],
  ["wait for the link", (way) => number(way.waiting)],
];

export function makeSaved(root, here, title = "What hybrid saved", whose = "It has") {
  const inputs = new Map();
  const words = make("p", "");
  words.setAttribute("aria-live", "polite");
  const table = make("div", "scroll");
  const form = make("div", "assumed");
  let span = "day";
  for (const { name, label, step } of FIELDS) {
    const input = make("input");
    input.type = "number";
    input.min = 0;
    input.step = step;
    input.value = new URLSearchParams(location.search).get(name) || "";
    const known = make("small", "");
    input.addEventListener("change", () => { keep(); load(); });
    inputs.set(name, { input, known });
    form.append(make("label", "", make("span", "", label), input, known));
  }
  root.replaceChildren(make("figcaption", "", title ? make("h3", "", title) : null, words), table, form);

  const given = () => [...inputs].filter(([, { input }]) => input.value !== "").map(([name, { input }]) => [name, input.value]);

  function keep() {
    const told = new URLSearchParams(location.search);
    FIELDS.forEach(({ name }) => told.delete(name));
    given().forEach(([name, value]) => told.set(name, value));
    history.replaceState(null, "", told.size ? `?${told}` : location.pathname);
  }

  function draw({ saved, assumed, known }) {
    const { everything, hybrid, nothing, answered } = saved;
    const less = everything.bytes - hybrid.bytes;
    words.className = answered ? "" : "soft";
    words.textContent = answered
      ? `Against sending all ${number(answered)} samples: ${number(everything.calls - hybrid.calls)} cloud calls and ${less >= 0 ? `${bytes(less)} not sent` : `${bytes(-less)} more sent, for its samples are small`}, ${money(everything.money - hybrid.money)} not spent.`
      : `${whose} answered nothing in this time.`;
    const head = ["", "everything to the cloud", "hybrid, as it was", "nothing to the cloud"].map((text) => { const th = make("th", "", text); th.scope = "col"; return th; });
    const rows = ROWS.map(([label, of]) => {
      const th = make("th", "", label);
      th.scope = "row";
      return make("tr", "", th, ...[everything, hybrid, nothing].map((way) => make("td", "", of(way))));
    });
    table.replaceChildren(...(answered ? [make("table", "", make("thead", "", make("tr", "", ...head)), make("tbody", "", ...rows))] : []));
    for (const [name, { input, known: hint }] of inputs) {
      input.placeholder = String(Number(assumed[name].toPrecision(4)));
      hint.textContent = KNOWN[known[name]];
      input.removeAttribute("aria-invalid");
    }
  }

  async function load() {
    const query = new URLSearchParams([["span", span], ...given()]);
    try {
      const response = await fetch(`${here}/saved?${query}`);
      const said = await response.json();
      if (response.ok) draw(said);
      else {
        words.className = "wrong";
        words.textContent = said.error;
        for (const [name, { input }] of inputs) if (said.error.startsWith(name)) input.setAttribute("aria-invalid", "true");
      }
    } catch { /* The live mark shows that the server is gone. */ }
  }

  return { take(chosen) { span = chosen; load(); } };
}
