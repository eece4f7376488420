"""`lorabuild resize`: shrink any LoRA file against its base, by one recipe or several."""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import active_children, get_context, parent_process
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorabuild.ahead import cores, use_threads
from lorabuild.errors import UsageError, in_file
from lorabuild.header import Header, TensorInfo
from lorabuild.lora.amend import amended, remade
from lorabuild.lora.basefile import BaseWeight, base_weights
from lorabuild.lora.layers import Layer
from lorabuild.lora.lowrank import LowRank, common_alpha
from lorabuild.lora.match import resizable
from lorabuild.lora.ranks import parse_recipe, resolve_recipe
from lorabuild.lora.resizing import Ranks, Resize
from lorabuild.signals import held
from lorabuild.tensors import SAVE_DTYPES
from lorabuild.verbs.common import SUFFIX, NewFile, check_out, header_of, lora_header, megabytes, write_loras
from lorabuild.verbs.parser import Parser
from lorabuild.writing import header_bytes

if TYPE_CHECKING:
    import numpy as np

    from lorabuild.nn.spectra import Spectrum

REMEDY = "--allow-empty permits it"
CHUNK = 16  # weights that a process measures at a time

HELP = """\
Keeps of each layer the ranks that matter, by resize_lora's recipes. Terms: fro_ckpt spn_ckpt fro_lora
spn_lora subspace params (weights, divided by their sum). One selector: thr (log10 of the score), size
(MiB of the file, at most), sv_ratio, sv_fro, sv_cumulative (the layer's own singular values). Caps:
max_rank, max_conv_rank. rescale multiplies the effect.

  lorabuild resize big.safetensors --base sdxl.safetensors -r "fro_ckpt=1,thr=-3.55" -o small.safetensors
  lorabuild resize big.safetensors --base sdxl.safetensors -r "size=16:size=32" -o folder"""


def parser() -> Parser:
    found = Parser(prog="lorabuild resize", description=HELP)
    found.add_argument("file", metavar="FILE", type=Path, help="the LoRA, .safetensors")
    found.add_argument("--base", metavar="CKPT", type=Path, required=True, help="SDXL: one file, or a diffusers folder")
    found.add_argument(
        "-r", "--recipe", default="fro_ckpt=1,thr=-3.5", help="recipes, joined by ':' (default: %(default)s)"
    )
    found.add_argument(
        "-o", "--out", metavar="OUT", type=Path, required=True, help="the new file; of several recipes a folder"
    )
    found.add_argument(
        "--dtype", choices=list(SAVE_DTYPES), default="fp16", help="of the new tensors (default: %(default)s)"
    )
    found.add_argument("--allow-empty", action="store_true", help="a file without any tensor is not an error")
    return found


@dataclass(frozen=True)
class Opened:
    """A LoRA beside its base: the layers that are resized with the shapes of their weights, and what stays as it is."""

    path: Path
    header: Header
    known: Mapping[Layer, tuple[int, ...]]
    unknown: int
    passed: Mapping[str, TensorInfo]
    base: Mapping[str, BaseWeight]


def main(args: Sequence[str]) -> int:
    options = parser().parse_args(args)
    recipes = _recipes(options.recipe)
    outs = _outs(options.out, (options.file, options.base), list(recipes))
    start = time.monotonic()
    lora = _open(options.file, options.base)

    # One thread a process: faster than one product at a time over all cores.
    use_threads(1)
    spectra, resize = _measure(lora, recipes.values(), SAVE_DTYPES[options.dtype])
    chosen = {}
    for text, recipe in recipes.items():
        one = replace(resize, recipe=recipe | ({"allow_empty": True} if options.allow_empty else {}))
        metadata = _metadata(lora, one, outs[text].stem)
        with in_file(options.file):
            ranks = one.choose(lambda entries, metadata=metadata: len(header_bytes(entries, metadata)), REMEDY)
        chosen[text] = one, ranks
    with in_file(options.file):
        write_loras(*(_new_file(lora, one, ranks, spectra, outs[text]) for text, (one, ranks) in chosen.items()))
    for text, (one, ranks) in chosen.items():
        print(f"{outs[text]}: {_summary(lora, one, ranks, outs[text])}")
    print(f"{time.monotonic() - start:.1f} s")
    return 0


def _recipes(text: str) -> dict[str, dict[str, Any]]:
    """Each recipe of the argument, as it stands there, with its resolved form. Raises UsageError."""
    found: dict[str, dict[str, Any]] = {}
    for one in map(str.strip, text.split(":")):
        if not one:
            raise UsageError(f'-r "{text}": an empty recipe; a ":" stands between two')
        try:
            recipe = resolve_recipe(parse_recipe(one))
        except ValueError as error:
            raise UsageError(f'-r "{one}": {error}') from None
        if equal := [other for other in found if found[other] == recipe]:
            raise UsageError(f'-r "{text}": "{equal[0]}" and "{one}" are the same recipe')
        found[one] = recipe
    return found


