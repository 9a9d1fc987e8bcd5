"use strict";
// The what-if: figures of the chosen start from the sliders' values. harness/report/whatif.py says what the data mean.
(() => {
  const { starts } = JSON.parse(document.getElementById("what-if-data").textContent);
  const $ = (selector) => document.querySelector(`#what-if ${selector}`);
  const product = (powers, known) =>
    Object.entries(powers).reduce((scale, [name, power]) => scale * known[name] ** power, 1);

  // p5, median, p95 and mean, linear between the rows around x.
  function between(rows, x) {
    const [below, above] = rows.slice(Math.max(0, rows.findLastIndex(([at]) => at < x))), share = (x - below[0]) / (above[0] - below[0]);
    return below.slice(1).map((value, i) => value + share * (above[i + 1] - value));
  }

  function evaluate(start, sliders) {
    const known = { ...sliders }, found = {};
    for (const figure of start.figures) {
      const made = figure.at ? between(figure.at, 1 / known.utilisation) : typeof figure.of === "string" ? found[figure.of] : figure.of;
      const scale = product(figure.powers, known);
      found[figure.name] = made.map((value) => (value === null ? null : value * scale));
      known[figure.name] = found[figure.name][1];
    }
    return found;
  }

  // A value and the ends of its interval, with the digits that `texts` of harness/report/format.py gives them.
  function carried(value, low, high) {
    const power = (x) => Math.floor(Math.log10(Math.abs(x))), half = (high - low) / 2, leading = value ? power(value) : 0;
    const places = half > 0 ? Math.max(-leading, Math.min(3 - leading, (half < 3.55 * 10 ** power(half)) - power(half))) : 2 - leading;
    const shown = (x, at) => (Math.round(x * 10 ** at) / 10 ** at).toLocaleString("en-US", { minimumFractionDigits: Math.min(20, Math.max(0, at)), maximumFractionDigits: Math.min(20, Math.max(0, at)) });
    const end = (x) => shown(x, low > 0 ? Math.max(places, -power(x)) : places);
    return [shown(value, places), half > 0 ? `${end(low)}–${end(high)}` : ""];
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
      const [low, value, high] = made.map((each) => each === null ? null : each * (row.dataset.times ?? 1));
      const [shown, ends] = carried(value, low, high), { status } = start.figures.find((figure) => figure.name === name);
      row.querySelector(".value").textContent = `${shown} ${unit}`;
      row.querySelector(".aside").textContent = ends ? `p5–p95: ${ends}; ${status}` : status;
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
