"use strict";

/* The drawing on the front page: what it needs is large, and is loaded when the reader asks for it. */
(() => {
  const offer = document.getElementById("draw-offer");
  const button = offer.querySelector("button");

  async function start() {
    button.disabled = true;
    try {
      for (const name of ["draw-data.js", "explorer.js", "draw.js"]) await relevanceProgram.script(name);
      offer.hidden = true;
      document.querySelector("#draw [data-part=samples] button").focus({ preventScroll: true }); // as this one is gone
    } catch (error) {
      offer.textContent = `The drawing could not be started in this browser: ${error.message}.`;
    }
  }

  button.addEventListener("click", start);
  offer.hidden = false;
})();
