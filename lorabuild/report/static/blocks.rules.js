// The rules of block names, vectors and sizes, as lorabuild/names.py and vectors.py have them; a test compares. No DOM.
// `R` are those modules' tables, from the page's data; `present` the blocks of the file; a selection is block -> weight.

const NUMBER = /^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$/;
const EXPECTED = "a number like 0, 1 or 0.5 is expected";
const short = (text) => JSON.stringify(text.length > 40 ? text.slice(0, 39) + "…" : text);
const decimal = (number) => String(Number(number.toPrecision(6)));
const bytesOf = (text) => new TextEncoder().encode(text).length;

function distance(a, b) {
  let row = [...b].map((_, place) => place + 1);
  [...a].forEach((sign, i) => {
    let corner = i, left = i + 1;
    row = row.map((above, j) => {
      left = Math.min(left + 1, above + 1, corner + (sign === b[j] ? 0 : 1));
      corner = above;
      return left;
    });
  });
  return row[row.length - 1] ?? a.length;
}

function nearMiss(name, names) {
  const [best] = names.map((one) => [distance(name.toUpperCase(), one.toUpperCase()), one]).sort((a, b) => a[0] - b[0]);
  return best && best[0] <= 2 ? ` (did you mean ${JSON.stringify(best[1])}?)` : "";
}

// Names, globs and negations.

function globbed(pattern) {
  let text = "";
  for (let i = 0; i < pattern.length; i++) {
    const end = pattern[i] === "[" ? pattern.indexOf("]", pattern[i + 1] === "!" ? i + 3 : i + 2) : -1;
    if (end > 0) {
      text += "[" + pattern.slice(i + 1, end).replace(/\\/g, "\\\\").replace(/^!/, "^") + "]";
      i = end;
    } else if (pattern[i] === "*") text += ".*";
    else if (pattern[i] === "?") text += ".";
    else text += pattern[i].replace(/[\\^$.|+()[\]{}]/, "\\$&");
  }
  return new RegExp(`^${text}$`);
}

