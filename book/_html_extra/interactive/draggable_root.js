"use strict";

/* One neuron of two inputs in chapter 5. Its root point is dragged along the line on which the neuron falls silent, and
   the sides of the box are dragged apart. The shares are the formulas of the chapter: w_i d_i for a rule, and
   w_i (x_i - root_i) for a root. Nothing moves on its own. */
(() => {
  const form = document.getElementById("draggable-root");
  const pair = (name) => form.dataset[name].split(" ").map(Number);
  const part = (name) => form.querySelector(`[data-part="${name}"]`);
  const parts = (name) => [...form.querySelectorAll(`[data-part="${name}"]`)];
  const handle = (name) => form.querySelector(`[data-handle="${name}"]`);
  const set = (element, values) => Object.entries(values).forEach(([key, value]) => element.setAttribute(key, value));

  const [x, w, low, high] = ["x", "w", "low", "high"].map(pair);
  const first = { low: [...low], high: [...high] };
  const [least, scale, unit, zero] = ["least", "scale", "unit", "zero"].map((name) => Number(form.dataset[name]));
  const plane = part("box").ownerSVGElement;
  const side = plane.viewBox.baseVal.width;
  const most = least + side / scale;
  const STEP = 0.1; // of an arrow key
  const z = x[0] * w[0] + x[1] * w[1];
  let root = null;

  const SIDES = { left: [low, 0], right: [high, 0], lower: [low, 1], upper: [high, 1] };
  const rangeOf = ([values, i]) => (values === low ? [least, x[i]] : [x[i], most]);

  /** To what each input's share is proportional: -w_i d_i, where d leads from x to the root. */
  const NUMERATORS = {
    "w²": (i) => w[i] ** 2,
    "z⁺": (i) => x[i] * Math.max(w[i], 0),
    "z-box": (i) => x[i] * w[i] - low[i] * Math.max(w[i], 0) - high[i] * Math.min(w[i], 0),
    "LRP-0": (i) => x[i] * w[i],
  };

  /** The end of the line on which a rule looks for its root. */
  const ENDS = {
    "w²": () => root,
    "z⁺": () => x.map((value, i) => (w[i] > 0 ? 0 : value)),
    "z-box": () => x.map((_, i) => (w[i] > 0 ? low[i] : high[i])),
    "LRP-0": () => [0, 0],
  };

  function rootOf(rule) {
    const q = [0, 1].map(NUMERATORS[rule]);
    const sum = q[0] + q[1];
    return sum > 0 ? x.map((value, i) => value - ((q[i] / sum) * z) / w[i]) : null;
  }

  const place = ([a, b]) => [scale * (a - least), side - scale * (b - least)];
  const shown = (value) => {
    const text = (Math.round(100 * value) / 100 + 0).toFixed(2).replace(/\.?0+$/, "");
    return text.replace("-", "−");
  };
  const both = (values) => `(${values.map(shown).join(", ")})`;
  const between = (value, [from, to]) => Math.min(Math.max(value, from), to);

  function line(element, from, to) {
    const [[x1, y1], [x2, y2]] = [place(from), place(to)];
    set(element, { x1, y1, x2, y2 });
  }

  function drawBox() {
    const [[left, bottom], [right, top]] = [place(low), place(high)];
    set(part("box"), { x: left, y: top, width: right - left, height: bottom - top });
    const middle = [(left + right) / 2, (top + bottom) / 2];
    const at = { left: [left, middle[1]], right: [right, middle[1]], lower: [middle[0], bottom], upper: [middle[0], top] };
    for (const [name, [values, i]] of Object.entries(SIDES)) {
      set(handle(name).firstElementChild, { x: at[name][0] - 9, y: at[name][1] - 9 });
      set(handle(name), { "aria-valuenow": values[i].toFixed(2), "aria-valuetext": shown(values[i]) });
    }
  }

  function drawRoot(rule) {
    line(part("way"), x, (ENDS[rule] ?? (() => root))());
    line(part("step"), x, root);
    const [cx, cy] = place(root);
    set(handle("root").firstElementChild, { cx, cy });
    set(handle("root"), { "aria-valuenow": root[0].toFixed(2), "aria-valuetext": both(root) });
  }

  function drawShares(relevance) {
    relevance.forEach((share, i) => {
      const bar = parts("bar")[i];
      set(bar, { x: zero + Math.min(0, unit * share), width: unit * Math.abs(share) });
      bar.classList.toggle("is-against", share < 0);
      parts("share")[i].textContent = shown(share);
    });
  }

  function show() {
    const rule = form.elements.rule.value;
    const own = rule === "your own";
    if (!own) root = rootOf(rule) ?? root;
    const hasRoot = own || rootOf(rule) !== null;
    const relevance = x.map((value, i) => w[i] * (value - root[i]));
    drawBox();
    drawRoot(rule);
    drawShares(relevance);
    const inBox = root.every((value, i) => value >= low[i] - 1e-9 && value <= high[i] + 1e-9);
    const where = `${root.some((value) => value < -1e-9) ? "It has a negative input" : "No input is negative"}, and it ` +
      `lies ${inBox ? "inside" : "outside"} of the box.`;
    part("status").textContent = hasRoot
      ? `Root at ${both(root)}, relevance ${both(relevance)}. ${where}`
      : "The corner of this box is x itself, so there is no way to a root.";
    const detail = { rule, root, relevance, low: [...low], high: [...high], inBox, hasRoot };
    form.dispatchEvent(new CustomEvent("explained", { detail, bubbles: true }));
  }

  function choose(rule) {
    form.elements.rule.value = rule;
    show();
  }

  /** Takes the root along its line to where its first input has this value. */
  function moveRoot(value) {
    const slope = -w[0] / w[1]; // of the line
    const reach = [least / slope, most / slope].sort((a, b) => a - b);
    const within = between(value, [Math.max(least, reach[0]), Math.min(most, reach[1])]);
    root = [within, slope * within];
    choose("your own");
  }

  function moveSide(name, value) {
    const [values, i] = SIDES[name];
    values[i] = between(value, rangeOf(SIDES[name]));
    choose("z-box");
  }

  function dragTo(name, event) {
    const { left, top, width } = plane.getBoundingClientRect();
    const point = [event.clientX - left, event.clientY - top].map((value) => (value * side) / width);
    const [a, b] = [point[0] / scale + least, (side - point[1]) / scale + least];
    if (name === "root") moveRoot((w[1] * a - w[0] * b) * w[1] / (w[0] ** 2 + w[1] ** 2)); // the nearest point of the line
    else moveSide(name, SIDES[name][1] === 0 ? a : b);
  }

  const DIRECTIONS = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1 };

  for (const element of form.querySelectorAll("[data-handle]")) {
    const name = element.dataset.handle;
    element.addEventListener("pointerdown", (event) => {
      element.setPointerCapture(event.pointerId);
      element.focus({ preventScroll: true });
      event.preventDefault();
    });
    element.addEventListener("pointermove", (event) => {
      if (element.hasPointerCapture(event.pointerId)) dragTo(name, event);
    });
    element.addEventListener("keydown", (event) => {
      const direction = DIRECTIONS[event.key];
      if (direction === undefined) return;
      event.preventDefault();
      const now = name === "root" ? root[0] : SIDES[name][0][SIDES[name][1]];
      (name === "root" ? moveRoot : (value) => moveSide(name, value))(now + direction * STEP);
    });
  }
  form.addEventListener("change", show);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => {
    [first.low, first.high].forEach((values, k) => values.forEach((value, i) => ([low, high][k][i] = value)));
    setTimeout(show);
  });
  show();
})();
