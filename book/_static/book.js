// A page that was opened from the disk may not read other pages: the search then lists titles without excerpts.
if (location.protocol === "file:") {
  DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;
}

// Paper is white, whatever the screen shows.
let screenMode;
addEventListener("beforeprint", () => {
  screenMode = document.documentElement.dataset.theme;
  document.documentElement.dataset.theme = "light";
});
addEventListener("afterprint", () => {
  document.documentElement.dataset.theme = screenMode;
});

// Unfolded code may be wider than its box. The theme makes such boxes reachable by keyboard whenever the window changes.
addEventListener("click", (event) => {
  if (event.target.closest(".admonition-title, summary")) {
    dispatchEvent(new Event("resize"));
  }
});

// The reference was one long page. An anchor of it leads to the page of its function now, and to a method there.
addEventListener("DOMContentLoaded", () => {
  const anchor = decodeURIComponent(location.hash.slice(1));
  const parts = anchor.split(".");
  const name = parts.map((_, i) => parts.slice(0, parts.length - i).join("."))
    .find((name) => document.getElementById(name)?.closest(".names td"));
  if (name) {
    const cell = document.getElementById(name).closest("td");
    const current = cell.querySelector("span[id]").id;
    location.replace(`${cell.querySelector("a").href}#${current}${anchor.slice(name.length)}`);
  }
});
