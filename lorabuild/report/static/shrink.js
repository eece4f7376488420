// Shrink curves: one place on the curve, which pointer, slider and arrow keys move, and what is true there.
(() => {
  "use strict";
  const { bins, curves } = JSON.parse(document.getElementById("shrink-data").textContent);
  const root = document.getElementById("shrinks");
  const HEIGHT = 280, EDGE = { top: 24, right: 48, bottom: 32, left: 64 };
  let curve = curves[0];
  let place = start(curve);

  function start(one) {
    const found = one.values.indexOf(one.now);
    return found < 0 ? Math.floor(one.values.length / 2) : found;
  }
  function sizeText(bytes) {
    const [unit, name] = [[1e9, "GB"], [1e6, "MB"], [1e3, "kB"]].find(([one]) => bytes >= one) ?? [1, "B"];
    return `${Number((bytes / unit).toPrecision(3))} ${name}`;
  }
  const percentText = (share) => `${Number((100 * share).toPrecision(share < 0.1 ? 2 : 3))} %`;
  const number = (value) => String(Number(value.toPrecision(6)));
  // Some round numbers between two, about `count` of them.
  function ticks(low, high, count) {
    const raw = (high - low) / count || 1, power = 10 ** Math.floor(Math.log10(raw));
    const step = power * [1, 2, 5, 10].find((one) => one * power >= raw * 0.999);
    const found = [];
    for (let at = Math.ceil(low / step - 1e-9) * step; at <= high + step * 1e-9; at += step) found.push(Number(at.toPrecision(12)) + 0);
    return found;
  }
  const element = (tag, attributes = {}, ...children) => {
    const found = tag.startsWith("svg:") ? document.createElementNS("http://www.w3.org/2000/svg", tag.slice(4)) : document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) found.setAttribute(name, value);
    found.append(...children);
    return found;
  };

  function build() {
    const parts = [plot(), reading(), ranks()];
    if (curves.length > 1) parts.unshift(bar());
    const notes = [...curve.notes, ...(curve.state === "fresh" ? [] : [`The resize is ${curve.state}: the curve is of the spectrum that stands, and a build may make another.`])];
    parts.push(element("div", { class: "shrink-notes" }, ...notes.map((text) => element("p", { class: "note" }, text))));
    root.replaceChildren(element("div", { class: "shrink" }, ...parts));
    root.hidden = false;
    draw();
    show();
  }

  function bar() {
    const choices = curves.map((one) => {
      const button = element("button", { type: "button", "aria-pressed": String(one === curve) }, one.variant ? `@${one.variant}` : one.name);
      button.addEventListener("click", () => {
        curve = one;
        place = start(one);
        build();
        root.querySelector('.shrink-bar [aria-pressed="true"]').focus();
      });
      return button;
    });
    return element("div", { class: "shrink-bar", role: "group", "aria-label": "Variant" }, ...choices);
  }

  function plot() {
    const slider = element("input", { type: "range", min: "0", max: String(curve.values.length - 1), step: "1", "aria-label": curve.key });
    slider.addEventListener("input", () => move(Number(slider.value)));
    const svg = element("svg:svg", { role: "img", "aria-label": `Size and error against ${curve.key}` });
    const drag = (event) => {
      const box = svg.getBoundingClientRect();
      move(closest((event.clientX - box.left - EDGE.left) / (box.width - EDGE.left - EDGE.right)));
    };
    svg.addEventListener("pointerdown", (event) => {
      svg.setPointerCapture(event.pointerId);
      drag(event);
      slider.focus({ preventScroll: true });
      event.preventDefault();
    });
    svg.addEventListener("pointermove", (event) => { if (svg.hasPointerCapture(event.pointerId)) drag(event); });
    return element("div", { class: "shrink-plot" }, svg, element("p", { class: "shrink-slide" }, slider));
  }

  function reading() {
    const terms = [["at", curve.key], ["size", "Size of the file"], ["error", "Error, ‖ΔW‖ lost"], ["kept", "Energy kept"], ["layers", "Layers"], ["ranks", "Ranks"]];
    const list = element("dl", { class: "shrink-read" }, ...terms.flatMap(([name, text]) => [element("dt", {}, text), element("dd", { class: name, "data-read": name })]));
    const copy = element("button", { type: "button" }, "Copy");
    const back = element("button", { type: "button" }, "Back to now");
    back.addEventListener("click", () => move(start(curve)));
    back.hidden = curve.now === null;
    return element("div", {}, list, element("div", { class: "shrink-copy" }, element("code"), copy, back));
  }

  function ranks() {
    const most = Math.max(...curve.before, ...curve.after.flat(), 1);
    const used = 1 + Math.max(...[curve.before, ...curve.after].map((counts) => counts.reduce((last, count, bin) => (count ? bin : last), 0)));
    const bars = bins.slice(0, used).map((name, bin) => {
      const before = element("span", { class: "before" });
      before.style.height = `${(100 * curve.before[bin]) / most}%`;
      return element("li", {}, element("div", { class: "shrink-bars" }, before, element("span", { class: "after" })), name);
    });
    const found = element("div", { class: "shrink-ranks" }, element("h3", {}, "Layers by rank", element("small", { class: "muted" }, element("span", { class: "shrink-swatch before" }), "trained", element("span", { class: "shrink-swatch after" }), "resized")), element("ul", {}, ...bars));
    found.dataset.most = String(most);
    return found;
  }

  // The x axis is that of values, but for ratios, which go over powers of ten.
  const scale = (value) => (curve.key === "sv_ratio" ? Math.log10(value) : value);
  function along(value) {
    const [low, high] = [scale(curve.values[0]), scale(curve.values[curve.values.length - 1])];
    return high > low ? (scale(value) - low) / (high - low) : 0.5;
  }
  function closest(part) {
    const far = curve.values.map((value) => Math.abs(along(value) - part));
    return far.indexOf(Math.min(...far));
  }
  const width = () => Math.max(root.querySelector("svg").clientWidth, 200);
  const xOf = (value) => EDGE.left + along(value) * (width() - EDGE.left - EDGE.right);
  const most = () => Math.max(...curve.sizes) * 1.02;
  const yOfSize = (bytes) => HEIGHT - EDGE.bottom - (bytes / most()) * (HEIGHT - EDGE.top - EDGE.bottom);
  const yOfLost = (lost) => HEIGHT - EDGE.bottom - lost * (HEIGHT - EDGE.top - EDGE.bottom);

  function draw() {
    const svg = root.querySelector("svg"), right = width() - EDGE.right, bottom = HEIGHT - EDGE.bottom;
    svg.setAttribute("viewBox", `0 0 ${width()} ${HEIGHT}`);
    const text = (x, y, words, anchor, name = "") => element("svg:text", { x, y, "text-anchor": anchor, class: name }, words);
    const line = (x1, y1, x2, y2, name) => element("svg:line", { x1, y1, x2, y2, class: name });
    const points = (y) => curve.values.map((value, i) => `${xOf(value).toFixed(1)},${y(i).toFixed(1)}`).join(" ");
    const unit = most() >= 1e9 ? 1e9 : most() >= 1e6 ? 1e6 : most() >= 1e3 ? 1e3 : 1;
    const parts = ticks(0, most() / unit, 4).flatMap((at) => [line(EDGE.left, yOfSize(at * unit), right, yOfSize(at * unit), "grid"), text(EDGE.left - 8, yOfSize(at * unit) + 4, at === 0 ? "0" : sizeText(at * unit), "end")]);
    parts.push(...[0, 0.5, 1].map((at) => text(right + 8, yOfLost(at) + 4, `${100 * at} %`, "start")));
    const [low, high] = [curve.values[0], curve.values[curve.values.length - 1]];
    const marks = curve.key === "sv_ratio" ? ticks(Math.log10(low), Math.log10(high), 5).filter(Number.isInteger).map((power) => 10 ** power) : ticks(low, high, width() < 500 ? 4 : 8);
    parts.push(...marks.map((at) => text(xOf(at), bottom + 20, number(at), "middle")));
    parts.push(text(EDGE.left - 8, 12, "size", "end", "size"), text(right + 8, 12, "error", "start", "error"));
    const sizes = points((i) => yOfSize(curve.sizes[i]));
    parts.push(element("svg:polygon", { class: "area", points: `${EDGE.left},${bottom} ${sizes} ${right},${bottom}` }), element("svg:polyline", { class: "size", points: sizes }), element("svg:polyline", { class: "error", points: points((i) => yOfLost(curve.lost[i])) }));
    if (curve.now !== null) parts.push(line(xOf(curve.now), EDGE.top, xOf(curve.now), bottom, "now"), text(xOf(curve.now), EDGE.top - 6, "now", along(curve.now) > 0.9 ? "end" : "middle"));
    parts.push(element("svg:g", { class: "marker" }));
    svg.replaceChildren(...parts);
    mark();
  }

  function mark() {
    const x = xOf(curve.values[place]);
    root.querySelector(".marker").replaceChildren(
      element("svg:line", { x1: x, x2: x, y1: EDGE.top, y2: HEIGHT - EDGE.bottom, class: "at" }),
      element("svg:circle", { cx: x, cy: yOfSize(curve.sizes[place]), r: 5, class: "size" }),
      element("svg:circle", { cx: x, cy: yOfLost(curve.lost[place]), r: 5, class: "error" }));
  }

  function move(to) {
    place = to;
    show();
    mark();
  }

  function show() {
    const value = number(curve.values[place]), size = curve.sizes[place], lost = curve.lost[place];
    const nowAt = curve.values.indexOf(curve.now);
    const against = nowAt >= 0 && nowAt !== place ? ` (${size >= curve.sizes[nowAt] ? "+" : "−"}${Math.abs(Math.round(100 * (size / curve.sizes[nowAt] - 1)))} %)` : "";
    const texts = { at: value + (nowAt === place ? " (now)" : ""), size: sizeText(size) + against, error: percentText(lost), kept: percentText(1 - lost * lost), layers: `${curve.layers[place]} of ${curve.all_layers}`, ranks: curve.ranks[place].toLocaleString("en") };
    for (const [name, text] of Object.entries(texts)) {
      const strong = ["size", "error"].includes(name);
      root.querySelector(`[data-read="${name}"]`).replaceChildren(strong ? element("strong", {}, text) : text);
    }
    const slider = root.querySelector(".shrink-slide input");
    slider.value = String(place);
    slider.setAttribute("aria-valuetext", `${curve.key} ${value}: ${sizeText(size)}, error ${percentText(lost)}`);
    root.querySelector(".shrink-copy code").textContent = `${curve.key} = ${value}`;
    root.querySelector(".shrink-copy button").dataset.copy = `${curve.key} = ${value}`;
    root.querySelector(".shrink-ranks").dataset.place = String(place);
    root.dataset.bytes = String(size);
    const tallest = Number(root.querySelector(".shrink-ranks").dataset.most);
    root.querySelectorAll(".shrink-bars .after").forEach((one, bin) => {
      one.style.height = `${(100 * curve.after[place][bin]) / tallest}%`;
      one.parentElement.title = `${bins[bin]}: ${curve.before[bin]} layers trained, ${curve.after[place][bin]} resized`;
    });
  }

  build();
  addEventListener("resize", draw);
})();
