"use strict";
// Tables sort by the column whose button is pressed: numbers by value, dashes last, ties in the order they had.
function key(cell) {
  const text = cell.textContent.trim();
  if (text === "–") return { empty: true };
  const found = /^[+-]?[\d,]*\.?\d+(e[+-]?\d+)?/i.exec(text.replace("more than ", ""));
  return { text: text, number: found ? parseFloat(found[0].replaceAll(",", "")) : NaN };
}
function compare(a, b) {
  if (!Number.isNaN(a.number) && !Number.isNaN(b.number)) return a.number - b.number;
  return a.text.localeCompare(b.text, "en", { numeric: true });
}
function sort(button) {
  const head = button.closest("th"), table = head.closest("table"), body = table.tBodies[0];
  const down = head.getAttribute("aria-sort") === "ascending";
  for (const other of table.querySelectorAll("th")) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", down ? "descending" : "ascending");
  const rows = Array.from(body.rows, (row) => ({ row: row, key: key(row.cells[head.cellIndex]) }));
  rows.sort((a, b) => {
    if (a.key.empty || b.key.empty) return (a.key.empty ? 1 : 0) - (b.key.empty ? 1 : 0);
    return down ? compare(b.key, a.key) : compare(a.key, b.key);
  });
  body.append(...rows.map((one) => one.row));
}
for (const button of document.querySelectorAll("th button")) button.addEventListener("click", () => sort(button));
// What is folded on the screen is printed.
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((one) => (one.open = true)));
