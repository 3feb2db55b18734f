// Which cases are looked for: as fields of the form, in the address, and as the server is asked.
const FIELDS = ["order", "agrees", "device", "task", "label", "authority", "since", "until", "waiting"];
const FIRST = { order: "disagreement" };

export function fromAddress() {
  const given = new URLSearchParams(location.search);
  const sought = { ...FIRST };
  for (const field of FIELDS) if (given.get(field)) sought[field] = given.get(field);
  return sought;
}

export function toAddress(sought) {
  const told = new URLSearchParams();
  for (const field of FIELDS) if (sought[field] && sought[field] !== FIRST[field]) told.set(field, sought[field]);
  return told.size ? `?${told}` : "";
}

// As the server takes it: times by its clock.
export function toQuery(sought) {
  const query = new URLSearchParams();
  for (const [field, value] of Object.entries(sought)) {
    if (field !== "since" && field !== "until") query.set(field, value);
    else if (!Number.isNaN(Date.parse(value))) query.set(`${field}_ms`, Date.parse(value));
  }
  return query;
}

// Asks for cases; `error` says why there are none.
export async function ask(sought, place, limit) {
  const query = toQuery(sought);
  query.set("limit", limit);
  for (const [name, id] of Object.entries(place)) query.set(name, id);
  try {
    const response = await fetch(`/api/cases?${query}`);
    const text = await response.text();
    try {
      const said = JSON.parse(text);
      return response.ok ? { cases: said, next: response.headers.get("Hedge-Next") } : { error: said.error };
    } catch {
      return { error: text || `the server answered ${response.status}` };
    }
  } catch {
    return { error: "the server cannot be reached" };
  }
}

const LOOKS_MAX = 20; // Each looks through thousands.

// The nearest case after or before one.
export async function beside(sought, place) {
  const [[name, from]] = Object.entries(place);
  let id = from;
  for (let look = 0; look < LOOKS_MAX; look += 1) {
    const { cases, next, error } = await ask(sought, { [name]: id }, 1);
    if (error) return null;
    if (cases.length) return cases[0].id;
    if (!next) return null;
    id = next;
  }
  return null;
}
