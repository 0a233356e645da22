// Headings of the zoo's table sort it: once upwards, once more downwards.
document.querySelectorAll("#zoo th[data-sort]").forEach((heading) => {
  const kind = heading.dataset.sort;
  if (!kind) return;
  const column = heading.cellIndex;
  const key = (row) => {
    const cell = row.cells[column];
    return kind === "number" ? Number(cell.dataset.key) : cell.textContent;
  };
  const compare = (a, b) => (kind === "number" ? key(a) - key(b) : key(a).localeCompare(key(b)));
  const button = document.createElement("button");
  button.append(...heading.childNodes);
  heading.append(button);
  button.addEventListener("click", () => {
    // numbers: the largest first, as one looks for the best
    const first = kind === "number" ? "descending" : "ascending";
    const other = kind === "number" ? "ascending" : "descending";
    const order = heading.getAttribute("aria-sort") === first ? other : first;
    heading.parentElement.querySelectorAll("[aria-sort]").forEach((each) => each.removeAttribute("aria-sort"));
    heading.setAttribute("aria-sort", order);
    const body = heading.closest("table").tBodies[0];
    const sign = order === "ascending" ? 1 : -1;
    body.append(...[...body.rows].sort((a, b) => sign * compare(a, b)));
  });
});
