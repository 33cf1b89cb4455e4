// One trace at a time, filtered by outcome, turned with the arrow keys; #trace-3 opens the third. Without this script
// every trace is shown, one below the other.
"use strict";
const traces = Array.from(document.querySelectorAll(".trace"));
const filters = Array.from(document.querySelectorAll("[data-filter]"));
let outcome = "", current = 0;

const chosen = () => traces.filter((trace) => !outcome || trace.dataset.outcome === outcome);

function show(index) {
  const list = chosen();
  current = Math.max(0, Math.min(index, list.length - 1));
  traces.forEach((trace) => { trace.hidden = trace !== list[current]; });
  document.getElementById("position").textContent = `${current + 1} / ${list.length}`;
  document.getElementById("previous").disabled = current === 0;
  document.getElementById("next").disabled = current === list.length - 1;
}

function filter(wanted) {
  outcome = wanted;
  filters.forEach((box) => box.setAttribute("aria-pressed", String(box.dataset.filter === wanted)));
  show(0);
}

function open() {
  const index = traces.findIndex((trace) => "#" + trace.id === location.hash);
  if (index >= 0) { filter(""); show(index); }
}

if (traces.length) {
  document.querySelector(".controls").hidden = false;
  filters.forEach((box) => box.addEventListener("click", () => filter(box.dataset.filter)));
  document.getElementById("previous").addEventListener("click", () => show(current - 1));
  document.getElementById("next").addEventListener("click", () => show(current + 1));
  document.addEventListener("keydown", (event) => {
    if (event.altKey || event.ctrlKey || event.metaKey || event.shiftKey) return;
    if (event.key === "ArrowLeft") show(current - 1);
    if (event.key === "ArrowRight") show(current + 1);
  });
  addEventListener("hashchange", open);
  show(0);
  open();
}
