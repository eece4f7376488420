// The block picker: one selection, which toggles, sliders, presets and what is pasted all set, and all that follows of it.
const { rules: R, pickers } = JSON.parse(document.getElementById("blocks-data").textContent);
const root = document.getElementById("picker");
const MOST = 1.5; // of the sliders; what is pasted may be more, or negative
let picker = pickers[0];
let selection = { ...picker.weights };
let resting = {}; // block -> its weight before it was switched off

const element = (tag, attributes = {}, ...children) => {
  const found = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) if (value !== undefined) found.setAttribute(name, value);
  found.append(...children);
  return found;
};
const sizeText = (bytes) => {
  const [unit, name] = [[1e9, "GB"], [1e6, "MB"], [1e3, "kB"]].find(([one]) => bytes >= one) ?? [1, "B"];
  return `${(bytes / unit).toFixed(unit === 1 ? 0 : bytes / unit < 10 ? 2 : 1)} ${name}`;
};
const percentText = (share) => {
  const number = 100 * share;
  return `${number >= 10 || number === 0 ? number.toFixed(0) : number >= 1 ? number.toFixed(1) : number.toPrecision(2)} %`;
};
const present = () => Object.keys(picker.weights);
const rows = () => picker.blocks.filter((one) => one.block !== null);
const among = (blocks) => Object.fromEntries(present().map((block) => [block, Number(blocks.includes(block))]));

const PRESETS = [
  ["All", () => among(R.blocks)],
  ["TE + OUT01", () => among([...R.text_encoders, "OUT01"])],
  ["IN only", () => among(R.sections.INP)],
  ["MID only", () => among(R.sections.MID)],
  ["OUT only", () => among(R.sections.OUT)],
  ["With attention", () => among([...R.text_encoders, ...R.attention])],
  ["As in the manifest", () => ({ ...picker.weights })],
];

// Building.

function build() {
  root.replaceChildren(bar(), shape(), write());
  root.hidden = false;
  show();
}

function bar() {
  const found = element("div", { class: "picker-bar" });
  if (pickers.length > 1) {
    const choices = pickers.map((one) => {
      const button = element("button", { type: "button", "aria-pressed": String(one === picker) }, one.variant ? `@${one.variant}` : one.name);
      button.addEventListener("click", () => {
        picker = one;
        selection = { ...picker.weights };
        resting = {};
        build();
        root.querySelector('.picker-bar button[aria-pressed="true"]').focus();
      });
      return button;
    });
    found.append(element("fieldset", {}, element("legend", {}, "Variant"), ...choices));
  }
  const presets = PRESETS.map(([name, make]) => {
    const button = element("button", { type: "button", "data-preset": name }, name);
    button.addEventListener("click", () => set(make()));
    return button;
  });
  found.append(element("fieldset", {}, element("legend", {}, "Start from"), ...presets));
  return found;
}

function shape() {
  const cells = (blocks) => blocks.filter((block) => block !== "INP00" || present().includes(block)).map(cell);
  const group = (name, label, blocks) => element("div", { class: `picker-${name}`, role: "group", "aria-label": label }, ...cells(blocks));
  const centre = element("div", { class: "picker-centre" },
    group("te", "Text encoders", R.text_encoders),
    element("div", { class: "picker-sums", role: "group", "aria-label": "The chopped file" }, sum("size", "Size of the chopped file"), sum("energy", "Energy kept", ": the share of ‖ΔW‖², what the file adds to the base")),
    element("ul", { class: "picker-notes", "aria-live": "polite" }),
    element("p", { class: "picker-key" }, "Colour and bar: a block's share of the energy. Slider: its weight, linear; 0.5 is half the effect. Arrow keys go from block to block, Space keeps or drops, + and − weigh."));
  const found = element("div", { class: "picker-u" }, group("in", "Input blocks", R.sections.INP), centre, group("mid", "Middle blocks", R.sections.MID), group("out", "Output blocks", R.sections.OUT));
  found.addEventListener("keydown", steer);
  found.addEventListener("focusin", (event) => {
    const owner = event.target.closest(".picker-cell");
    if (owner) rove(owner);
  });
  return found;
}

function cell(block) {
  const row = picker.blocks.find((one) => one.block === block);
  if (!row) return element("div", { class: "picker-cell absent" }, `${block}: not in the file`);
  const most = Math.max(...rows().map((one) => one.share ?? 0), 1e-12);
  const share = row.share === null ? "no layer" : percentText(row.share);
  const rank = row.rank_median === null ? "" : ` · rank ${decimal(row.rank_median)}`;
  const toggle = element("button", { type: "button", tabindex: "-1", title: `${row.tensors} tensors, ${row.bytes.toLocaleString("en")} bytes, largest rank ${row.rank_max ?? "–"}` },
    element("b", {}, block, element("i")), element("small", {}, `${share} · ${sizeText(row.bytes)}${rank}`.replace(/(\S) (?=[^·\s])/g, "$1\u00a0").replace(/·\u00a0/g, "· ")));
  toggle.addEventListener("click", () => flip(block));
  const slider = element("input", { type: "range", min: "0", max: String(MOST), step: "0.05", tabindex: "-1", "aria-label": `Weight of ${block}` });
  slider.addEventListener("input", () => set({ ...selection, [block]: Number(slider.value) }));
  const found = element("div", { class: "picker-cell", "data-block": block }, toggle, slider);
  found.style.setProperty("--part", String((row.share ?? 0) / most));
  found.style.setProperty("--heat", String(Math.sqrt((row.share ?? 0) / most)));
  return found;
}

