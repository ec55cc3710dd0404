"use strict";
for (const chooser of document.querySelectorAll(".chooser select")) {
  const panels = chooser.closest(".pictures").querySelectorAll(".panel");
  const show = () => {
    chooser.closest(".pictures").classList.toggle("one", chooser.value !== "all");
    panels.forEach((panel) => {
      panel.hidden = chooser.value !== "all" && panel.dataset.seed !== chooser.value;
    });
  };
  chooser.closest(".chooser").hidden = false;
  chooser.addEventListener("change", show);
  show();
}
for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => {
    const head = button.closest("th");
    const body = head.closest("table").tBodies[0];
    const column = head.cellIndex;
    const sorted = head.getAttribute("aria-sort") ?? head.dataset.first ?? "ascending";
    const up = head.hasAttribute("aria-sort") ? sorted !== "ascending" : sorted === "ascending";
    for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const key = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent.trim();
    const compare = (a, b) => {
      const [x, y] = [key(a), key(b)];
      if (x === "" || y === "") return (x === "") - (y === "");
      const [p, q] = [Number(x), Number(y)];
      const order = Number.isNaN(p) || Number.isNaN(q) ? x.localeCompare(y) : p - q;
      return up ? order : -order;
    };
    body.append(...[...body.rows].sort(compare));
    body.classList.add("sorted");
  });
}
for (const button of document.querySelectorAll(".copy")) {
  button.hidden = false;
  button.addEventListener("click", () => {
    const text = button.parentNode.querySelector("code");
    const range = document.createRange();
    range.selectNodeContents(text);
    const selection = window.getSelection();
    selection.removeAllRanges();
    selection.addRange(range);
    const done = () => { button.textContent = "Copied"; };
    if (navigator.clipboard) navigator.clipboard.writeText(text.textContent).then(done, () => {});
    else if (document.execCommand("copy")) done();
  });
}
// The page counts what it shows, so that a test in a browser can tell.
window.addEventListener("load", () => {
  const tally = (all, good) => `${all.filter(good).length}/${all.length}`;
  const pictures = [...document.querySelectorAll("img.picture, svg.picture")];
  const plots = [...document.querySelectorAll("svg.plot")];
  const drawn = (p) => p.tagName === "IMG" ? p.naturalWidth > 0
    : [...p.querySelectorAll("polyline")].some((line) => line.points.numberOfItems > 0);
  const visible = (plot) => {
    const box = plot.getBBox();
    return box.width * box.height > 0 && plot.querySelectorAll("path").length > 3;
  };
  document.body.dataset.rendered =
    `pictures:${tally(pictures, drawn)} plots:${tally(plots, visible)}`;
  document.body.dataset.height = document.documentElement.scrollHeight;
});
