"use strict";

/* What the interactive parts of the book have in common: elements, colours, sliders, and one run at a time. */
const explorer = (() => {
  const make = (tag, properties = {}, ...children) => {
    const element = Object.assign(document.createElement(tag), properties);
    element.append(...children);
    return element;
  };

  const number = (value) => value.toFixed(Math.abs(value) < 10 ? 2 : 1).replace("-", "\u2212");

  /** Paints values, one for each pixel of a canvas, with a function from a value to red, green and blue; NaN stays free. */
  function paint(canvas, values, colour) {
    const context = canvas.getContext("2d");
    const picture = context.createImageData(canvas.width, canvas.height);
    values.forEach((value, i) => {
      if (!Number.isNaN(value)) picture.data.set([...colour(value), 255], 4 * i);
    });
    context.putImageData(picture, 0, 0);
  }

  const grey = (value) => Array(3).fill(255 * value);

  /** The colours of relevance between -limit and limit, from a table of 256. */
  function diverging(colours, limit) {
    return (value) => {
      const shade = Math.round(127.5 * (1 + (limit > 0 ? value / limit : 0)));
      return colours.subarray(3 * shade, 3 * shade + 3);
    };
  }

  const largestOf = (values) => values.reduce((largest, value) => Math.max(largest, Math.abs(value)), 0);
  const sumOf = (values) => values.reduce((total, value) => total + value, 0);

  const FULL = 20; // what fills a bar; the scale is the same for all digits, rules and layers

  /** A row to choose from: an input, a name, a picture if there is one, a bar to both sides of zero, and a number. */
  function row(input, name, ...pictures) {
    const bar = make("span", { className: "explorer-bar" });
    const text = make("span", { className: "explorer-number" });
    const scale = make("span", { className: "explorer-scale" }, bar);
    const title = make("span", { className: "explorer-name", textContent: name });
    const label = make("label", {}, input, title, ...pictures, scale, text);
    const show = (value, isChosen) => {
      label.classList.toggle("is-explained", isChosen);
      const length = 50 * Math.min(Math.abs(value) / FULL, 1);
      bar.style.left = `${value < 0 ? 50 - length : 50}%`;
      bar.style.width = `${length}%`;
      text.textContent = number(value);
    };
    return { label, show };
  }

  /** The data and the parts of a form that has samples, a list of rules, two sliders and a sentence that is read out. */
  function attach(root) {
    const data = JSON.parse(document.getElementById(`${root.id}-data`).textContent);
    const palettes = Object.fromEntries(
      Object.entries(data.colours).map(([mode, colours]) => [mode, relevanceProgram.bytes(colours)]),
    );
    const samples = relevanceProgram.bytes(data.samples);
    const part = (name) => root.querySelector(`[data-part="${name}"]`);
    const choice = (name) => new FormData(root).get(name);
    const parameter = (name) => 10 ** Number(root.elements[name].value);

    data.rules.forEach(({ name }, i) => {
      part("rules").append(make("option", { value: i, textContent: name, defaultSelected: i === data.rule }));
    });

    function showParameters() {
      const rule = data.rules[Number(choice("rule"))];
      for (const name of ["epsilon", "gamma"]) {
        const value = parameter(name);
        root.elements[name].disabled = !rule[name];
        root.elements[name].setAttribute("aria-valuetext", value.toPrecision(2));
        part(name).textContent = rule[name] ? value.toPrecision(2) : "not in this rule";
      }
    }

    /** The pixels of a sample digit, from 0 to 1. */
    function imageOf(digit) {
      return Float32Array.from(samples.subarray(digit * 28 ** 2, (digit + 1) * 28 ** 2), (value) => value / 255);
    }

    function addSamples(take) {
      for (let digit = 0; digit < 10; digit++) {
        const sample = make("button", { type: "button", textContent: digit });
        sample.setAttribute("aria-label", `sample digit ${digit}`);
        sample.addEventListener("click", () => take(digit));
        part("samples").append(sample);
      }
    }

    /** The colours of relevance between -limit and limit, on the ground of the page. */
    const relevanceColours = (limit) => diverging(palettes[document.documentElement.dataset.theme] ?? palettes.light, limit);

    /** Does something whenever the page becomes dark or light. */
    const whenModeChanges = (then) =>
      new MutationObserver(then).observe(document.documentElement, { attributeFilter: ["data-theme"] });

    let waiting;
    /** Says a sentence when nothing has changed for a moment, so that it is read out once and not for every point. */
    function say(sentence) {
      clearTimeout(waiting);
      waiting = setTimeout(() => (part("result").textContent = sentence), 300);
    }

    /** Starts the data's program as soon as the form is nearly on the screen: the runtime is large. */
    function startWhenNear(then) {
      const start = async () => {
        try {
          then(await relevanceProgram.start(data.program));
        } catch (error) {
          say(`The program could not be started in this browser: ${error.message}.`);
        }
      };
      const observer = new IntersectionObserver(
        (entries) => {
          if (!entries.some((entry) => entry.isIntersecting)) return;
          observer.disconnect();
          start();
        },
        { rootMargin: "100%" },
      );
      observer.observe(root);
    }

    const shown = { part, showParameters, addSamples, say, relevanceColours, whenModeChanges };
    return { data, imageOf, choice, parameter, startWhenNear, ...shown };
  }

  /** Makes a function that does the work; what is asked for in the meantime is done once, afterwards. */
  function onlyLatest(work) {
    let isRunning = false;
    let staleSince = null; // when what is shown was first overtaken
    return async (asked) => {
      if (isRunning) {
        staleSince ??= asked;
        return;
      }
      isRunning = true;
      do {
        staleSince = null;
        await work(asked);
        asked = staleSince;
      } while (staleSince !== null);
      isRunning = false;
    };
  }

  /** The outputs of a program for a class, or, if "largest" is wanted, for the one with the largest score. */
  async function explainClass(program, { image, epsilon, gamma }, wanted, guess) {
    const run = (target) =>
      program({
        image: [image, [28, 28]],
        seed: [Array.from({ length: 10 }, (_, i) => Number(i === target)), [10]],
        epsilon: [[epsilon], []],
        gamma: [[gamma], []],
      });
    let target = wanted === "largest" ? guess : Number(wanted);
    let outputs = await run(target);
    const largest = outputs.logits.indexOf(Math.max(...outputs.logits));
    if (wanted === "largest" && target !== largest) {
      target = largest;
      outputs = await run(target);
    }
    return { target, largest, outputs };
  }

  return { make, number, paint, grey, largestOf, sumOf, row, attach, onlyLatest, explainClass };
})();