function sum(name, what, more = "") {
  return element("div", { class: `picker-sum picker-${name}` }, element("p", {}, element("span", { class: "picker-what" }, what, element("span", { class: "picker-more" }, more)), element("strong"), element("span", { class: "muted" })), element("div", { class: "picker-meter", "aria-hidden": "true" }, element("span")));
}

function write() {
  const lines = element("div", { class: "picker-lines" }, element("h3", {}, "Copy"));
  const code = (text) => element("code", {}, text);
  const where = element("p", { class: "picker-where" }, code("keep"), " goes into ", code(`[${picker.table}]`), " of the project's lora.toml, in place of ", code("keep"), ", ", code("weights"), " and ", code("vector"), " there; then ", code(`doit ${picker.job}`), " makes the file. Nothing here changes a file.");
  const area = element("textarea", { id: "picker-paste", spellcheck: "false", autocomplete: "off", placeholder: 'keep = ["TE", "OUT01"]', "aria-describedby": "picker-said" });
  const button = element("button", { type: "button" }, "Set");
  const said = element("p", { id: "picker-said", class: "picker-said", role: "status" });
  const read = () => {
    try {
      const found = pasted(R, area.value, present());
      set(Object.fromEntries(present().map((block) => [block, found[block]])));
      said.className = "picker-said";
      said.textContent = `Set: ${present().filter((block) => selection[block] !== 0).join(", ") || "no block"}.`;
    } catch (error) {
      said.className = "picker-said bad-text";
      said.textContent = error.message;
    }
  };
  button.addEventListener("click", read);
  area.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey) {
      event.preventDefault();
      read();
    }
  });
  const paste = element("div", {}, element("h3", {}, element("label", { for: "picker-paste" }, "Paste")), element("div", { class: "picker-paste" }, area, button), said,
    element("p", { class: "muted" }, element("small", {}, "A manifest's lines, 12, 20, 21 or 22 numbers, a preset of Inspire-Pack, its notation with %, <lora:…:lbw=…>, or names and globs with commas. A first number other than 1 is read as Inspire-Pack and LBW do: the weight of the text encoders.")));
  return element("div", { class: "picker-write" }, element("div", {}, lines, where), paste);
}

// Changing.

function set(weights) {
  for (const block of present()) if (selection[block] !== 0) resting[block] = selection[block];
  selection = weights;
  show();
}

function flip(block) {
  set({ ...selection, [block]: selection[block] === 0 ? resting[block] ?? 1 : 0 });
}

function rove(owner) {
  for (const one of root.querySelectorAll('.picker-cell [tabindex="0"]')) one.tabIndex = -1;
  for (const one of owner.querySelectorAll("button, input")) one.tabIndex = 0;
}

const WAYS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

function steer(event) {
  const owner = event.target.closest(".picker-cell");
  if (!owner || event.target.tagName !== "BUTTON" || event.ctrlKey || event.metaKey || event.altKey) return;
  const block = owner.dataset.block;
  if (event.key === "+" || event.key === "=" || event.key === "-") {
    const step = event.key === "-" ? -0.05 : 0.05;
    set({ ...selection, [block]: Math.min(Math.max(Math.round((selection[block] + step) * 100) / 100, 0), MOST) });
  } else if (WAYS[event.key]) {
    nearest(owner, ...WAYS[event.key])?.querySelector("button").focus();
  } else return;
  event.preventDefault();
}

// The next block in a direction, as they stand on the screen: the U is another on a phone.
function nearest(owner, right, down) {
  const middle = (one) => {
    const box = one.getBoundingClientRect();
    return [box.left + box.width / 2, box.top + box.height / 2];
  };
  const [x, y] = middle(owner);
  let best = null, least = Infinity;
  for (const one of root.querySelectorAll(".picker-cell[data-block]")) {
    const [dx, dy] = middle(one).map((at, axis) => at - [x, y][axis]);
    const along = dx * right + dy * down, aside = Math.abs(dx * down) + Math.abs(dy * right);
    if (along > 4 && along + 3 * aside < least) [best, least] = [one, along + 3 * aside];
  }
  return best;
}

// Showing.

function show() {
  for (const one of root.querySelectorAll(".picker-cell[data-block]")) {
    const weight = selection[one.dataset.block];
    const [toggle, slider] = one.querySelectorAll("button, input");
    one.classList.toggle("off", weight === 0);
    toggle.setAttribute("aria-pressed", String(weight !== 0));
    toggle.querySelector("i").textContent = weight === 0 || weight === 1 ? "" : `× ${decimal(weight)}`;
    slider.value = String(weight);
    slider.setAttribute("aria-valuetext", decimal(weight));
  }
  if (!root.querySelector('.picker-cell [tabindex="0"]')) rove(root.querySelector(".picker-cell[data-block]"));
  for (const [name, make] of PRESETS) {
    const same = Object.entries(make()).every(([block, weight]) => weight === selection[block]);
    root.querySelector(`[data-preset="${name}"]`).setAttribute("aria-pressed", String(same));
  }
  showSums();
  showNotes();
  showLines();
}