function matching(R, pattern) {
  const found = pattern === "TE" ? R.text_encoders : R.blocks.filter((block) => globbed(pattern).test(block));
  if (!found.length) {
    const said = /[*?[]/.test(pattern) ? "matches no block" : "no such block";
    throw new Error(`${short(pattern)}: ${said}${nearMiss(pattern, [...R.blocks, "TE"])}`);
  }
  return found;
}

function keptBlocks(R, entries) {
  const kept = new Set(entries.length && entries[0].startsWith("!") ? R.blocks : []);
  for (const entry of entries) {
    const negated = entry.startsWith("!");
    for (const block of matching(R, negated ? entry.slice(1) : entry)) negated ? kept.delete(block) : kept.add(block);
  }
  return kept;
}

// What a vector says; see vectors.py's vector_weights.

function vectorWeights(R, vector, style, present) {
  const text = vector.trim();
  if (text.startsWith("%")) return notationWeights(R, text.slice(1), style, present);
  let numbers;
  if (text.includes(":")) numbers = numbersOf(text.split(":")[1]);
  else if (/^[A-Za-z@][^\s,]+$/.test(text)) numbers = presetNumbers(R, text);
  else return numbered(R, numbersOf(text), style, present);
  refuseContradiction(numbers[0], style);
  return numbered(R, numbers, "inspire", present);
}

function numbersOf(text) {
  return text.split(",").map((part, place) => numberOf(part.trim(), `number ${place + 1}`));
}

function numberOf(text, name) {
  if (NUMBER.test(text) && Number.isFinite(Number(text))) return Number(text) + 0;
  const letter = { R: "R and U are random in Inspire-Pack", U: "R and U are random in Inspire-Pack", A: "A and B are parameters of Inspire-Pack's node: write their numbers", B: "A and B are parameters of Inspire-Pack's node: write their numbers" }[text.toUpperCase()];
  throw new Error(`${name} is ${short(text)}: ${EXPECTED}${letter ? `; ${letter}` : ""}`);
}

function presetNumbers(R, name) {
  if (/^(SD-|FLUX)/.test(name)) throw new Error(`${short(name)} is a preset for another model family; those for SDXL start with SDXL-`);
  if (!R.presets[name]) throw new Error(`${short(name)} is neither a block nor a preset of Inspire-Pack for SDXL${nearMiss(name, [...Object.keys(R.presets), ...R.blocks, "TE"])}`);
  return R.presets[name];
}

function refuseContradiction(first, style) {
  if (style === "resize_lora" && first !== 1)
    throw new Error(`this is Inspire-Pack's notation, its first number (${decimal(first)}) the text encoders' weight: vector_style = "resize_lora" contradicts it`);
}

function numbered(R, numbers, style, present) {
  let groups = R.layouts[numbers.length];
  let also = "";
  if (style === "resize_lora" && present) {
    const own = R.blocks.filter((block) => !R.text_encoders.includes(block) && present.includes(block)).map((block) => [block]);
    also = ` (for this file also ${1 + own.length})`;
    if (numbers.length === 1 + own.length) groups = own;
  }
  if (!groups) throw new Error(`12, 20, 21 or 22 numbers are expected, got ${numbers.length}${also}`);
  const [first, ...rest] = numbers;
  if (!style && first !== 1)
    throw new Error(`the first number is ${decimal(first)}: add vector_style = "resize_lora" (it multiplies the U-Net) or "inspire" (it is the text encoders' weight)`);
  const [unet, text] = style === "inspire" ? [1, first] : [first, 1];
  const found = {};
  for (const block of R.text_encoders) found[block] = text;
  groups.forEach((group, place) => group.forEach((block) => { found[block] = unet * rest[place] + 0; }));
  return found;
}

function notationWeights(R, spec, style, present) {
  const common = {}, found = {};
  const form = /^(?:(default|base)|(in|mid|out|double|single)(?:(\d{1,3})(?:-(\d{1,3}))?)?)\s*=\s*(.*)$/;
  spec.split(",").forEach((item, index) => {
    const said = `item ${index + 1} is ${short(item.trim())}`;
    const match = form.exec(item.trim());
    if (!match) throw new Error(`${said}: expected default=x, base=x, in=x, in4=x or in4-6=x (in, mid or out)`);
    const [, name, section, first, last, number] = match;
    const weight = numberOf(number, `the number of item ${index + 1}`);
    if (name) common[name] = weight;
    else for (const block of itemBlocks(R, said, section, first, last, present)) found[block] = weight;
  });
  if ("default" in common) for (const block of R.blocks) if (!(block in found)) found[block] = common.default;
  if ("base" in common) for (const block of R.text_encoders) found[block] = common.base;
  const unsaid = R.blocks.filter((block) => !(block in found) && (!present || present.includes(block)));
  if (unsaid.length) throw new Error(`nothing is said of ${unsaid.join(", ")}: add default=1 to leave the rest as it is, or default=0`);
  refuseContradiction(found[R.text_encoders[0]] ?? 1, style);
  return found;
}

function itemBlocks(R, said, section, first, last, present) {
  const name = { in: "INP", mid: "MID", out: "OUT" }[section];
  if (!name) throw new Error(`${said}: ${section} blocks are Flux's, SDXL has in, mid and out`);
  if (first === undefined) return R.sections[name];
  const [start, stop] = [Number(first), Number(last ?? first)];
  if (!(start >= 1 && start <= stop)) throw new Error(`${said}: blocks are counted upwards from 1`);
  const there = R.sections[name].filter((block) => present.includes(block));
  if (stop > there.length) throw new Error(`${said}: the file has ${there.length} ${name} blocks`);
  return there.slice(start - 1, stop);
}

// The manifest's [chop]; see names.py's resolve_chop.

function resolveChop(R, chop, present) {
  if (chop.keep && chop.vector !== undefined) throw new Error("keep and vector both say which blocks stay: one of them is enough");
  const kept = chop.keep ? keptBlocks(R, chop.keep) : null;
  const selected = chop.vector === undefined ? {} : vectorWeights(R, chop.vector, chop.vector_style, present);
  const scale = {};
  for (const name of Object.keys(chop.weights ?? {})) {
    if (name !== "TE" && !R.blocks.includes(name)) throw new Error(`${short(name)}: no such block${nearMiss(name, [...R.blocks, "TE"])}`);
    if (name === "TE") for (const block of R.text_encoders) scale[block] ??= chop.weights.TE;
    else scale[name] = chop.weights[name];
  }
  const found = {};
  for (const block of R.blocks) found[block] = (kept ? Number(kept.has(block)) : selected[block] ?? 1) * (scale[block] ?? 1) + 0;
  return found;
}

// What a selection is in each notation.

function sectionsOf(R) {
  return [["TE", R.text_encoders], ["IN*", R.sections.INP], ["MID*", R.sections.MID], ["OUT*", R.sections.OUT]];
}

function runs(R, blocks) {
  const found = [];
  for (const block of blocks) {
    const last = found[found.length - 1];
    if (last && R.blocks.indexOf(block) === R.blocks.indexOf(last[last.length - 1]) + 1) last.push(block);
    else found.push([block]);
  }
  return found.flatMap((run) => (run.length < 3 ? run : [`${run[0].slice(0, 4)}[${run[0][4]}-${run[run.length - 1][4]}]`]));
}

// The shortest of three ways: what stays, whole sections but for some blocks, all but some blocks. The last is harder to
// read, and must be shorter by two.
function spellKeep(R, selection, present) {
  const kept = present.filter((block) => selection[block] !== 0);
  const ways = [[], []];
  const cost = (way) => (way.length + Number(way === ways[2])) * 100 + way.join("").length;
  for (const [glob, all] of sectionsOf(R)) {
    const there = all.filter((block) => present.includes(block));
    const stay = there.filter((block) => kept.includes(block));
    const gone = there.filter((block) => !kept.includes(block));
    if (!stay.length) continue;
    const names = glob === "TE" ? stay : runs(R, stay);
    const but = [glob, ...runs(R, gone).map((name) => `!${name}`)];
    ways[0].push(...(gone.length ? names : [glob]));
    ways[1].push(...(!gone.length ? [glob] : glob === "TE" || cost(names) < cost(but) ? names : but));
  }
  const dropped = sectionsOf(R).flatMap(([glob, all]) => {
    const there = all.filter((block) => present.includes(block));
    const gone = there.filter((block) => !kept.includes(block));
    if (!gone.length) return [];
    return gone.length === there.length ? [`!${glob}`] : (glob === "TE" ? gone : runs(R, gone)).map((name) => `!${name}`);
  });
  ways.push(dropped.length ? dropped : ["*"]);
  return kept.length ? ways.reduce((best, way) => (cost(way) < cost(best) ? way : best)) : [];
}

// `named`: what the manifest or a recipe weighs now. Such a weight would stay, as tables merge: 1 is said where it should.
function spellWeights(R, selection, present, named) {
  const weighed = (block) => named.includes(block) || (named.includes("TE") && R.text_encoders.includes(block));
  const scaled = present.filter((block) => selection[block] !== 0 && (selection[block] !== 1 || weighed(block)));
  const apart = R.text_encoders.some((block) => named.includes(block)); // a weight of TE1 goes before one of TE
  const both = !apart && R.text_encoders.every((block) => scaled.includes(block)) && new Set(R.text_encoders.map((block) => selection[block])).size === 1;
  const said = both ? [["TE", selection.TE1], ...scaled.filter((block) => !R.text_encoders.includes(block)).map((block) => [block, selection[block]])] : scaled.map((block) => [block, selection[block]]);
  return said.map(([name, weight]) => `${name} = ${decimal(weight)}`);
}

function chopLines(R, selection, present, named = []) {
  const keep = `keep = [${spellKeep(R, selection, present).map((entry) => JSON.stringify(entry)).join(", ")}]`;
  const weights = spellWeights(R, selection, present, named);
  return { keep, weights: weights.length ? `weights = { ${weights.join(", ")} }` : "" };
}

// Numbers of a layout: the first is the text encoders' weight, and of several blocks under one number none is lost.
function vectorOf(R, count, selection, present) {
  const most = (group) => {
    const there = group.filter((block) => present.includes(block));
    return there.length ? Math.max(...there.map((block) => selection[block])) : 0;
  };
  const text = R.text_encoders.filter((block) => present.includes(block));
  return [text.length ? most(text) : 1, ...R.layouts[count].map(most)].map(decimal).join(",");
}

// Blocks of the file to which a vector, read as Inspire-Pack and LBW do, gives another weight than the selection.
function vectorDiffers(R, vector, selection, present) {
  const said = vectorWeights(R, vector, "inspire", present);
  return present.filter((block) => decimal(said[block] ?? 1) !== decimal(selection[block]));
}

// Reads what the page writes, a manifest's [chop], chop's options, numbers, presets, and lists of names.
function pasted(R, text, present) {
  const given = text.trim();
  if (!given) throw new Error("there is nothing to read");
  const tag = /<lora:[^>]*>?/.exec(given);
  if (tag) {
    const lbw = /:lbw=([^:>]*)/.exec(tag[0]);
    if (!lbw) throw new Error("this <lora:…> has no lbw=, so it says nothing of blocks");
    return complete(R, vectorWeights(R, lbw[1], "inspire", present));
  }
  if (/(^|\n|\])\s*(keep|weights|vector|vector_style|allow_empty)\s*=|^\[chop\]/.test(given)) return resolveChop(R, tomlTable(given), present);
  if (/--(keep|vector|weights|vector-style)\b/.test(given)) return resolveChop(R, optionsTable(given), present);
  const list = given.replace(/^\[|\]$/g, (sign, place) => (given.startsWith("[") && given.endsWith("]") ? "" : sign));
  const names = list.split(",").map((one) => one.trim().replace(/^(["'])(.*)\1$/, "$2")).filter(Boolean);
  const isPreset = names.length === 1 && (R.presets[names[0]] || /^(SDXL|SD|FLUX)/i.test(names[0]));
  if (names.length && !isPreset && !given.includes(":") && names.every((name) => /^!?[A-Za-z*?[]/.test(name) && !/^[rubaRUBA]$/.test(name))) return resolveChop(R, { keep: names }, present);
  return complete(R, vectorWeights(R, given, "inspire", present));
}

function complete(R, weights) {
  return Object.fromEntries(R.blocks.map((block) => [block, weights[block] ?? 1]));
}

function tomlTable(text) {
  const table = {};
  const string = `"[^"\\n]*"|'[^'\\n]*'`;
  const forms = [
    ["keep", /\[((?:[^\]"']|"[^"]*"|'[^']*')*)\]/, strings],
    ["weights", /\{([^}]*)\}/, weightsOf],
    ["vector_style", new RegExp(`(${string})`), (found) => found.slice(1, -1)],
    ["vector", new RegExp(`(${string})`), (found) => found.slice(1, -1)],
    ["allow_empty", /(true|false)/, (found) => found === "true"],
  ];
  let rest = text.replace(/#[^\n"']*$/gm, "").replace(/^\s*\[chop\]/m, "");
  for (const [key, value, read] of forms) {
    rest = rest.replace(new RegExp(`(^|\\s)${key}\\s*=\\s*${value.source}`), (_, before, found) => {
      table[key] = read(found);
      return before;
    });
  }
  if (rest.trim()) throw new Error(`${short(rest.trim().split("\n")[0])} cannot be read: keep = [ … ], weights = { … } or vector = "…" is expected`);
  const style = table.vector_style;
  if (style !== undefined && !["resize_lora", "inspire"].includes(style)) throw new Error(`vector_style is ${short(style)}: "resize_lora" or "inspire" is expected`);
  return table;
}

function strings(text) {
  const found = [];
  const rest = text.replace(/"([^"]*)"|'([^']*)'/g, (_, a, b) => { found.push(a ?? b); return ""; });
  if (rest.replace(/[\s,]/g, "")) throw new Error(`keep: ${short(rest.replace(/^[\s,]+|[\s,]+$/g, ""))} has no quotes`);
  return found;
}

function weightsOf(text) {
  const found = {};
  for (const item of text.split(",").map((one) => one.trim()).filter(Boolean)) {
    const [name, number, ...more] = item.split("=").map((one) => one.trim());
    if (number === undefined || more.length) throw new Error(`weights: ${short(item)}: BLOCK = number is expected`);
    found[name.replace(/^(["'])(.*)\1$/, "$2")] = numberOf(number, `the weight of ${name}`);
  }
  return found;
}

function optionsTable(text) {
  const table = {};
  const value = (name) => {
    const found = new RegExp(`--${name}(?:\\s+|=)("[^"]*"|'[^']*'|\\S+)`).exec(text);
    return found ? found[1].replace(/^(["'])(.*)\1$/, "$2") : undefined;
  };
  const keep = value("keep"), weights = value("weights");
  if (keep !== undefined) table.keep = keep.split(",").map((one) => one.trim()).filter(Boolean);
  if (weights !== undefined) table.weights = weightsOf(weights);
  if (value("vector") !== undefined) table.vector = value("vector");
  if (value("vector-style") !== undefined) table.vector_style = value("vector-style");
  return table;
}

// What a selection of a picker's file comes to.

// Bytes of the chopped file: the header as writing.py lays it out, with what metadata.py tells of the selection.
function fileSize(R, picker, selection) {
  const weights = R.blocks.map((block) => [block, selection[block] ?? 0]);
  const float = (number) => (Number.isInteger(number) ? `${number}.0` : String(number));
  const empty = picker.allow_empty ? '"allow_empty": true, ' : "";
  const keep = `{${empty}"keep": {${weights.map(([block, weight]) => `"${block}": ${float(weight)}`).join(", ")}}}`;
  const unet = weights.filter(([block]) => block !== "INP00" && !R.text_encoders.includes(block));
  const vector = ["1", ...unet.map(([, weight]) => decimal(weight))].join(",");
  const told = picker.metadata + [["block_vector_string", vector], ["lorabuild.chop", keep]].reduce(
    (sum, [key, text]) => sum + bytesOf(`,${JSON.stringify(key)}:${JSON.stringify(text)}`), 0);
  const { block, bytes, entry } = picker.layout;
  let offset = 0, entries = 0;
  for (let i = 0; i < block.length; i++) {
    const name = picker.blocks[block[i]].block;
    if (name !== null && !selection[name]) continue;
    entries += entry[i] + String(offset).length + String(offset + bytes[i]).length;
    offset += bytes[i];
  }
  const text = bytesOf('{"__metadata__":') + told + entries + 1;
  return 8 + 8 * Math.ceil(text / 8) + offset;
}

// The part of ‖ΔW‖² that stays: a weight scales what a block adds, so its square counts. What is in no block stays.
function energyKept(picker, selection) {
  return picker.blocks.reduce((sum, one) => sum + (one.share ?? 0) * (one.block === null ? 1 : selection[one.block] ** 2), 0);
}

// Whether InvokeAI's rule of recognition, loaders.py's Signs, finds SDXL in what is left.
function invokeKnows(R, picker, selection) {
  const signs = picker.blocks.filter((one) => one.block === null || selection[one.block] !== 0).map((one) => one.signs);
  const all = (name) => signs.flatMap((one) => one[name]);
  const widths = [...all("unet"), ...all("te1").flatMap((one) => all("te2").map((other) => one + other))];
  return signs.some((one) => one.deep) || widths.some((width) => R.invoke_widths.includes(width));
}
