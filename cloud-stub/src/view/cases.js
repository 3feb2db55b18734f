// Lists cases that are looked for. What is looked for stands in the address, so that it can be sent to a colleague.
import { at, drawNotice, listen, make, setClock } from "/parts.js";
import { caseCard, drawList } from "/case-parts.js";
import { ask, fromAddress, toAddress, toQuery } from "/sought.js";

const CASES_SHOWN = 24;
const form = at("sought");
let shown = [];
let next = null;
let tasks = null;
let turn = 0; // A list that comes after the next was asked for is thrown away.

function draw() {
  const sought = fromAddress();
  drawList(at("cases"), shown, "id", (c) => {
    const card = caseCard(c, tasks);
    card.querySelectorAll("a[href^='/cases/']").forEach((link) => { link.href += toAddress(sought); });
    return card;
  }, () => toAddress(sought));
  at("more").hidden = !next;
  for (const format of ["jsonl", "coco", "csv"]) at(`as-${format}`).href = `/api/export?format=${format}&${toQuery(sought)}`;
}

async function load(after) {
  const mine = (turn += 1);
  const sought = fromAddress();
  const answer = await ask(sought, after ? { after } : {}, CASES_SHOWN);
  if (mine !== turn) return;
  at("said").classList.toggle("wrong", Boolean(answer.error));
  at("said").textContent = answer.error || "";
  if (answer.error) return;
  shown = after ? [...shown, ...answer.cases] : answer.cases;
  next = answer.next;
  if (!answer.cases.length && next) at("said").textContent = "None among those that were looked through; there are older ones.";
  draw();
}

function fill() {
  for (const [name, value] of Object.entries(fromAddress())) {
    const field = form.elements[name];
    if (field.type === "checkbox") field.checked = value === "true";
    else field.value = value;
  }
}

function changed() {
  const sought = Object.fromEntries([...new FormData(form)].map(([name, value]) => [name, value.trim()]).filter(([, value]) => value));
  history.replaceState(null, "", `/cases${toAddress(sought)}`);
  load();
}

form.addEventListener("change", changed);
form.addEventListener("submit", (event) => { event.preventDefault(); changed(); });
at("more").addEventListener("click", () => load(next));

document.addEventListener("keydown", (event) => {
  if (event.target.closest("input, select, textarea") || event.ctrlKey || event.metaKey || event.altKey) return;
  const by = { j: 1, k: -1 }[event.key];
  if (!by) return;
  const cards = [...at("cases").querySelectorAll(".case .who")];
  const now = cards.indexOf(document.activeElement);
  const then = cards[now < 0 ? 0 : Math.max(0, Math.min(cards.length - 1, now + by))];
  if (then) { then.focus(); then.closest(".case").scrollIntoView({ block: "nearest" }); }
  event.preventDefault();
});

function heard(changed) {
  const fresh = new Map(changed.map((c) => [c.id, c]));
  if (!shown.some((c) => fresh.has(c.id))) return;
  shown = shown.map((c) => fresh.get(c.id) || c);
  draw();
}

fill();
load();
listen({
  figures: (f) => {
    setClock(f.now_ms);
    drawNotice(f);
    at("instance").textContent = `${f.instance} on ${f.broker}`;
    if (tasks) return;
    tasks = f.tasks;
    at("tasks").replaceChildren(...tasks.map((task) => { const option = make("option"); option.value = task; return option; }));
  },
  changed_cases: heard,
});