def _outs(out: Path, sources: tuple[Path, Path], recipes: Sequence[str]) -> dict[str, Path]:
    """Recipe -> its file: `out` itself, or in the folder `out` a name made of the recipe."""
    if len(recipes) == 1 and not out.is_dir():
        return {recipes[0]: check_out(out, *sources)}
    if out.suffix == SUFFIX and not out.is_dir():
        raise UsageError(f"{out}: with several recipes the output is a folder")
    names = {one: re.sub(r"[^A-Za-z0-9.+-]+", "_", one.replace("=", "")) for one in recipes}
    return {one: check_out(out / f"{sources[0].stem}_{name}{SUFFIX}", *sources) for one, name in names.items()}


def _open(file: Path, base: Path) -> Opened:
    header = lora_header(file)
    if not base.is_dir():
        header_of(base)
    weights = base_weights(base)
    with in_file(file):
        known, unknown, passed = resizable(header, {name: weight.shape for name, weight in weights.items()})
    return Opened(file, header, known, len(unknown), passed, weights)


def _end_with_parent() -> None:
    """A process that measures ends when the one that it works for is killed: nobody else would tell it."""

    def watch() -> None:
        parent = parent_process()
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _measure(lora: Opened, recipes: Iterable[Mapping[str, Any]], dtype: str) -> tuple[dict[Layer, Spectrum], Resize]:
    """Singular values of all layers, and what the recipes weigh them against: no more of the base than they ask for."""
    from lorabuild.nn.factors import alpha_of
    from lorabuild.nn.norms import frobenius_norm, spectral_norm
    from lorabuild.nn.spectra import decompose_layers
    from lorabuild.nn.subspace import subspace

    terms = {term for recipe in recipes for term in recipe}
    weights = {layer: lora.base[layer.canonical] for layer in lora.known}
    with ProcessPoolExecutor(cores(), get_context("spawn"), _end_with_parent) as processes:
        try:
            with held():  # a Ctrl-C is for this process alone
                measured = [
                    processes.map(measure, weights.values(), chunksize=CHUNK) if term in terms else ()
                    for term, measure in (("fro_ckpt", frobenius_norm), ("spn_ckpt", spectral_norm))
                ]
            spectra = decompose_layers(lora.path, lora.known)
            norms = [dict(zip(lora.known, found, strict=False)) for found in measured]
        except BaseException:
            for process in active_children():  # nobody waits for the rest of the base
                process.kill()
            raise
    directions = {
        layer: subspace(lora.path, layer, spectra[layer], weight)
        for layer, weight in (weights.items() if "subspace" in terms else ())
    }
    names = {layer: LowRank.of(layer, shape) for layer, shape in lora.known.items()}
    references = {
        layer.name: name.references(spectra[layer].singular, *(found.get(layer) for found in (*norms, directions)))
        for layer, name in names.items()
    }
    alpha = common_alpha((alpha_of(lora.path, layer) for layer in lora.known), dtype)
    layers = {layer.name: name for layer, name in names.items()}
    return spectra, Resize(lora.path, layers, references, lora.passed, alpha, dtype)


def _new_file(lora: Opened, resize: Resize, ranks: Ranks, spectra: Mapping[Layer, Spectrum], out: Path) -> NewFile:
    from lorabuild.nn.spectra import vectors

    layers = {layer.name: layer for layer in lora.known}
    precision = "float64" if resize.dtype == "F32" else "float32"  # of products that are rounded to halves

    def found(name: str, kept: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        u, vh = vectors(lora.path, layers[name], spectra[layers[name]], kept, precision)
        return u.T.astype("f4", copy=False), vh.astype("f4", copy=False)

    return NewFile(out, resize.tensors(ranks, found), _metadata(lora, resize, out.stem))


def _metadata(lora: Opened, resize: Resize, name: str) -> dict[str, str]:
    facts = {"ss_network_dim": "Dynamic", "ss_network_alpha": resize.alpha, "lorabuild.resize": resize.recipe}
    return amended(remade(lora.header.metadata), name, facts)


def _summary(lora: Opened, resize: Resize, ranks: Ranks, out: Path) -> str:
    """One line: what stayed, what went, what was passed as it is."""
    notes = resize.notes(ranks)
    said = (
        f"{notes['layers']} of {len(resize.layers)} layers, {notes['ranks']} ranks, "
        f"{megabytes(out.stat().st_size)} of {megabytes(lora.header.size)}"
    )
    if notes["zero"]:
        said += f"; {notes['zero']} layers were never trained"
    if notes["passed"]:
        said += f"; {notes['passed']} tensors as they were"
    return said + (f" ({lora.unknown} layers are not in the base)" if lora.unknown else "")
