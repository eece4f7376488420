// Plots of the training's log by uPlot, with one cursor for all of them.
(() => {
  "use strict";
  const data = JSON.parse(document.getElementById("curves-data").textContent);
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const round = (value) => (value === null || value === undefined ? "–" : Number(value.toPrecision(5)).toString());

  // The held-out loss is known at few steps, and at 0: all series share one x axis.
  function merged(steps, series, points) {
    const x = [...new Set([...steps, ...points.map(([step]) => step)])].sort((a, b) => a - b);
    const place = new Map(steps.map((step, index) => [step, index]));
    const at = new Map(points);
    const rows = Object.values(series).map((values) => x.map((step) => (place.has(step) ? values[place.get(step)] : null)));
    return [x, ...rows, ...(points.length ? [x.map((step) => at.get(step) ?? null)] : [])];
  }

  function marks() {
    return {
      hooks: {
        drawClear: [(plot) => {
          const { ctx, bbox } = plot;
          ctx.save();
          ctx.lineWidth = devicePixelRatio;
          for (const [steps, dash, name] of [[data.snapshots, [2, 5], "--muted"], [data.phases, [], "--muted"]]) {
            ctx.strokeStyle = colour(name);
            ctx.setLineDash(dash.map((length) => length * devicePixelRatio));
            for (const step of steps) {
              const left = Math.round(plot.valToPos(step, "x", true));
              ctx.beginPath();
              ctx.moveTo(left, bbox.top);
              ctx.lineTo(left, bbox.top + bbox.height);
              ctx.stroke();
            }
          }
          ctx.restore();
        }],
      },
    };
  }

  function options(holder, lines, height, logarithmic) {
    const axis = { stroke: colour("--muted"), font: "12px system-ui, sans-serif", grid: { stroke: colour("--line"), width: 1 }, ticks: { show: false } };
    return {
      width: holder.clientWidth, height,
      cursor: { sync: { key: "curves" }, drag: { x: true, y: false }, points: { size: 7 } },
      legend: { live: true },
      scales: { x: { time: false }, y: logarithmic ? { distr: 3 } : {} },
      axes: [
        { ...axis, size: 28, values: (_, ticks) => ticks.map((tick) => (Number.isInteger(tick) ? tick.toLocaleString("en") : "")) },
        { ...axis, size: 56, values: (_, ticks) => ticks.map((tick) => (tick === null ? "" : Math.abs(tick) < 0.001 && tick !== 0 ? tick.toExponential(0) : Number(tick.toPrecision(3)).toString())) },
      ],
      series: [{ label: "step", value: (_, value) => (value === null ? "–" : value.toLocaleString("en")) },
        ...lines.map((line) => ({ width: 1.5, spanGaps: true, value: (_, value) => round(value), points: { show: false }, ...line }))],
      plugins: [marks()],
    };
  }

  function plan() {
    const palette = ["--accent", "--accent-2", "--good", "--bad", "--warn"].map(colour);
    const held = data.held_out.length ? [{ label: "held-out", stroke: palette[1], width: 2, points: { show: true, size: 6, fill: palette[1] } }] : [];
    const named = (group) => Object.keys(group).map((label, index) => ({ label, stroke: palette[index % palette.length] }));
    return [
      ["plot-loss", [{ label: "loss", stroke: colour("--muted"), width: 0.75, alpha: 0.6 }, { label: "smoothed", stroke: palette[0], width: 2 }, ...held],
        merged(data.steps, data.series, data.held_out), 280, false],
      ["plot-rates", named(data.rates), merged(data.steps, data.rates, []), 180, false],
      ["plot-norms", named(data.norms), merged(data.steps, data.norms, []), 180, false],
    ];
  }

  let plots = [];
  function draw() {
    plots.forEach((plot) => plot.destroy());
    plots = [];
    for (const [id, lines, values, height, logarithmic] of plan()) {
      const holder = document.getElementById(id);
      if (!holder || !lines.length) continue;
      holder.textContent = "";
      plots.push(new uPlot(options(holder, lines, height, logarithmic), values, holder));
    }
  }

  // Arrow keys move the cursor by a point, with Shift by ten; Home and End go to the ends.
  function keys(event) {
    const plot = plots.find((one) => event.currentTarget.contains(one.root));
    if (!plot) return;
    const count = plot.data[0].length;
    const now = plot.cursor.idx ?? (event.key === "ArrowLeft" ? count : -1);
    const by = event.shiftKey ? 10 : 1;
    const next = { ArrowRight: now + by, ArrowLeft: now - by, Home: 0, End: count - 1 }[event.key];
    if (next === undefined) return;
    event.preventDefault();
    const index = Math.min(count - 1, Math.max(0, next));
    plot.setCursor({ left: plot.valToPos(plot.data[0][index], "x"), top: plot.over.clientHeight / 2 });
    const said = plot.series.map((series, place) => `${series.label} ${round(plot.data[place][index])}`);
    document.getElementById("said").textContent = said.join(", ");
  }

  draw();
  document.querySelectorAll(".plot").forEach((holder) => holder.addEventListener("keydown", keys));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  let timer = 0;
  addEventListener("resize", () => { clearTimeout(timer); timer = setTimeout(draw, 150); });
})();
