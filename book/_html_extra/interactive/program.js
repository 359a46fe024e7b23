"use strict";

/* Runs a JAX program of this book, written as ONNX, in the page. Everything comes from scripts, because a page that is
   opened from a file may not read other files. */
const relevanceProgram = (() => {
  const folder = new URL(".", document.currentScript.src);
  let runtime;

  /** Loads a script of this folder. */
  const script = (name) =>
    new Promise((resolve, reject) => {
      const element = document.createElement("script");
      element.src = new URL(name, folder);
      element.onload = resolve;
      element.onerror = () => reject(new Error(`${name} could not be loaded`));
      document.head.append(element);
    });

  const bytes = (base64) => Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));

  async function startRuntime() {
    await Promise.all([script("ort.wasm-core.min.js"), script("ort-wasm-simd.js")]);
    const unzipped = new Blob([bytes(globalThis.ortWasmGzip)]).stream().pipeThrough(new DecompressionStream("gzip"));
    delete globalThis.ortWasmGzip;
    const wasm = new Blob([await new Response(unzipped).arrayBuffer()], { type: "application/wasm" });
    ort.env.wasm.numThreads = 1; // more need headers that a file does not have
    ort.env.wasm.wasmPaths = { "ort-wasm-simd.wasm": URL.createObjectURL(wasm) };
  }

  /** Makes a function from inputs {name: [values, shape]} to outputs {name: values}. */
  async function start(base64) {
    runtime ??= startRuntime();
    await runtime;
    const session = await ort.InferenceSession.create(bytes(base64), { executionProviders: ["wasm"] });
    return async (inputs) => {
      const tensors = Object.entries(inputs).map(([name, [values, shape]]) => {
        return [name, new ort.Tensor("float32", Float32Array.from(values), shape)];
      });
      const outputs = await session.run(Object.fromEntries(tensors));
      return Object.fromEntries(Object.entries(outputs).map(([name, tensor]) => [name, tensor.data]));
    };
  }

  return { start, bytes, script };
})();
