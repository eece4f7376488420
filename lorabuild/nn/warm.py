"""Keep the networks that a job has loaded for the next job of this process, and let go of them when memory runs short."""

from __future__ import annotations

import gc
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch

from lorabuild.bases.layout import stored_bytes
from lorabuild.memory import short_of
from lorabuild.nn.present import HOST, give_back

_warm: dict[str, tuple[tuple[Any, ...], Any]] = {}  # component -> (digest and dtype, network): one of each at most


def kept(component: str, digest: str | None, dtype: torch.dtype, base: Path, load: Callable[[], Any]) -> Any:
    """The network of the component with this digest: found warm, or made by `load` from the file or folder `base`.

    With a digest it is kept warm. What is kept of another base goes before this one needs the memory, and all else if
    the memory would not hold it.
    """
    key = (digest, dtype)
    if digest is not None and component in _warm and _warm[component][0] == key:
        print(f"{component}: in memory already")  # to the job's log
        return _warm[component][1]
    _warm.pop(component, None)
    if _warm and short_of(need := loading_bytes(base, component)):
        print(f"{component}: memory is short of {need / 1e9:.1f} GB: {', '.join(_warm)} let go")
        forget()
    network = load().requires_grad_(False).eval()
    if digest is not None:
        keep(component, digest, dtype, network)
    return network


def keep(component: str, digest: str, dtype: torch.dtype, network: Any) -> None:
    """Keep a network that did not come by `kept`: one that is frozen and in evaluation mode."""
    _warm[component] = ((digest, dtype), network)


def forget() -> None:
    """Let go of all networks that are kept warm."""
    _warm.clear()
    gc.collect()


def make_way(wanted: Mapping[str, str]) -> None:
    """Let go of the networks in whose place a job needs others: component -> digest."""
    for component, digest in wanted.items():
        if component in _warm and _warm[component][0][0] != digest:
            del _warm[component]
    gc.collect()  # modules and their hooks refer to each other


def aside(but: Collection[str]) -> None:
    """Move what is kept to the host's memory, but for these components: a device is for what a job works with."""
    others = [network for component, (_, network) in _warm.items() if component not in but]
    for network in others:
        if (place := str(network.device)) != HOST:
            network.to(HOST)
            give_back(place)


def held() -> dict[str, int]:
    """Digest of each network that is kept -> the bytes that it takes."""
    return {key[0]: sum(map(_bytes, network.parameters())) for key, network in _warm.values()}


def loading_bytes(base: Path, component: str) -> int:
    """Memory that loading a component takes at most: from half to single precision it doubles."""
    return 2 * stored_bytes(base, component)


def _bytes(parameter: Any) -> int:
    return parameter.numel() * parameter.element_size()
