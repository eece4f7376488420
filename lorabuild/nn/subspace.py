"""Measure how much a base already uses the directions of a LoRA's ranks: resize_lora's score `subspace`."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lorabuild.lora.basefile import BaseWeight
from lorabuild.lora.layers import Layer
from lorabuild.nn.spectra import Spectrum, vectors
from lorabuild.tensors import read_tensor


def subspace(path: Path, layer: Layer, spectrum: Spectrum, base: BaseWeight) -> np.ndarray:
    """|u_iᵀ W v_i| [P] of every rank i of `layer`, W [O, J] the base's weight: resize_lora, README "Score types"."""
    u, vh = vectors(path, layer, spectrum, np.arange(len(spectrum.singular)))
    weight = read_tensor(base.path, base.key, base.info)
    weight = weight.T if base.transposed else weight.reshape(len(weight), -1)
    return np.abs(np.einsum("or,or->r", u.astype("f4"), weight @ vh.T.astype("f4"))).astype("f8")
