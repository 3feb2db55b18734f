// Boxes on a picture that a person draws, moves, resizes and deletes, by pointer or keyboard.
import { make } from "/parts.js";

const STEP = 0.01; // Of the picture, by one key.
const SMALLEST = 0.005;
const BOXES_MAX = 100;

const share = (value, most = 1) => Math.min(most, Math.max(0, value));

// `changed(selected)` is called after every change; `selected` is the box that keys act on, or null.
export function makeBoxes(frame, changed) {
  let boxes = [];
  let selected = null;
  const layer = make("div", "drawn");
  frame.append(layer);

  const place = (box) => { for (const edge of ["left", "top", "width", "height"]) box.element.style[edge] = `${box.place[edge] * 100}%`; };

  function name(box) {
    box.element.querySelector("span").textContent = box.label || "?";
    box.element.setAttribute("aria-label", `box ${box.label || "without a label"}`);
    box.element.classList.toggle("nameless", !box.label);
  }

  function select(box) {
    selected = box;
    for (const one of boxes) one.element.setAttribute("aria-pressed", String(one === box));
    changed(selected);
  }

  function add(label, at) {
    const element = make("button", "drawn-box", make("span"), make("i", "corner"));
    element.type = "button";
    const box = { label, place: { ...at }, element };
    element.addEventListener("focus", () => select(box));
    boxes.push(box);
    layer.append(element);
    place(box);
    name(box);
    return box;
  }

  function put(box, at) {
    const width = Math.max(SMALLEST, share(at.width));
    const height = Math.max(SMALLEST, share(at.height));
    box.place = { left: share(at.left, 1 - width), top: share(at.top, 1 - height), width, height };
    place(box);
  }

  function remove(box) {
    boxes = boxes.filter((one) => one !== box);
    box.element.remove();
    const other = boxes[boxes.length - 1] || null;
    if (other) other.element.focus();
    select(other);
  }

  const where = (event) => {
    const { left, top, width, height } = layer.getBoundingClientRect();
    return [share((event.clientX - left) / width), share((event.clientY - top) / height)];
  };

  layer.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    event.preventDefault();
    const [x, y] = where(event);
    const element = event.target.closest(".drawn-box");
    let box = boxes.find((one) => one.element === element);
    const grows = !box || event.target.className === "corner";
    if (!box) {
      if (boxes.length >= BOXES_MAX) return;
      box = add("", { left: x, top: y, width: SMALLEST, height: SMALLEST });
    }
    box.element.focus();
    const before = { ...box.place };
    layer.setPointerCapture(event.pointerId);
    const follow = (moved) => {
      const [toX, toY] = where(moved);
      if (!grows) put(box, { ...before, left: before.left + toX - x, top: before.top + toY - y });
      else if (element) put(box, { ...before, width: Math.max(SMALLEST, toX - before.left), height: Math.max(SMALLEST, toY - before.top) });
      else put(box, { left: Math.min(x, toX), top: Math.min(y, toY), width: Math.abs(toX - x), height: Math.abs(toY - y) });
    };
    const end = () => {
      layer.removeEventListener("pointermove", follow);
      // A click beside all boxes is none.
      if (!element && box.place.width < 2 * SMALLEST && box.place.height < 2 * SMALLEST) remove(box);
      changed(selected);
    };
    layer.addEventListener("pointermove", follow);
    layer.addEventListener("pointerup", end, { once: true });
    layer.addEventListener("pointercancel", end, { once: true });
  });

  return {
    // What is shown before anybody draws.
    show(found) {
      layer.replaceChildren();
      boxes = [];
      selected = null;
      for (const { label, place: at } of found) add(label, at);
      changed(null);
    },
    said: () => boxes.map(({ label, place: at }) => ({ label, score: 1, place: at })),
    selected: () => selected,
    nameless: () => boxes.find((box) => !box.label) || null,
    focus: (box) => box.element.focus(),
    label(label) {
      if (!selected) return;
      selected.label = label;
      name(selected);
      changed(selected);
    },
    create() {
      if (boxes.length < BOXES_MAX) add("", { left: 0.35, top: 0.35, width: 0.3, height: 0.3 }).element.focus();
    },
    remove() { if (selected) remove(selected); },
    // `true`: the key was for the selected box.
    key(event) {
      const by = { ArrowLeft: [-STEP, 0], ArrowRight: [STEP, 0], ArrowUp: [0, -STEP], ArrowDown: [0, STEP] }[event.key];
      if (!selected || document.activeElement !== selected.element || !by) return false;
      const { left, top, width, height } = selected.place;
      put(selected, event.shiftKey ? { left, top, width: Math.min(1 - left, width + by[0]), height: Math.min(1 - top, height + by[1]) } : { left: left + by[0], top: top + by[1], width, height });
      return true;
    },
  };
}