function showSums() {
  const bytes = fileSize(R, picker, selection), energy = energyKept(picker, selection);
  const kept = present().filter((block) => selection[block] !== 0).length;
  const fill = (name, text, more, part, title) => {
    const one = root.querySelector(`.picker-${name}`);
    one.querySelector("strong").textContent = text;
    one.querySelector("strong").title = title;
    one.querySelector(".muted").textContent = more;
    one.querySelector(".picker-meter > span").style.width = `${100 * Math.min(Math.max(part, 0), 1)}%`;
  };
  root.dataset.bytes = String(bytes);
  fill("size", sizeText(bytes), `of ${sizeText(picker.size)}, ${percentText(bytes / picker.size)} · ${kept} of ${present().length} blocks`, bytes / picker.size, `${bytes.toLocaleString("en")} bytes`);
  fill("energy", percentText(energy), `of ${picker.file}`, energy, String(energy));
}

function showNotes() {
  const kept = rows().filter((one) => selection[one.block] !== 0);
  const scaled = kept.filter((one) => selection[one.block] !== 1);
  const named = (blocks) => blocks.map((one) => one.block).join(", ");
  const notes = [];
  if (picker.state !== "fresh") notes.push(["warn", `${picker.file} is ${picker.state}: a build makes it anew, and these numbers with it.`]);
  if (!kept.length && !picker.blocks.some((one) => one.block === null)) notes.push(["bad", `Nothing is kept: ${picker.allow_empty ? "the file will be empty" : "a build refuses that, unless chop.allow_empty = true"}.`]);
  else if (!invokeKnows(R, picker, selection)) notes.push(["warn", `InvokeAI will not load this: ${R.not_sdxl}.`]);
  const dora = scaled.filter((one) => one.dora);
  if (dora.length) notes.push(["warn", `${named(dora)}: DoRA. A fraction scales the low-rank part only, the magnitude stays as it is: the effect is not exactly that fraction.`]);
  const unscaled = scaled.filter((one) => one.unscaled);
  if (unscaled.length) notes.push(["bad", `${named(unscaled)}: has tensors that cannot be scaled; a build takes only 0 or 1 there.`]);
  for (const one of picker.loaders) if (!(one.loader === "InvokeAI" && one.reason === R.not_sdxl)) notes.push(["", `${one.loader}, of the whole file: ${one.reason}`]);
  const list = root.querySelector(".picker-notes");
  if (list.dataset.said === JSON.stringify(notes)) return; // or a screen reader would say it again
  list.dataset.said = JSON.stringify(notes);
  list.replaceChildren(...notes.map(([level, text]) => element("li", { class: `note ${level}` }, text)));
}

function showLines() {
  const here = present();
  const { keep, weights } = chopLines(R, selection, here, picker.named);
  const inspire = here.includes("INP00") ? 22 : 21;
  const vectors = [[`Inspire ${inspire}`, inspire], ["LBW 20", 20], ["LBW 12", 12]].map(([name, count]) => [name, vectorOf(R, count, selection, here)]);
  const lines = [["keep", keep, ""], ...(weights ? [["weights", weights, "goes beside keep"]] : [])];
  for (const [name, vector] of vectors) lines.push([name, vector, noteOf(vector, here)]);
  const tag = `<lora:${picker.stem}:1:lbw=${vectors[1][1]}>`;
  lines.push(["prompt", tag, `for the unchopped file, ${picker.file}`]);
  const rowsOfLines = lines.map(([name, text, note]) => {
    const row = element("div", { class: "picker-line", "data-line": name }, element("span", {}, name), element("code", { tabindex: "0", role: "group", "aria-label": name }, text), element("button", { type: "button", "data-copy": text, "aria-label": `Copy ${name}` }, "Copy"));
    if (note) row.append(element("small", { class: note.startsWith("not exact") ? "warn" : undefined }, note));
    return row;
  });
  const holder = root.querySelector(".picker-lines");
  const had = document.activeElement?.closest?.(".picker-line")?.dataset.line; // what was focused stays so
  const which = document.activeElement?.tagName;
  holder.replaceChildren(holder.firstChild, ...rowsOfLines);
  if (had) holder.querySelector(`[data-line="${had}"] ${which === "BUTTON" ? "button" : "code"}`)?.focus();
}

function noteOf(vector, here) {
  const differs = vectorDiffers(R, vector, selection, here);
  if (differs.length) return `not exact, it cannot say all of this: other for ${differs.length > 6 ? `${differs.slice(0, 6).join(", ")} and ${differs.length - 6} more` : differs.join(", ")}`;
  return vector.startsWith("1,") ? "" : 'in a manifest, with vector_style = "inspire"';
}

build();
