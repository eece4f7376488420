"""`lorabuild resize`: shrink any LoRA file against its base, by one recipe or several."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorabuild.ahead import ahead, cores
from lorabuild.errors import JobError, UsageError
from lorabuild.header import Header, Tensor, TensorInfo, byte_size, header_bytes
from lorabuild.lora.amend import amended
from lorabuild.lora.basefile import BaseWeight, base_weights
from lorabuild.lora.layers import Layer, module_of, read_layers
from lorabuild.lora.lowrank import LowRank, common_alpha, entries_of, halves, lowrank_tensors
from lorabuild.lora.match import matched
from lorabuild.lora.ranks import References, choose, nothing_left, parse_recipe, resolve_recipe
from lorabuild.verbs.common import DTYPES, SUFFIX, Parser, check_out, header_of, megabytes, write_lora

if TYPE_CHECKING:
    import numpy as np

    from lorabuild.nn.spectra import Spectrum

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
        "--dtype", choices=list(DTYPES), default="fp16", help="of the new tensors (default: %(default)s)"
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
    outs = _outs(options.out, options.file, list(recipes))
    start = time.monotonic()
    lora = _open(options.file, options.base)

    os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"))
    with ThreadPoolExecutor(cores()) as pool:  # one thread each is faster than one product at a time over all cores
        spectra, references = _measure(lora, recipes.values(), pool)
        chosen = {
            text: _Choice.make(lora, recipe, references, DTYPES[options.dtype]) for text, recipe in recipes.items()
        }
        for text, choice in chosen.items():
            if not choice.is_left and not options.allow_empty:
                raise JobError(f"{options.file}: {nothing_left(recipes[text], references)} (--allow-empty permits it)")
        for text, choice in chosen.items():
            choice.write(outs[text], text, spectra, pool)
            print(f"{outs[text]}: {choice.summary(outs[text])}")
    print(f"{time.monotonic() - start:.1f} s")
    return 0


def _recipes(text: str) -> dict[str, dict[str, Any]]:
    """Each recipe of the argument, as it stands there, with its resolved form. Raises UsageError."""
    found = {}
    for one in text.split(":"):
        try:
            found[one.strip()] = resolve_recipe(parse_recipe(one))
        except ValueError as error:
            raise UsageError(f'-r "{one}": {error}') from None
    return found


def _outs(out: Path, file: Path, recipes: Sequence[str]) -> dict[str, Path]:
    """Recipe -> its file: `out` itself, or in the folder `out` a name made of the recipe."""
    if len(recipes) == 1 and not out.is_dir():
        return {recipes[0]: check_out(out, file)}
    if out.suffix == SUFFIX and not out.is_dir():
        raise UsageError(f"{out}: with several recipes the output is a folder")
    return {
        one: out / f"{file.stem}_{re.sub(r'[^A-Za-z0-9.+-]+', '_', one.replace('=', ''))}{SUFFIX}" for one in recipes
    }


def _open(file: Path, base: Path) -> Opened:
    header = header_of(file)
    layers, passed = read_layers(header.tensors)
    if not base.is_dir():
        header_of(base)
    weights = base_weights(base)
    known, unknown = matched(layers, {name: weight.shape for name, weight in weights.items()})
    passed |= {key: layer.infos[role] for layer in unknown for role, key in layer.keys.items()}
    return Opened(file, header, known, len(unknown), passed, weights)


def _measure(lora: Opened, recipes: Any, pool: Executor) -> tuple[dict[Layer, Spectrum], dict[str, References]]:
    """Singular values of all layers, and what the recipes weigh them against: no more of the base than they ask for."""
    from lorabuild.nn.norms import frobenius_norm, spectral_norm
    from lorabuild.nn.spectra import decompose_layers
    from lorabuild.nn.subspace import subspace

    terms = {term for recipe in recipes for term in recipe}
    weights = {layer: lora.base[layer.canonical] for layer in lora.known}
    with ProcessPoolExecutor(cores(), get_context("spawn")) as processes:
        frobenius = processes.map(frobenius_norm, weights.values(), chunksize=CHUNK) if "fro_ckpt" in terms else ()
        spectral = processes.map(spectral_norm, weights.values(), chunksize=CHUNK) if "spn_ckpt" in terms else ()
        spectra = decompose_layers(lora.path, lora.known)
        norms = [dict(zip(lora.known, found, strict=False)) for found in (frobenius, spectral)]
    directions = (
        pool.map(lambda layer: subspace(lora.path, layer, spectra[layer], weights[layer]), lora.known)
        if "subspace" in terms
        else ()
    )
    by_layer = [*norms, dict(zip(lora.known, directions, strict=False))]
    return spectra, {
        layer.name: LowRank.of(layer, shape).references(
            spectra[layer].singular, *(found.get(layer) for found in by_layer)
        )
        for layer, shape in lora.known.items()
    }


@dataclass(frozen=True)
class _Choice:
    """What one recipe keeps."""

    lora: Opened
    recipe: Mapping[str, Any]
    ranks: Mapping[str, np.ndarray]
    alpha: float
    dtype: str

    @staticmethod
    def make(lora: Opened, recipe: Mapping[str, Any], references: Mapping[str, References], dtype: str) -> _Choice:
        from lorabuild.nn.factors import alpha_of

        alpha = common_alpha((alpha_of(lora.path, layer) for layer in lora.known), dtype)
        choice = _Choice(lora, recipe, {}, alpha, dtype)
        return _Choice(lora, recipe, choose(recipe, references, choice.size), alpha, dtype)

    @property
    def is_left(self) -> bool:
        return any(len(ranks) for ranks in self.ranks.values()) or bool(self.passed)

    @property
    def passed(self) -> dict[str, TensorInfo]:
        """Tensors that stay as they are: all that is in no resized layer, but for what belongs to one that is gone."""
        return {key: info for key, info in self.lora.passed.items() if len(self.ranks.get(module_of(key), "1"))}

    def size(self, counts: Mapping[str, int]) -> int:
        """Bytes of the file with so many ranks of each layer."""
        kept = entries_of([(key, info) for key, info in self.lora.passed.items() if counts.get(module_of(key), 1)])
        for layer, shape in self.lora.known.items():
            kept += LowRank.of(layer, shape).entries(counts.get(layer.name, 0), self.dtype)
        return len(header_bytes(kept, self.metadata("", "0" * 64))) + sum(
            byte_size(dtype, shape) for _, dtype, shape in kept
        )

    def metadata(self, name: str, sha256: str) -> dict[str, str]:
        facts = {"ss_network_dim": "Dynamic", "ss_network_alpha": self.alpha, "lorabuild.resize": self.recipe}
        return amended(self.lora.header.metadata, name, sha256, facts)

    def write(self, out: Path, text: str, spectra: Mapping[Layer, Spectrum], pool: Executor) -> None:
        from lorabuild.stages.spectrum import verbatim

        body: list[Tensor] = list(verbatim(self.lora.path, self.passed))
        kept = sorted((layer for layer in self.lora.known if len(self.ranks[layer.name])), key=lambda one: one.name)
        names = [LowRank.of(layer, self.lora.known[layer]) for layer in kept]
        jobs = [partial(self._halves, layer, spectra[layer]) for layer in kept]
        made = ahead(pool, jobs, [one.numbers(len(self.ranks[one.name])) for one in names])
        for one, pair in zip(names, made, strict=True):
            body += lowrank_tensors(one, len(self.ranks[one.name]), pair, self.alpha, self.dtype)
        write_lora(out, body, partial(self.metadata, out.stem))

    def _halves(self, layer: Layer, spectrum: Spectrum) -> tuple[np.ndarray, np.ndarray]:
        """up and down of the ranks that stay. For halves the products are in float32."""
        from lorabuild.nn.spectra import vectors

        ranks, precision = self.ranks[layer.name], "float64" if self.dtype == "F32" else "float32"

        def found() -> tuple[np.ndarray, np.ndarray]:
            u, vh = vectors(self.lora.path, layer, spectrum, ranks, precision)
            return u.T.astype("f4", copy=False), vh.astype("f4", copy=False)

        strengths = spectrum.singular[ranks] * self.recipe.get("rescale", 1.0)
        return halves(LowRank.of(layer, self.lora.known[layer]), strengths, found, self.alpha, self.dtype)

    def summary(self, out: Path) -> str:
        """One line: what stayed, what went, what was passed as it is."""
        left = sum(bool(len(ranks)) for ranks in self.ranks.values())
        ranks = sum(len(ranks) for ranks in self.ranks.values())
        before, after = self.lora.header.size, out.stat().st_size
        said = f"{left} of {len(self.ranks)} layers, {ranks} ranks, {megabytes(after)} of {megabytes(before)}"
        if self.passed:
            said += f"; {len(self.passed)} tensors as they were"
        return said + (f" ({self.lora.unknown} layers are not in the base)" if self.lora.unknown else "")
