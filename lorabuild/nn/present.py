"""Bring networks to the device for as long as they work there; what is of use now and then need not lie there all along."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

HOST = "cpu"


@contextmanager
def present(networks: Sequence[Any], device: str) -> Iterator[None]:
    """The networks on `device`, within a with block; afterwards each is where it was. Where it is there already: nothing."""
    elsewhere = [(network, network.device) for network in networks if network.device.type != device.partition(":")[0]]
    try:
        for network, _ in elsewhere:
            network.to(device)
        yield
    finally:
        for network, place in elsewhere:
            network.to(place)
        if elsewhere:
            give_back(device)


def give_back(device: str) -> None:
    """Let other processes, and larger blocks, have what the allocator keeps for what is gone from the device."""
    import torch

    if device.startswith("cuda"):
        torch.cuda.empty_cache()
