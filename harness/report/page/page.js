"use strict";
// Charts: what a mark stands for, as the drawing itself says it, beside the pointer.
(() => {
  const tip = document.body.appendChild(document.createElement("div"));
  tip.id = "tip";
  tip.hidden = true;
  document.addEventListener("pointermove", (event) => {
    const mark = event.target.closest?.("figure svg [aria-roledescription][aria-label]");
    tip.hidden = !mark || mark.getAttribute("aria-roledescription").includes("axis");
    if (tip.hidden) return;
    tip.textContent = mark.getAttribute("aria-label");
    tip.style.left = `${Math.min(event.clientX + 12, innerWidth - tip.offsetWidth - 4)}px`;
    tip.style.top = `${Math.min(event.clientY + 12, innerHeight - tip.offsetHeight - 4)}px`;
  });
})();
// Tables: sorted by a column, written as CSV, and a hint where a table is wider than the page.
(() => {
  const make = (parent, tag, properties) => Object.assign(parent.appendChild(document.createElement(tag)), properties);
  const rows = (table) => [...table.tBodies[0].rows];
  // A figure's cell holds its value, low and high end and unit.
  const parts = (cell) => cell.dataset.cell.split("|");

  function key(cell) {
    const text = "cell" in cell.dataset ? parts(cell)[0] : cell.textContent;
    return text === "" || Number.isNaN(Number(text)) ? text : Number(text);
  }

  // Numbers before texts, and what is missing last in both directions.
  function sort(table, head) {
    const up = head.getAttribute("aria-sort") !== "ascending", column = head.cellIndex, sign = up ? 1 : -1;
    for (const each of head.parentElement.cells) each.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const keyed = rows(table).map((row) => [key(row.cells[column]), row]);
    keyed.sort(([a], [b]) => {
      if (a === "" || b === "") return (a === "") - (b === "");
      if (typeof a !== typeof b) return typeof a === "number" ? -1 : 1;
      return sign * (typeof a === "number" ? a - b : a.localeCompare(b));
    });
    table.tBodies[0].append(...keyed.map(([, row]) => row));
  }

  function csv(table) {
    const shown = rows(table), count = shown[0].cells.length;
    const figures = [...Array(count).keys()].filter((i) => shown.some((row) => "cell" in row.cells[i].dataset));
    const names = [...Array(count).keys()].map((i) => table.tHead?.rows[0].cells[i].dataset.name ?? ["property", "value"][i]);
    const heads = names.flatMap((name, i) => figures.includes(i) ? [name, `${name} low`, `${name} high`, `${name} unit`] : [name]);
    const lines = shown.map((row) => [...row.cells].flatMap((cell, i) => {
      if (!figures.includes(i)) return [cell.textContent];
      return "cell" in cell.dataset ? parts(cell) : [cell.textContent, "", "", ""];
    }));
    // A text that a spreadsheet would run as a formula gets a leading '.
    const quoted = (text) => `"${(/^[=+\-@\t\n＝＋－＠]/.test(text) && Number.isNaN(Number(text)) ? `'${text}` : text).replaceAll('"', '""')}"`;
    return [heads, ...lines].map((line) => line.map(quoted).join(",")).join("\n") + "\n";
  }

  const watch = new ResizeObserver((seen) => {
    for (const { target } of seen) target.closest("details").classList.toggle("wide", target.scrollWidth > target.clientWidth);
  });
  for (const section of document.querySelectorAll("details[data-table]")) {
    const table = section.querySelector("table");
    watch.observe(section.querySelector(".scroll"));
    make(section.querySelector("summary"), "button", { type: "button", className: "csv", textContent: "CSV" }).addEventListener("click", (event) => {
      event.preventDefault();
      const url = URL.createObjectURL(new Blob([csv(table)], { type: "text/csv" }));
      Object.assign(document.createElement("a"), { href: url, download: `${section.dataset.table}.csv` }).click();
      setTimeout(() => URL.revokeObjectURL(url), 1000);
    });
    for (const head of rows(table).length > 2 ? table.tHead?.rows[0].cells ?? [] : []) {
      const button = make(head, "button", { type: "button", textContent: head.textContent });
      head.replaceChildren(button);
      button.addEventListener("click", () => sort(table, head));
    }
  }
  addEventListener("beforeprint", () => { for (const each of document.querySelectorAll("details")) each.open = true; });
})();
// A selector for each of model, GPU and engine that differs between the runs: hides the rows and marks of the others.
(() => {
  const bar = document.querySelector(".choose");
  if (!bar) return;
  const { kinds, groups, runs } = JSON.parse(bar.dataset.groups);
  const selects = kinds.map((kind, i) => {
    const label = bar.appendChild(document.createElement("label"));
    label.append(`${kind} `);
    const select = label.appendChild(document.createElement("select"));
    select.append(new Option("all", ""), ...[...new Set(groups.map((group) => group[i]))].map((value) => new Option(value, value)));
    select.addEventListener("change", apply);
    return select;
  });
  function apply() {
    const away = groups.map((group) => group.some((value, i) => selects[i].value && selects[i].value !== value));
    const names = groups.map((group) => group.join(" · "));
    for (const head of document.querySelectorAll("[data-table] tbody th")) {
      if (head.textContent in runs) head.parentElement.classList.toggle("away", away[runs[head.textContent]]);
    }
    for (const mark of document.querySelectorAll("figure svg [aria-label]")) {
      const said = mark.getAttribute("aria-label"), of = names.findIndex((name) => said === name || said.startsWith(`${name}, `));
      if (of >= 0) mark.classList.toggle("away", away[of]);
    }
  }
})();
