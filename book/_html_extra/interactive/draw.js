"use strict";

/* The page "Draw a digit". `normalised` does to a drawing what was done to the digits of MNIST; the network and its
   relevance are the program in the page's data. */
(() => {
  const root = document.getElementById("draw");
  const { make, number, paint, grey, largestOf, sumOf } = explorer;

  const SIZE = 280; // of the drawing area
  const PEN = 22;
  const PIXELS = 28;
  const BOX = 20;
  const UNEVENNESS = 0.03; // of the ink: where neighbours are exactly equal, rounding would choose the maximum of a pool

  /** The ink of a drawing, SIZE x SIZE, scaled to a box of 20 x 20 with its centre of mass in the middle of 28 x 28. */
  function normalised(ink) {
    let [left, right, top, bottom, mass, atX, atY] = [SIZE, -1, SIZE, -1, 0, 0, 0];
    ink.forEach((value, i) => {
      if (value === 0) return;
      const [x, y] = [i % SIZE, Math.floor(i / SIZE)];
      [left, right] = [Math.min(left, x), Math.max(right, x)];
      [top, bottom] = [Math.min(top, y), Math.max(bottom, y)];
      mass += value;
      atX += value * (x + 0.5);
      atY += value * (y + 0.5);
    });
    const image = new Float32Array(PIXELS * PIXELS);
    if (mass === 0) return image;
    const scale = BOX / Math.max(right - left + 1, bottom - top + 1);
    const [x0, y0] = [PIXELS / 2 - (scale * atX) / mass, PIXELS / 2 - (scale * atY) / mass];

    // Every pixel of the drawing is a small square; its ink goes to the pixels of the image that the square overlaps.
    const shares = (start) => {
      const found = [];
      for (let i = Math.floor(start); i < start + scale; i++) {
        const overlap = Math.min(start + scale, i + 1) - Math.max(start, i);
        if (i >= 0 && i < PIXELS && overlap > 0) found.push([i, overlap]);
      }
      return found;
    };
    for (let y = top; y <= bottom; y++) {
      const rows = shares(y0 + scale * y);
      for (let x = left; x <= right; x++) {
        const value = ink[y * SIZE + x];
        if (value === 0) continue;
        for (const [column, width] of shares(x0 + scale * x)) {
          for (const [row, height] of rows) image[row * PIXELS + column] += value * width * height;
        }
      }
    }
    return image.map((value, i) => Math.min(value, 1) * (1 - UNEVENNESS * scattered(i)));
  }

  /** Numbers between 0 and 1 without order: the fractions of the multiples of the golden ratio. */
  function scattered(i) {
    return (i * 0.6180339887498949) % 1;
  }

  const { data, imageOf, part, choice, parameter, showParameters, addSamples, say, startWhenNear, ...page } =
    explorer.attach(root);
  const pad = part("pad");
  const context = pad.getContext("2d", { willReadFrequently: true });
  const scores = [];
  let image = new Float32Array(PIXELS * PIXELS);
  let program = null; // once it is there
  let holdsSample = false; // which a stroke replaces
  let explained = 0; // the class with the largest score, as the program last said

  function inkOfPad() {
    const { data: rgba } = context.getImageData(0, 0, SIZE, SIZE);
    const ink = new Float32Array(SIZE * SIZE);
    for (let i = 0; i < ink.length; i++) ink[i] = rgba[4 * i] / 255;
    return ink;
  }

  function clearPad() {
    context.fillStyle = "black";
    context.fillRect(0, 0, SIZE, SIZE);
  }

  function takeSample(digit) {
    image = imageOf(digit);
    paint(part("input"), image, grey);
    clearPad();
    context.imageSmoothingEnabled = true;
    context.drawImage(part("input"), 0, 0, SIZE, SIZE);
    holdsSample = true;
    explain(performance.now());
  }

  /** Explains what is drawn and chosen. */
  const run = explorer.onlyLatest(async (asked) => {
    const rule = Number(choice("rule"));
    const inputs = { epsilon: parameter("epsilon"), gamma: parameter("gamma") };
    const given = image;
    const { target, largest, outputs } = await explorer.explainClass(
      program,
      { image: given, ...inputs },
      choice("class"),
      explained,
    );
    const { logits, relevance } = outputs;
    explained = largest;
    const map = relevance.slice(rule * PIXELS ** 2, (rule + 1) * PIXELS ** 2);
    const { name } = data.rules[rule];
    show(given, logits, map, target, name);
    const arrays = { image: Array.from(given), logits: Array.from(logits), relevance: Array.from(map) };
    const detail = { ...inputs, ...arrays, rule: name, class: target, milliseconds: performance.now() - asked };
    root.dispatchEvent(new CustomEvent("explained", { detail }));
  });

  function explain(asked) {
    showParameters();
    if (program !== null) run(asked);
  }

  function show(given, logits, map, target, rule) {
    const limit = largestOf(map);
    paint(part("input"), given, grey);
    paint(part("map"), map, page.relevanceColours(limit));
    logits.forEach((logit, digit) => scores[digit].show(logit, digit === target));
    part("scale").textContent = `full colour: \u00b1${limit.toPrecision(2)}`;
    const sum = sumOf(map);
    say(
      given.some((value) => value > 0)
        ? `The network sees a ${explained}, with a score of ${number(logits[explained])}. Under ${rule} the relevance for ` +
            `the ${target} sums to ${number(sum)}; its score is ${number(logits[target])}.`
        : "Nothing is drawn. The scores are those of a black image.",
    );
  }

  function build() {
    addSamples(takeSample);
    for (let digit = 0; digit < 10; digit++) {
      const row = explorer.row(make("input", { type: "radio", name: "class", value: digit }), digit);
      scores.push(row);
      part("scores").append(row.label);
    }
  }

  function listen() {
    let last = null;
    const place = (event) => {
      const { left, top, width, height } = pad.getBoundingClientRect();
      return [((event.clientX - left) * SIZE) / width, ((event.clientY - top) * SIZE) / height];
    };
    const stroke = (event) => {
      if (last === null) return;
      const asked = performance.now();
      const next = place(event);
      context.beginPath();
      context.moveTo(...last);
      context.lineTo(...next);
      context.stroke();
      last = next;
      image = normalised(inkOfPad());
      explain(asked);
    };
    pad.addEventListener("pointerdown", (event) => {
      pad.setPointerCapture(event.pointerId);
      if (holdsSample) clearPad();
      holdsSample = false;
      Object.assign(context, { strokeStyle: "white", lineWidth: PEN, lineCap: "round" });
      last = place(event);
      stroke(event);
    });
    pad.addEventListener("pointermove", stroke);
    for (const end of ["pointerup", "pointercancel"]) pad.addEventListener(end, () => (last = null));
    part("clear").addEventListener("click", () => {
      clearPad();
      image = new Float32Array(PIXELS * PIXELS);
      explain(performance.now());
    });
    root.addEventListener("input", () => explain(performance.now()));
    page.whenModeChanges(() => explain(performance.now()));
    root.addEventListener("submit", (event) => event.preventDefault());
  }

  build();
  listen();
  root.hidden = false;
  takeSample(data.sample);
  startWhenNear((started) => {
    program = started;
    explain(performance.now());
  });
})();
