// Opens pictures in full size, and compares two of a row: by turns, with a wipe, and as a map of their difference.
// Everything is read from the page: [data-gallery] holds [data-shot], each with its row, role, title and differences.
// The difference is blended by the browser: a page of file:// may show another file's pixels, but not read them.
(() => {
  "use strict";

  // What is looked at: a row of pictures, and the places of two of them.
  const walked = (view, by, count) => ({ ...view, a: (view.a + by + count) % count });
  const partner = (a, b, count) => (count < 2 ? a : b !== a ? b : a > 0 ? a - 1 : 1);
  function difference(one, other) {
    if (one.role === other.role) return 0;
    return one.difference[other.role] ?? other.difference[one.role] ?? null;
  }
  function told(one, other) {
    if (one.role === other.role) return "Choose another picture as B to compare.";
    const found = difference(one, other);
    const figure = found === null ? "no figure for this pair" : `mean difference ${found.toFixed(2)} of 255`;
    return `A ${one.title} · B ${other.title} · ${figure}`;
  }

  const HEAT = `<svg class="sr" aria-hidden="true" width="0" height="0"><filter id="viewer-heat" x="0" y="0" width="1" height="1" color-interpolation-filters="sRGB">
    <feColorMatrix type="matrix" values="1 0 0 0 0 1 0 0 0 0 1 0 0 0 0 0 0 0 1 0"/>
    <feComponentTransfer><feFuncR type="table" tableValues="0 .34 .73 .96 .99 .99"/><feFuncG type="table" tableValues="0 .06 .21 .49 .75 1"/><feFuncB type="table" tableValues="0.02 .43 .33 .08 .14 .75"/></feComponentTransfer>
  </filter></svg>`;
  const BODY = `${HEAT}
    <div class="viewer-bar">
      <label>A <select class="pick-a" aria-label="Picture A"></select></label>
      <label>B <select class="pick-b" aria-label="Picture B"></select></label>
      <span class="modes" role="group" aria-label="Compare">
        <button type="button" data-mode="flip" title="F">Flip</button><button type="button" data-mode="wipe" title="W">Wipe</button><button type="button" data-mode="difference" title="D">Difference</button>
      </span>
      <button type="button" class="turn" aria-pressed="false">Show B</button>
      <label class="viewer-range wipe" hidden>Edge <input type="range" min="0" max="100" value="50" aria-label="Edge between A and B, percent"></label>
      <label class="viewer-range gain" hidden>Gain <input type="range" min="1" max="16" value="4" aria-label="Gain of the difference"><span></span></label>
      <button type="button" class="close">Close</button>
    </div>
    <div class="viewer-stage" tabindex="0" role="group" aria-label="Picture. Arrow keys: left and right to other pictures, up and down to other prompts. Space: show B. F, W, D: flip, wipe, difference. Escape: close."><div class="viewer-frame"><img class="a" alt=""><img class="b" alt=""></div></div>
    <div class="viewer-foot"><p class="told" aria-live="polite"></p><p class="prompt-text muted"></p></div>`;

  let dialog = null;
  let rows = [];
  let view = { row: 0, a: 0, b: 0 };
  let opener = null;
  const part = (selector) => dialog.querySelector(selector);

  function gathered(gallery) {
    const found = new Map();
    for (const link of gallery.querySelectorAll("[data-shot]")) {
      const { row, role, title } = link.dataset;
      const image = link.querySelector("img");
      if (!found.has(row)) found.set(row, []);
      found.get(row).push({
        link, role, title, full: link.href, alt: image.alt, width: image.getAttribute("width"), height: image.getAttribute("height"),
        difference: JSON.parse(link.dataset.difference),
      });
    }
    return [...found.values()];
  }

  function made() {
    const found = document.createElement("dialog");
    found.className = "viewer";
    found.setAttribute("aria-label", "Picture in full size");
    found.innerHTML = BODY;
    document.body.append(found);
    return found;
  }

  function option(shot, place) {
    const found = document.createElement("option");
    found.value = place;
    found.textContent = shot.title;
    return found;
  }

  function show() {
    const row = rows[view.row];
    view.b = partner(view.a, view.b, row.length);
    const [one, other] = [row[view.a], row[view.b]];
    for (const [name, shot, place] of [["a", one, view.a], ["b", other, view.b]]) {
      const image = part(`img.${name}`);
      if (image.src !== shot.full) image.src = shot.full;
      image.alt = shot.alt;
      const pick = part(`.pick-${name}`);
      pick.replaceChildren(...row.map(option));
      pick.value = place;
    }
    const frame = part(".viewer-frame");
    frame.style.setProperty("--w", one.width);
    frame.style.setProperty("--h", one.height);
    part(".told").textContent = told(one, other);
    part(".prompt-text").textContent = one.alt.replace(`${one.title}: `, "");
    turn(false);
  }

  function turn(b) {
    dialog.dataset.showing = b ? "b" : "a";
    const button = part(".turn");
    button.setAttribute("aria-pressed", String(b));
    part("img.a").setAttribute("aria-hidden", String(b && dialog.dataset.mode === "flip"));
    part("img.b").setAttribute("aria-hidden", String(!b && dialog.dataset.mode === "flip"));
  }

  function mode(name) {
    dialog.dataset.mode = name;
    for (const button of dialog.querySelectorAll("[data-mode]")) button.setAttribute("aria-pressed", String(button.dataset.mode === name));
    part(".turn").hidden = name !== "flip";
    part(".wipe").hidden = name !== "wipe";
    part(".gain").hidden = name !== "difference";
    turn(false);
  }

  // The three channels' differences, averaged and multiplied, become the place in the table of colours.
  function gain(factor) {
    const line = `${[1, 1, 1].map(() => (factor / 3).toFixed(4)).join(" ")} 0 0`;
    part("feColorMatrix").setAttribute("values", `${line} ${line} ${line} 0 0 0 1 0`);
    part(".gain span").textContent = `×${factor}, brightest from ${Math.ceil(255 / factor)}`;
  }

  function wipe(percent) {
    part(".viewer-frame").style.setProperty("--wipe", `${percent}%`);
    part(".wipe input").value = percent;
  }

  function move(event) {
    const box = part(".viewer-frame").getBoundingClientRect();
    wipe(Math.min(100, Math.max(0, (100 * (event.clientX - box.left)) / box.width)));
  }

  function keys(event) {
    if (event.altKey || event.ctrlKey || event.metaKey) return;
    const name = event.key.toLowerCase();
    if (event.target.matches("select, input") && (name.startsWith("arrow") || name === " ")) return;
    if (event.target.matches("button") && (name === " " || name === "enter")) return;
    const row = rows[view.row];
    const actions = {
      arrowleft: () => { view = walked(view, -1, row.length); show(); },
      arrowright: () => { view = walked(view, 1, row.length); show(); },
      arrowup: () => across(-1),
      arrowdown: () => across(1),
      " ": () => { if (dialog.dataset.mode !== "flip") mode("flip"); turn(dialog.dataset.showing !== "b"); },
      f: () => mode("flip"), w: () => mode("wipe"), d: () => mode("difference"),
    };
    if (!actions[name]) return;
    event.preventDefault();
    actions[name]();
  }

  // Another prompt, with the same two columns where it has them.
  function across(by) {
    const [one, other] = [rows[view.row][view.a].role, rows[view.row][view.b].role];
    const row = (view.row + by + rows.length) % rows.length;
    const place = (role) => Math.max(0, rows[row].findIndex((shot) => shot.role === role));
    view = { row, a: place(one), b: place(other) };
    show();
  }

  function listen() {
    dialog.addEventListener("keydown", keys);
    dialog.addEventListener("close", () => { rows[view.row][view.a].link.focus(); if (document.activeElement === document.body) opener.focus(); });
    part(".close").addEventListener("click", () => dialog.close());
    part(".turn").addEventListener("click", () => turn(dialog.dataset.showing !== "b"));
    part(".modes").addEventListener("click", (event) => { if (event.target.dataset.mode) mode(event.target.dataset.mode); });
    part(".pick-a").addEventListener("change", (event) => { view.a = Number(event.target.value); show(); });
    part(".pick-b").addEventListener("change", (event) => { view.b = Number(event.target.value); show(); });
    part(".wipe input").addEventListener("input", (event) => wipe(event.target.value));
    part(".gain input").addEventListener("input", (event) => gain(Number(event.target.value)));
    const stage = part(".viewer-stage");
    stage.addEventListener("pointerdown", (event) => {
      stage.setPointerCapture(event.pointerId);
      if (dialog.dataset.mode === "wipe") move(event);
      else if (dialog.dataset.mode === "flip") turn(true);
    });
    stage.addEventListener("pointermove", (event) => { if (event.buttons && dialog.dataset.mode === "wipe") move(event); });
    for (const name of ["pointerup", "pointercancel"]) stage.addEventListener(name, () => { if (dialog.dataset.mode === "flip") turn(false); });
  }

  function open(link) {
    if (!dialog) {
      dialog = made();
      listen();
      gain(4);
    }
    opener = link;
    rows = gathered(link.closest("[data-gallery]"));
    const row = rows.findIndex((shots) => shots.some((shot) => shot.link === link));
    const a = rows[row].findIndex((shot) => shot.link === link);
    view = { row, a, b: 0 };
    mode("flip");
    wipe(50);
    show();
    dialog.showModal();
    part(".viewer-stage").focus();
  }

  document.addEventListener("click", (event) => {
    const link = event.target.closest("a[data-shot]");
    if (!link || event.button || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    open(link);
  });
})();
