"use strict";
// The what-if: figures of the chosen start from the sliders' values. harness/report/whatif.py says what the data mean.
(() => {
  const { starts } = JSON.parse(document.getElementById("what-if-data").textContent);
  const $ = (selector) => document.querySelector(`#what-if ${selector}`);
  const draws = (made) => (typeof made === "string" ? new Float32Array(Uint8Array.from(atob(made), (c) => c.charCodeAt(0)).buffer) : made);

  for (const term of starts.flatMap((start) => start.figures.flatMap((figure) => figure.terms ?? []))) term.draws = draws(term.draws);

  const product = (powers, known) =>
    Object.entries(powers).reduce((scale, [name, power]) => scale * known[name] ** power, 1);
  const at = (values, i) => (typeof values === "number" ? values : values[i]);

  function sum(terms, known) {
    const total = new Float64Array(Math.max(...terms.map((term) => term.draws.length ?? 1)));
    for (const term of terms) {
      const scale = product(term.powers, known);
      for (let i = 0; i < total.length; i++) total[i] += scale * at(term.draws, i);
    }
    return total;
  }

  // p5, median, p95 and mean; quantiles are linear between the sorted draws, as numpy's are.
  function stats(values) {
    const mean = values.reduce((a, b) => a + b) / values.length;
    values.sort();
    const quantile = (q) => {
      const place = q * (values.length - 1), below = Math.floor(place);
      return values[below] + (place - below) * ((values[below + 1] ?? values[below]) - values[below]);
    };
    return [quantile(0.05), quantile(0.5), quantile(0.95), mean];
  }

  function evaluate(start, sliders) {
    const known = { ...sliders }, found = {};
    for (const figure of start.figures) {
      let made = typeof figure.of === "string" ? found[figure.of] : figure.of;
      if (figure.terms) {
        made = stats(sum(figure.terms, known));
      }
      const scale = product(figure.powers, known) * (figure.factor ?? 1);
      found[figure.name] = made.map((value) => (value === null ? null : value * scale));
      known[figure.name] = found[figure.name][1];
    }
    return found;
  }

  function number(value) {
    const size = Math.abs(value);
    if (size >= 1e9 || (size > 0 && size < 1e-4)) return value.toExponential(3);
    return value.toLocaleString("en-US", { maximumSignificantDigits: 4 });
  }

  const make = (parent, tag, properties) => Object.assign(parent.appendChild(document.createElement(tag)), properties);
  // Each with a range to slide and a field to type into, both named by the label.
  const rows = [...document.querySelectorAll("#what-if [data-slider]")].map((row) => {
    const name = row.dataset.slider, label = row.querySelector("label");
    const range = make(row, "input", { type: "range", id: `slide-${name}` });
    const exact = make(row, "input", { type: "number" });
    Object.assign(label, { id: `label-${name}`, htmlFor: range.id });
    exact.setAttribute("aria-labelledby", label.id);
    return { name, row, range, exact, why: make(row, "small") };
  });
  const results = [...document.querySelectorAll("#what-if [data-figure]")].map((row) => {
    make(row, "td", { className: "value" });
    make(row, "td", { className: "aside" });
    return row;
  });
  const chosen = () => starts[$("select").selectedIndex];

  function choose() {
    const start = chosen();
    for (const { name, row, range, exact, why } of rows) {
      const given = start.sliders[name], closed = typeof given === "string";
      row.classList.toggle("closed", closed);
      why.textContent = closed ? given : "";
      for (const input of [range, exact]) {
        input.disabled = closed;
        if (closed) continue;
        input.min = given.low;
        input.max = given.high;
        input.step = input === range ? given.step : "any";
        input.value = given.value;
      }
      if (closed) exact.value = "";
    }
    for (const per of document.querySelectorAll("#what-if .per")) per.textContent = start.per;
    $(".standing").textContent = start.standing ?? "";
    show();
    say();
  }

  function show() {
    const start = chosen();
    for (const { row, exact, why } of rows) {
      if (!row.classList.contains("closed")) why.textContent = exact.value && exact.checkValidity() ? "" : `give a number from ${exact.min} to ${exact.max}`;
    }
    if (!$("form").checkValidity() || rows.some(({ row, exact }) => !row.classList.contains("closed") && !exact.value)) return clear();
    const sliders = Object.fromEntries(rows.map(({ name, exact }) => [name, exact.valueAsNumber]));
    const found = evaluate(start, sliders);
    for (const row of results) {
      const { figure: name, unit } = row.dataset, made = found[name];
      row.hidden = made === undefined || !made.every((value) => value === null || Number.isFinite(value));
      if (row.hidden) continue;
      const [low, value, high, mean] = made;
      row.querySelector(".value").textContent = `${number(value)} ${unit}`;
      const asides = low === null ? [] : [`p5–p95: ${number(low)}–${number(high)}`];
      if (low !== null && mean !== null) asides.push(`mean ${number(mean)}`);
      asides.push(start.figures.find((figure) => figure.name === name).status);
      row.querySelector(".aside").textContent = asides.join("; ");
    }
    gauge(found.gap);
    $(".commands").textContent = start.commands
      .map(([verb, sets]) => verb + sets.map(([slider, key]) => ` --set ${key}=${sliders[slider]}`).join(""))
      .join("\n");
  }

  // A number outside its range has no result.
  function clear() {
    for (const cell of document.querySelectorAll("#what-if td")) cell.textContent = "";
    gauge([NaN, NaN, NaN]);
    $(".commands").textContent = "";
  }

  // Six decades, 1 in the middle.
  function gauge([low, value, high]) {
    $(".gauge").classList.toggle("away", Number.isNaN(value));
    const place = (x) => Math.min(100, Math.max(0, 50 + (Math.log10(x) * 50) / 3));
    $(".gauge .bar").style.left = `${place(low)}%`;
    $(".gauge .bar").style.width = `${Math.max(0.5, place(high) - place(low))}%`;
    $(".gauge .mark").style.left = `${place(value)}%`;
  }

  // For those who listen: once a slider has come to rest, not at every step.
  function say() {
    const text = results
      .filter((row) => ["usd_per_query", "gap"].includes(row.dataset.figure))
      .map((row) => `${row.querySelector("th").textContent}: ${row.querySelector(".value").textContent}`);
    $("[aria-live]").textContent = text.join(". ");
  }

  for (const { range, exact } of rows) {
    range.addEventListener("input", () => { exact.value = range.value; show(); });
    exact.addEventListener("input", () => { range.value = exact.value; show(); });
    for (const input of [range, exact]) input.addEventListener("change", say);
  }
  $("select").addEventListener("change", choose);
  $("button").addEventListener("click", choose);
  document.getElementById("sliders").hidden = false;
  choose();
})();
