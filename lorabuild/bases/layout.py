"""Find the tensors of a base's component: in a single file, in a diffusers folder, or in a VAE that lies by itself."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from lorabuild.errors import JobError
from lorabuild.header import Header, TensorInfo, read_header

COMPONENTS_FILE = "components.json"  # the digests of a base that lorabuild made, beside its files
# Component -> its folder in a base of diffusers' layout.
FOLDERS = {
    "vae": "vae",
    "unet": "unet",
    "te1": "text_encoder",
    "te2": "text_encoder_2",
    "tokenizer1": "tokenizer",
    "tokenizer2": "tokenizer_2",
}
WEIGHT_FILES = ("model.safetensors", "diffusion_pytorch_model.safetensors")
# Of a folder that holds no plain file of weights: the precisions that diffusers has in names, the first that is there.
VARIANTS = ("fp16", "bf16", "fp32")

# Component -> what its tensors' names begin with in a single file of SGM's layout (Stability AI's generative-models).
PREFIXES = {
    "vae": "first_stage_model.",
    "unet": "model.diffusion_model.",
    "te1": "conditioner.embedders.0.transformer.",
    "te2": "conditioner.embedders.1.model.",
}
LATENT_CHANNELS = 4  # of SDXL's latents
# The text encoders' hidden states that SDXL is conditioned on, counted from the last: those before the last layer.
CLIP_SKIP = 2
# A VAE's own tensors, in a file of its own. Those of a training hold its loss, too.
_OF_A_VAE = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")
_DIFFUSERS_VAE = re.compile(r"(?:encoder\.down|decoder\.up)_blocks\.|(?:en|de)coder\.mid_block\.")


class Stored(NamedTuple):
    """Where a tensor lies."""

    path: Path
    info: TensorInfo


@dataclass(frozen=True)
class Part:
    """A component as it lies there: its tensors by their names without the component's prefix, and whose names they are.

    `config` is diffusers' description of the network, where there is one; `metadata` that of the single file.
    """

    place: Path  # the file or folder, for messages
    tensors: Mapping[str, Stored]
    sgm: bool
    config: Path | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        """Of all its tensors, as they are stored."""
        return sum(stored.info.stop - stored.info.start for stored in self.tensors.values())


def find_part(base: Path, component: str, header: Header | None = None) -> Part:
    """The tensors of "vae", "unet", "te1" or "te2" of the base at `base`; for "vae" it may be a VAE by itself, too.

    `header` is that of a single file, if it was read already. The set of weights `model_ema.*` is left out, and
    `position_ids` (0, 1, 2, … in older files). Raises JobError where the component is not there, and OSError.
    """
    if base.is_dir():
        folder = component_folder(base, component)
        return Part(folder, _counted(_of_files(weight_files(folder))), False, folder / "config.json")
    header = header or read_header(base)
    tensors = _counted({name: Stored(base, info) for name, info in header.tensors.items()})
    prefix = PREFIXES[component]
    inside = {name.removeprefix(prefix): one for name, one in tensors.items() if name.startswith(prefix)}
    if not inside and component == "vae":
        inside = {name: one for name, one in tensors.items() if name.startswith(_OF_A_VAE)}
    if not inside:
        raise JobError(f"{base}: not an SDXL checkpoint: no tensors {prefix}*")
    sgm = not any(map(_DIFFUSERS_VAE.match, inside))
    return Part(base, inside, sgm, None, header.metadata)


def stored_bytes(base: Path, component: str) -> int:
    """Bytes of a component's tensors as they are stored; 0 where nobody can say.

    It is asked for the memory's sake, before anything is loaded: what is wrong with a base is told where it is loaded.
    """
    try:
        return find_part(base, component).bytes
    except (JobError, OSError):
        return 0


def component_folder(base: Path, component: str) -> Path:
    """The folder of a component in a base of diffusers' layout; a VAE may lie in a folder of its own."""
    folder = base / FOLDERS[component]
    alone = component == "vae" and not folder.is_dir() and (base / "config.json").is_file()
    return base if alone else folder


def weight_files(folder: Path) -> list[Path]:
    """The files that hold a component's weights: one, or the shards that an index names. Raises JobError.

    Plain names go before those of a variant. Of two plain ones neither is taken: which of them counts?
    """
    plain = [folder / name for name in WEIGHT_FILES if (folder / name).is_file()]
    if len(plain) > 1:
        raise JobError(f"{folder}: holds {len(plain)} of {' and '.join(WEIGHT_FILES)}; one was expected")
    if plain:
        return plain
    for candidates in map(_named, ("", *VARIANTS)):
        for path in (folder / name for name in candidates):
            if path.is_file():
                return [path, *_shards(path)] if path.suffix == ".json" else [path]
    raise JobError(f"{folder}: holds none of {' and '.join(WEIGHT_FILES)}; one was expected")


def _named(variant: str) -> Iterator[str]:
    """How the weights of a variant may be called, whole or in shards: the libraries have two spellings of an index."""
    for name in WEIGHT_FILES:
        stem = name.removesuffix(".safetensors")
        middle = f".{variant}" if variant else ""
        yield f"{stem}{middle}.safetensors"
        yield f"{stem}{middle}.safetensors.index.json"
        yield f"{stem}.safetensors.index{middle}.json"


def _shards(index: Path) -> list[Path]:
    """The files that an index names. Raises JobError for an index that is none, and for a shard that is not there."""
    try:
        names = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
        paths = [index.parent / name for name in names]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise JobError(f'{index}: not an index of shards: it has no "weight_map"') from None
    for path in paths:
        if path.parent != index.parent or path.suffix != ".safetensors":
            raise JobError(f"{index}: names {path.name}, which is no .safetensors file beside it")
        if not path.is_file():
            raise JobError(f"{path}: not found; {index.name} names it")
    return paths


def _of_files(files: list[Path]) -> dict[str, Stored]:
    """All tensors of the files, but for an index. Raises JobError for a tensor that stands in two of them."""
    found: dict[str, Stored] = {}
    for path in files:
        if path.suffix == ".safetensors":
            tensors = {name: Stored(path, info) for name, info in read_header(path).tensors.items()}
            if twice := sorted(tensors.keys() & found.keys()):
                raise JobError(f"{path}: {twice[0]} stands in {found[twice[0]].path.name}, too")
            found |= tensors
    return found


def _counted(tensors: Mapping[str, Stored]) -> dict[str, Stored]:
    return {
        name: stored
        for name, stored in tensors.items()
        if not name.startswith("model_ema.") and not name.endswith("position_ids")
    }
