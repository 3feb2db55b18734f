// Deletes the cases that are looked for, or the one that is shown: first how many, then, if that is meant, these.
import { fromAddress, toQuery } from "/sought.js";

const said = document.getElementById("deleted");

async function post(path, body) {
  const headers = { "Content-Type": "application/json", "Hedge-Operate": "yes" };
  const response = await fetch(path, { method: "POST", headers, body: JSON.stringify(body) });
  const answer = await response.json();
  if (!response.ok) throw new Error(answer.error);
  return answer;
}

// What is meant, as the server is asked: one case has a page of its own.
function meant() {
  const one = location.pathname.match(/^\/cases\/(.+)$/);
  if (one) return `/api/cases/${one[1]}/delete`;
  return `/api/delete?${toQuery(fromAddress())}`;
}

async function remove() {
  const found = await post(meant(), {});
  const what = found.cases === 1 ? "1 case" : `${found.cases} cases of ${found.devices} ${found.devices === 1 ? "device" : "devices"}`;
  if (!found.cases) { said.textContent = "There is none."; return; }
  if (!confirm(`Delete ${what} for good, here and on the devices?`)) return;
  said.textContent = "Deleting…";
  const done = await post(meant(), { cases: found.cases, until_ms: found.until_ms });
  const away = done.told.filter(({ outcome }) => outcome !== "done").map(({ device, outcome }) => `${device}: ${outcome.replaceAll("_", " ")}`);
  said.textContent = `${done.deleted} deleted.` + (away.length ? ` Not yet on ${away.join(", ")}.` : "");
}

document.getElementById("delete").addEventListener("click", () => {
  remove().catch((error) => { said.textContent = error.message; });
});
