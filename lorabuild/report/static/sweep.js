// The sweep: plots over its values by uPlot, and a table that sorts by any of its columns.
(() => {
  "use strict";
  const data = JSON.parse(document.getElementById("sweep-data").textContent);
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const round = (value) => (value === null || value === undefined ? "–" : Number(value.toPrecision(4)).toString());
  const SIZES = ["resized", "chopped"];

  function said(measure, value) {
    if (value === null || value === undefined) return "–";
    if (SIZES.includes(measure)) {
      const [unit, name] = [[1e9, "GB"], [1e6, "MB"], [1e3, "kB"]].find(([one]) => value >= one) ?? [1, "B"];
      return `${Number((value / unit).toPrecision(3))} ${name}`;
    }
    return ["error", "kept"].includes(measure) ? `${Number((100 * value).toPrecision(3))} %` : round(value);
  }

  // Rates go over powers of ten; what is no number has a place each.
  function along(plot) {
    const numbers = plot.numbers;
    if (!numbers) return plot.values.map((_, place) => place);
    const wide = numbers[0] > 0 && numbers[numbers.length - 1] / numbers[0] > 5;
    return wide ? numbers.map((one) => Math.log10(one)) : numbers;
  }

  function options(plot, holder, x) {
    const palette = ["--accent", "--accent-2", "--good", "--bad", "--warn", "--muted"].map(colour);
    const axis = { stroke: colour("--muted"), font: "12px system-ui, sans-serif", grid: { stroke: colour("--line"), width: 1 }, ticks: { show: false } };
    const span = x[x.length - 1] - x[0], edge = span * 0.06 || 1;
    const every = Math.ceil(x.length / Math.max(2, Math.floor(holder.clientWidth / 72)));
    return {
      width: holder.clientWidth, height: 220,
      cursor: { drag: { x: false, y: false }, points: { size: 9 } },
      scales: { x: { time: false, range: [x[0] - edge, x[x.length - 1] + edge] }, y: { range: (_, low, high) => [plot.measure === "after" ? low - (high - low || 1) * 0.1 : 0, high + (plot.measure === "after" ? (high - low || 1) * 0.1 : high * 0.05)] } },
      axes: [
        { ...axis, size: 28, splits: () => x.filter((_, place) => place % every === 0), values: (_, splits) => splits.map((at) => plot.values[x.indexOf(at)] ?? "") },
        { ...axis, size: 68, values: (_, ticks) => ticks.map((tick) => (tick === null ? "" : said(plot.measure, tick))) },
      ],
      series: [{ label: plot.key, value: (_, value, __, place) => (place === null || place === undefined ? "–" : plot.values[place]) },
        ...plot.lines.map((line, index) => ({ label: line.name, stroke: palette[index], width: 2, dash: index > 2 ? [6, 4] : [], spanGaps: true, points: { show: true, size: 6, fill: palette[index] }, value: (_, value) => said(plot.measure, value) }))],
    };
  }

  let drawn = [];
  function draw() {
    drawn.forEach((one) => one.chart.destroy());
    drawn = [];
    for (const plot of data.plots) {
      const holder = document.getElementById(plot.id), x = along(plot);
      holder.textContent = "";
      drawn.push({ plot, holder, chart: new uPlot(options(plot, holder, x), [x, ...plot.lines.map((line) => line.values)], holder) });
    }
  }

  // Arrow keys go from value to value; Home and End to the ends. A plot that is drawn anew has forgotten its cursor.
  const read = new Map();
  function keys(event) {
    const found = drawn.find((one) => one.holder === event.currentTarget);
    if (!found) return;
    const { chart, plot } = found, last = plot.values.length - 1;
    const now = chart.cursor.idx ?? read.get(plot.id) ?? (event.key === "ArrowLeft" ? last + 1 : -1);
    const next = { ArrowRight: now + 1, ArrowLeft: now - 1, Home: 0, End: last }[event.key];
    if (next === undefined) return;
    event.preventDefault();
    const place = Math.min(last, Math.max(0, next));
    read.set(plot.id, place);
    chart.setCursor({ left: chart.valToPos(chart.data[0][place], "x"), top: chart.over.clientHeight / 2 });
    document.getElementById("said").textContent = [`${plot.key} ${plot.values[place]}`, ...plot.lines.map((line) => `${line.name} ${said(plot.measure, line.values[place])}`)].join(", ");
  }

  // Each head becomes a button; the project's own row stays first, and what is not known goes last.
  function sortable(table) {
    const body = table.tBodies[0], heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const down = head.getAttribute("aria-sort") === "ascending";
        heads.forEach((one) => one.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        const value = (row) => row.cells[column].dataset.value;
        const order = head.dataset.kind === "number" ? (a, b) => Number(a) - Number(b) : (a, b) => a.localeCompare(b);
        const rows = [...body.rows].filter((row) => !row.classList.contains("own"));
        const known = rows.filter((row) => value(row) !== ""), rest = rows.filter((row) => value(row) === "");
        known.sort((one, other) => (down ? -1 : 1) * order(value(one), value(other)));
        body.append(...body.querySelectorAll("tr.own"), ...known, ...rest);
        document.getElementById("said").textContent = `sorted by ${button.textContent}, ${down ? "descending" : "ascending"}`;
      });
    });
  }

  draw();
  sortable(document.querySelector("table.sweep"));
  for (const { holder } of drawn) holder.addEventListener("keydown", keys);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  let timer = 0;
  addEventListener("resize", () => { clearTimeout(timer); timer = setTimeout(draw, 150); });
})();
