"""`lorabuild blocks`: what each block of a LoRA file holds and adds, and the strings by which tools name these blocks."""

from __future__ import annotations

import json
import math
import os
import shlex
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from statistics import median

from lorabuild.ahead import use_threads
from lorabuild.cli import find_root
from lorabuild.errors import ConfigError, JobError, in_file, near_miss
from lorabuild.header import Header, TensorInfo
from lorabuild.lora.chopping import Blocks
from lorabuild.lora.layers import Layer, module_of, read_layers
from lorabuild.names import BLOCKS
from lorabuild.vectors import vector_strings
from lorabuild.verbs.common import SUFFIX, lora_header
from lorabuild.verbs.parser import Parser

HELP = """\
For each block: modules, tensors, bytes, ranks, and its share of what the file adds to the base (‖ΔW‖² without norms
and biases). Then the strings that keep these blocks: leave out of them what should go.

  lorabuild blocks big.safetensors
  lorabuild blocks ember          in a repository: the file that its chop reads; or ember@variant"""

HEADS = ("block", "modules", "tensors", "bytes", "rank median", "rank max", "share")
NO_BLOCK = "no block"
PLACES = (
    "Vectors name blocks by their place in the full network; Inspire-Pack's node counts only blocks that a file has: "
    "paste them for the unchopped file."
)

# Key of a string -> what it is called, with how many numbers it has, and the option of chop that takes it.
STRINGS = {
    "keep": ("keep list", "--keep"),
    "inspire": ("Inspire {}", "--vector"),
    "lbw20": ("LBW {}", "--vector"),
    "lbw12": ("LBW {}", "--vector"),
}


@dataclass(frozen=True)
class Row:
    """What a block holds; `share` is its part of ‖ΔW‖² of all layers, None for what has no layer. `block` None: in none."""

    block: str | None
    modules: int
    tensors: int
    bytes: int
    rank_median: float | None
    rank_max: int | None
    share: float | None


def parser() -> Parser:
    found = Parser(prog="lorabuild blocks", description=HELP)
    found.add_argument("file", metavar="FILE|NAME", help="a LoRA, .safetensors, or a project of this repository")
    found.add_argument("--json", action="store_true", help='the same as JSON; "block" is null for what is in no block')
    return found


def main(args: Sequence[str]) -> int:
    options = parser().parse_args(args)
    path = _found(options.file)
    header = lora_header(path)
    blocks = Blocks.read(header.tensors)
    *found, total = rows(path, header, blocks)
    strings = vector_strings(blocks.present) if blocks.present else {}
    if options.json:
        told = {"file": str(path), "blocks": [asdict(row) for row in found], **dict.fromkeys(STRINGS), **strings}
        print(json.dumps(told, indent=2))
        return 0
    print(f"{path}\n\n{_table(found, total)}\n")
    if strings:
        print(f"{_commands(path, strings)}\n\n{PLACES}")
    else:
        print("It has no block that a vector could name.")
    return 0


def _found(argument: str) -> Path:
    """The file `argument`, or what chop reads of the project, or project@variant, of that name."""
    path = Path(argument)
    if path.exists() and not path.is_dir():
        return path
    root = find_root(Path.cwd())
    built = _built(root / "build") if root else {}
    started = _started(root) if root and not built.get(argument) else {}
    if weights := built.get(argument) or started.get(argument):
        return Path(os.path.relpath(weights))
    if argument in built:
        raise JobError(f"{argument}: build/{argument}/ holds no LoRA yet: lorabuild build {argument}")
    if path.is_dir():
        return path  # for which lora_header has words
    raise JobError(f"{argument}: no such file or project{near_miss(argument, {**built, **started})}")


def _built(build: Path) -> dict[str, Path | None]:
    """Project, or project@variant -> the weights that its chop reads; None where there are none yet."""
    found: dict[str, Path | None] = {}
    for folder in sorted(folder for folder in build.glob("*") if folder.is_dir()):
        name, resized = folder.name, f"-resized{SUFFIX}"
        whole = (folder / f"{name}{resized}", folder / f"{name}{SUFFIX}")
        found[name] = next((file for file in whole if file.is_file()), None)
        for file in sorted(folder.glob(f"{name}-*{resized}")):
            found[f"{name}@{file.name.removeprefix(f'{name}-').removesuffix(resized)}"] = file
    return found


