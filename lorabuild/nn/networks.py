"""Build the networks of a base without weights, and fill them tensor by tensor from the file's byte ranges."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

from lorabuild.bases.configs import network_config
from lorabuild.bases.layout import Part
from lorabuild.errors import JobError
from lorabuild.header import FormatError
from lorabuild.lora.basefile import BaseWeight
from lorabuild.lora.sgm import find_weights

# A file's dtypes that can be weights -> torch's.
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
# Their weights are float32 at least, whatever the rest is in. Norms compute in float32 anyway, a few numbers take no room,
# and where an adapted layer stands before one, what it is given is float32: with weights of another dtype that is an error
# on a CPU.
NORMS, SINGLE = (nn.GroupNorm, nn.LayerNorm), torch.float32.itemsize
FEW = 3  # names that a message shows
_POSITIONS = "position_ids"  # 0, 1, 2, …: a buffer that no file needs to hold


def load_network(base: Path, component: str, dtype: torch.dtype, device: str = "cpu") -> Any:
    """The network "unet", "te1", "te2" or "vae" of the file or folder `base`, with weights of `dtype` on `device`.

    One tensor at a time is read, from its own bytes, and goes to the device: beside the network the host holds no more
    than the largest tensor. Raises JobError for weights that are missing, left over, misshapen or no floats.
    """
    network, weights = meta_network(base, component)
    state = {name: tensor for name, tensor in _tensors(network, weights, dtype, device)}
    for name, buffer in network.named_buffers():
        if name not in state:
            _fill(network, name, buffer, device)
    network.load_state_dict(state, assign=True)
    return network


def meta_network(base: Path, component: str) -> tuple[Any, dict[str, BaseWeight]]:
    """The network without its weights, on the meta device, and where each of them lies; only headers are read.

    Raises JobError for weights that are missing, left over or misshapen.
    """
    config, part = network_config(base, component)
    network = architecture(component, config, part.place)
    names = network.state_dict()
    weights, left = find_weights(component, part, names)
    missing = [name for name in names if name not in weights]
    if missing or left:
        raise JobError(_misfit(component, part, missing, left))
    for name, weight in weights.items():
        if not _fits(tuple(names[name].shape), weight):
            shapes = f"{list(weight.info.shape)}, not {list(names[name].shape)}"
            raise JobError(f"{_not_of(component, part)}: {weight.key} is of shape {shapes}")
    return network, weights


def architecture(component: str, config: Mapping[str, Any], place: Path | str) -> Any:
    """The network that a config describes, on the meta device. Raises JobError, for `place`, if it describes none."""
    try:
        with torch.device("meta"):
            return _built(component, dict(config))
    except Exception as error:  # the libraries' own, of many kinds
        said = " ".join(str(error).split())[:200]
        raise JobError(f"{place}: {component}: its configuration makes no network: {said}") from None


def _built(component: str, config: dict[str, Any]) -> Any:
    if component == "unet":
        from diffusers import UNet2DConditionModel

        return UNet2DConditionModel.from_config(config).requires_grad_(False)
    if component == "vae":
        from diffusers import AutoencoderKL

        return AutoencoderKL.from_config(config).requires_grad_(False)
    import transformers

    kind = transformers.CLIPTextModel if component == "te1" else transformers.CLIPTextModelWithProjection
    settings = config.get("text_config") or config  # of a whole CLIP's configuration its text's
    settings.pop("dtype", None)  # the weights say it
    return kind(transformers.CLIPTextConfig(**settings)).requires_grad_(False)


def _misfit(component: str, part: Part, missing: list[str], left: list[str]) -> str:
    """Which weights are missing and which are left over, the first few by name."""
    said = [
        f"{len(names)} {what}, such as {', '.join(names[:FEW])}"
        for what, names in (("missing", missing), ("unexpected", left))
        if names
    ]
    return f"{_not_of(component, part)}: {'; '.join(said)}"


def _not_of(component: str, part: Part) -> str:
    network = "its config.json" if part.config else f"SDXL's {component}"
    return f"{part.place}: not the weights of {network}"


def _fits(shape: tuple[int, ...], weight: BaseWeight) -> bool:
    """LDM's attention is made of 1×1 convolutions where diffusers has matrices."""
    stored = weight.shape
    return stored == shape or stored == (*shape, 1, 1)


def _tensors(
    network: nn.Module, weights: Mapping[str, BaseWeight], dtype: torch.dtype, device: str
) -> Iterator[tuple[str, Tensor]]:
    """Name -> weight on the device, in the order of the files, which is the fastest to read."""
    norms = {name for name, module in network.named_modules() if isinstance(module, NORMS)}
    shapes = {name: tensor.shape for name, tensor in network.state_dict().items()}
    with ExitStack() as stack:
        files: dict[Path, BinaryIO] = {}
        for name, weight in sorted(weights.items(), key=lambda item: (item[1].path, item[1].info.start)):
            if weight.path not in files:
                files[weight.path] = stack.enter_context(open(weight.path, "rb", buffering=0))
            tensor = _read(files[weight.path], weight).to(device, dtype).reshape(shapes[name])
            single = dtype.itemsize < SINGLE and name.rpartition(".")[0] in norms
            yield name, tensor.float() if single else tensor


def _read(file: BinaryIO, weight: BaseWeight) -> Tensor:
    """The tensor as it is stored, but for a transposed one. Raises JobError for no floats, FormatError at an early end."""
    info = weight.info
    if info.dtype not in DTYPES:
        expected = ", ".join(DTYPES)
        raise JobError(f"{weight.path}: {weight.key} has dtype {info.dtype}; one of {expected} was expected")
    tensor = torch.empty(info.shape, dtype=DTYPES[info.dtype])
    target = memoryview(tensor.reshape(-1).view(torch.uint8).numpy())
    file.seek(info.start)
    while target:
        count = file.readinto(target)
        if not count:
            raise FormatError(f"{weight.path}: truncated while {weight.key} was being read")
        target = target[count:]
    return tensor.T.contiguous() if weight.transposed else tensor


def _fill(network: nn.Module, name: str, buffer: Tensor, device: str) -> None:
    """Give a buffer that is in no file its numbers. Raises JobError for one that is not known."""
    if not name.endswith(_POSITIONS):
        raise JobError(f"{type(network).__name__}: {name}: a buffer that nothing fills")
    owner = network.get_submodule(name.rpartition(".")[0])
    owner.register_buffer(_POSITIONS, torch.arange(buffer.shape[-1], device=device)[None], persistent=False)
