"use strict";

/* The page "Draw a digit". `normalised` does to a drawing what was done to the digits of MNIST; the network and its
   relevance are the program in the page's data. */
(() => {
  const root = document.getElementById("draw");
  const part = (name) => root.querySelector(`[data-part="${name}"]`);
  const make = (tag, properties = {}, ...children) => {
    const element = Object.assign(document.createElement(tag), properties);
    element.append(...children);
    return element;
  };

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

  /** Paints values, one for each pixel, with a function from a value to red, green and blue. */
  function paint(canvas, values, colour) {
    const context = canvas.getContext("2d");
    const picture = context.createImageData(PIXELS, PIXELS);
    values.forEach((value, i) => picture.data.set([...colour(value), 255], 4 * i));
    context.putImageData(picture, 0, 0);
  }

  const data = JSON.parse(document.getElementById("draw-data").textContent);
  const colours = relevanceProgram.bytes(data.colours);
  const samples = relevanceProgram.bytes(data.samples);
  const pad = part("pad");
  const context = pad.getContext("2d", { willReadFrequently: true });
  const scores = [];
  let image = new Float32Array(PIXELS * PIXELS);
  let run = null; // the program, once it is there
  let isRunning = false;
  let staleSince = null; // when what is shown was first overtaken
  let holdsSample = false; // which a stroke replaces
  let explained = 0; // the class with the largest score, as the program last said

  const choice = (name) => new FormData(root).get(name);
  const number = (value) => value.toFixed(Math.abs(value) < 10 ? 2 : 1).replace("-", "\u2212");
  const parameter = (name) => 10 ** Number(root.elements[name].value);

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
    image = Float32Array.from(samples.subarray(digit * PIXELS ** 2, (digit + 1) * PIXELS ** 2), (value) => value / 255);
    paint(part("input"), image, (value) => Array(3).fill(255 * value));
    clearPad();
    context.imageSmoothingEnabled = true;
    context.drawImage(part("input"), 0, 0, SIZE, SIZE);
    holdsSample = true;
    explain(performance.now());
  }

  /** Runs the program for what is drawn and chosen; while it runs, only the last request is kept. */
  async function explain(asked) {
    showParameters();
    if (run === null) return;
    if (isRunning) {
      staleSince ??= asked;
      return;
    }
    isRunning = true;
    do {
      staleSince = null;
      const rule = Number(choice("rule"));
      const wanted = choice("class");
      const inputs = { epsilon: parameter("epsilon"), gamma: parameter("gamma") };
      const given = image;
      const outputs = async (target) => {
        const seed = Array.from({ length: 10 }, (_, i) => Number(i === target));
        return run({
          image: [given, [PIXELS, PIXELS]],
          seed: [seed, [10]],
          epsilon: [[inputs.epsilon], []],
          gamma: [[inputs.gamma], []],
        });
      };
      let target = wanted === "largest" ? explained : Number(wanted);
      let { logits, relevance } = await outputs(target);
      const largest = logits.indexOf(Math.max(...logits));
      if (wanted === "largest" && target !== largest) {
        target = explained = largest;
        ({ relevance } = await outputs(target));
      }
      const map = relevance.slice(rule * PIXELS ** 2, (rule + 1) * PIXELS ** 2);
      const { name } = data.rules[rule];
      show(given, logits, map, target, name);
      const arrays = { image: Array.from(given), logits: Array.from(logits), relevance: Array.from(map) };
      const detail = { ...inputs, ...arrays, rule: name, class: target, milliseconds: performance.now() - asked };
      root.dispatchEvent(new CustomEvent("explained", { detail }));
      asked = staleSince;
    } while (staleSince !== null);
    isRunning = false;
  }

  function show(given, logits, map, target, rule) {
    const limit = Math.max(...map.map(Math.abs));
    paint(part("input"), given, (value) => Array(3).fill(255 * value));
    paint(part("map"), map, (value) => {
      const shade = Math.round(127.5 * (1 + (limit > 0 ? value / limit : 0)));
      return colours.subarray(3 * shade, 3 * shade + 3);
    });
    const widest = Math.max(...logits.map(Math.abs));
    logits.forEach((logit, digit) => {
      const [row, bar, text] = scores[digit];
      row.classList.toggle("is-explained", digit === target);
      bar.style.left = `${50 + (50 * Math.min(logit, 0)) / widest}%`;
      bar.style.width = `${(50 * Math.abs(logit)) / widest}%`;
      text.textContent = number(logit);
    });
    part("scale").textContent = `full colour: \u00b1${limit.toPrecision(2)}`;
    const largest = logits.indexOf(Math.max(...logits));
    const sum = map.reduce((total, value) => total + value, 0);
    say(
      given.some((value) => value > 0)
        ? `The network sees a ${largest}, with a score of ${number(logits[largest])}. Under ${rule} the relevance for ` +
            `the ${target} sums to ${number(sum)}; its score is ${number(logits[target])}.`
        : "Nothing is drawn. The scores are those of a black image.",
    );
  }

  let waiting;
  /** Says a sentence when nothing has changed for a moment, so that it is read out once and not for every point. */
  function say(sentence) {
    clearTimeout(waiting);
    waiting = setTimeout(() => (part("result").textContent = sentence), 300);
  }

  function showParameters() {
    const rule = data.rules[Number(choice("rule"))];
    for (const name of ["epsilon", "gamma"]) {
      const value = parameter(name);
      root.elements[name].disabled = !rule[name];
      root.elements[name].setAttribute("aria-valuetext", value.toPrecision(2));
      part(name).textContent = rule[name] ? value.toPrecision(2) : "not in this rule";
    }
  }

  function build() {
    data.rules.forEach(({ name }, i) => {
      part("rules").append(make("option", { value: i, textContent: name, defaultSelected: i === data.rule }));
    });
    for (let digit = 0; digit < 10; digit++) {
      const sample = make("button", { type: "button", textContent: digit });
      sample.setAttribute("aria-label", `sample digit ${digit}`);
      sample.addEventListener("click", () => takeSample(digit));
      part("samples").append(sample);
      const bar = make("span", { className: "explorer-bar" });
      const text = make("span", { className: "explorer-number" });
      const radio = make("input", { type: "radio", name: "class", value: digit });
      const scale = make("span", { className: "explorer-scale" }, bar);
      const row = make("label", {}, radio, make("span", { textContent: digit }), scale, text);
      scores.push([row, bar, text]);
      part("scores").append(row);
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
    root.addEventListener("submit", (event) => event.preventDefault());
  }

  build();
  listen();
  root.hidden = false;
  takeSample(data.sample);
  relevanceProgram.start(data.program).then(
    (program) => {
      run = program;
      explain(performance.now());
    },
    (error) => say(`The program could not be started in this browser: ${error.message}.`),
  );
})();