def _started(root: Path) -> dict[str, Path]:
    """Project, or project@variant, that resizes nothing -> the LoRA that it starts from."""
    from lorabuild.manifest import load
    from lorabuild.manifest.sources import source_path
    from lorabuild.manifest.targets import targets

    try:
        projects = load(root).projects
    except ConfigError:
        return {}  # a build tells what is wrong
    return {
        target: source
        for project in projects.values()
        if (source := source_path(project))
        for target, settings in targets(project)
        if not settings["resize"]
    }


def rows(path: Path, header: Header, blocks: Blocks) -> list[Row]:
    """A row for each block that the file has, in the network's order; what is in none; and all of it."""
    tensors = header.tensors
    with in_file(path):
        layers, _ = read_layers(tensors, header.metadata)
    squares = _squares(path, layers)
    whole = math.fsum(squares.values())
    parts: dict[str | None, list[str]] = {}
    for key, block in blocks.of.items():
        parts.setdefault(block, []).append(key)
    order = [block for block in (*BLOCKS, None) if block in parts]
    return [
        *(_row(block, parts[block], tensors, squares, whole) for block in order),
        _row("total", tensors, tensors, squares, whole),
    ]


def _row(
    name: str | None,
    keys: Collection[str],
    tensors: Mapping[str, TensorInfo],
    squares: Mapping[Layer, float],
    whole: float,
) -> Row:
    modules = {module_of(key) for key in keys}
    layers = [layer for layer in squares if layer.name in modules]
    ranks = [layer.rank for layer in layers if layer.rank]
    return Row(
        block=name,
        modules=len(modules),
        tensors=len(keys),
        bytes=sum(tensors[key].stop - tensors[key].start for key in keys),
        rank_median=median(ranks) if ranks else None,
        rank_max=max(ranks, default=None),
        share=math.fsum(squares[layer] for layer in layers) / whole if layers and whole else None,
    )


def _squares(path: Path, layers: Collection[Layer]) -> dict[Layer, float]:
    """‖ΔW‖² of each layer, one at a time. Raises JobError for tensors that do not fit together or are not finite."""
    use_threads(1)
    import numpy as np

    from lorabuild.nn.factors import read_factors, scale_of

    def square(layer: Layer, precision: str) -> float:
        return max(read_factors(path, layer, precision).square(), 0.0) * scale_of(path, layer) ** 2

    found = {}
    for layer in layers:
        with np.errstate(over="ignore", invalid="ignore"):
            found[layer] = square(layer, "float32")
            if not math.isfinite(found[layer]):
                found[layer] = square(layer, "float64")
    return found


def _table(rows: Sequence[Row], total: Row) -> str:
    lines = [HEADS, *(_cells(row) for row in (*rows, total))]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    form = "  ".join([f"{{:<{widths[0]}}}", *(f"{{:>{width}}}" for width in widths[1:])])
    return "\n".join(form.format(*line) for line in lines)


def _cells(row: Row) -> tuple[str, ...]:
    forms = ("{}", "{}", "{}", "{:,}", "{:g}", "{}", "{:.1%}")
    _, *cells = ["-" if cell is None else form.format(cell) for form, cell in zip(forms, astuple(row), strict=True)]
    return (row.block or NO_BLOCK, *cells)


def _commands(path: Path, strings: Mapping[str, str]) -> str:
    """A line for each string. As they stand, they keep all that the file has."""
    chop = f"lorabuild chop {shlex.quote(str(path))} -o OUT{SUFFIX}"
    titles = {key: title.format(strings[key].count(",") + 1) for key, (title, _) in STRINGS.items()}
    width = max(map(len, titles.values()))
    return "\n".join(f"{titles[key]:{width}}  {chop} {option} {strings[key]}" for key, (_, option) in STRINGS.items())
