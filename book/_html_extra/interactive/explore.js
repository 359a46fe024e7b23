"use strict";

/* The part "Explore" of the chapter on LRP for CNNs: the relevance of all layers, and that of one of them large. The
   network and its relevance are the program in the page's data. */
(() => {
  const root = document.getElementById("explore");
  const { make, number, paint, grey, largestOf, sumOf } = explorer;
  const { data, imageOf, part, choice, parameter, showParameters, addSamples, say, startWhenNear, ...page } =
    explorer.attach(root);
  const classes = [];
  const rows = [];
  let digit = data.sample;
  let program = null; // once it is there
  let explained = 0; // the class with the largest score, as the program last said

  /** The relevance of a layer as one picture: its maps side by side in a square, with a pixel in between. */
  function tiled({ height, width, maps }, values) {
    const columns = Math.ceil(Math.sqrt(maps));
    const gap = width > 1 ? 1 : 0;
    const size = [columns * (width + gap) - gap, Math.ceil(maps / columns) * (height + gap) - gap];
    const picture = new Float32Array(size[0] * size[1]).fill(NaN);
    values.forEach((value, i) => {
      const [map, place] = [i % maps, Math.floor(i / maps)];
      const x = (map % columns) * (width + gap) + (place % width);
      const y = Math.floor(map / columns) * (height + gap) + Math.floor(place / width);
      picture[y * size[0] + x] = value;
    });
    return [size, picture];
  }

  const run = explorer.onlyLatest(async (asked) => {
    const inputs = { epsilon: parameter("epsilon"), gamma: parameter("gamma") };
    const [sample, rule] = [digit, Number(choice("rule"))];
    const { target, largest, outputs } = await explorer.explainClass(
      program,
      { image: imageOf(sample), ...inputs },
      choice("class"),
      explained,
    );
    explained = largest;
    const relevance = data.layers.map(({ name, height, width, maps }) => {
      const length = height * width * maps;
      return outputs[name].slice(rule * length, (rule + 1) * length);
    });
    const sums = relevance.map(sumOf);
    const shown = Number(choice("layer"));
    const { name } = data.rules[rule];
    show(outputs.logits, relevance, sums, shown, target, name);
    const layer = data.layers[shown].name;
    const arrays = { relevance: Array.from(relevance[shown]), sums };
    const detail = { ...inputs, ...arrays, digit: sample, layer, rule: name, class: target };
    detail.milliseconds = performance.now() - asked;
    root.dispatchEvent(new CustomEvent("explained", { detail }));
  });

  function explain(asked) {
    showParameters();
    paint(part("input"), imageOf(digit), grey);
    if (program !== null) run(asked);
  }

  /** Draws the relevance of a layer, with a scale of its own. */
  function draw(canvas, layer, relevance) {
    const [[width, height], picture] = tiled(layer, relevance);
    Object.assign(canvas, { width, height });
    paint(canvas, picture, page.relevanceColours(largestOf(relevance)));
  }

  function show(logits, relevance, sums, shown, target, rule) {
    const layer = data.layers[shown];
    const map = part("map");
    draw(map, layer, relevance[shown]);
    map.setAttribute("aria-label", `Relevance of ${layer.caption}, red for the class and blue against it`);
    part("shown").textContent = layer.caption;
    part("scale").textContent = `full colour: \u00b1${largestOf(relevance[shown]).toPrecision(2)}`;
    rows.forEach((row, i) => {
      draw(row.picture, data.layers[i], relevance[i]);
      row.show(sums[i], i === shown);
    });
    logits.forEach((logit, i) => (classes[i].textContent = `${i}, with a score of ${number(logit)}`));
    const percent = (100 * sums[shown]) / logits[target];
    say(
      `Under ${rule} the relevance for the ${target} begins with its score, ${number(logits[target])}. ` +
        `In ${layer.caption} it sums to ${number(sums[shown])}, ${number(percent)} % of the score.`,
    );
  }

  addSamples((sample) => {
    digit = sample;
    explain(performance.now());
  });
  data.layers.forEach(({ name }, i) => {
    const isLast = i === data.layers.length - 1;
    const picture = make("canvas", { className: "explorer-thumbnail", ariaHidden: true });
    const input = make("input", { type: "radio", name: "layer", value: i, defaultChecked: isLast });
    const row = explorer.row(input, name, picture);
    rows.push({ ...row, picture });
    part("layers").append(row.label);
  });
  for (let i = 0; i < 10; i++) classes.push(make("option", { value: i, textContent: i }));
  part("classes").append(make("option", { value: "largest", textContent: "the one with the largest score" }), ...classes);
  root.addEventListener("input", () => explain(performance.now()));
  page.whenModeChanges(() => explain(performance.now()));
  root.addEventListener("submit", (event) => event.preventDefault());
  root.hidden = false;
  explain(performance.now()); // the digit can be shown before the program is there
  startWhenNear((started) => {
    program = started;
    explain(performance.now());
  });
})();
