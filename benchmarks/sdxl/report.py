"""Put the figures of a run together, for machines and for RESULTS.md."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from typing import Any

import torch

from sdxl.inputs import Prepared
from sdxl.ours import GB, Measured
from sdxl.peer import Timed

RATIO = "images a second over the peer's"
MEMORY_RATIO = "peak memory over the peer's"
AIMS = {RATIO: "≥ 1.5", "utilisation": "≥ 45 %", "the whole recipe": "< 4 min"}
TINY_SAID = "tiny widths"  # of which nothing is wanted but that they run
CPU = "a CPU: these figures say that it runs, not how fast it is"


def report(
    ours: Measured, prepared: Prepared, flops: tuple[int, int], peak: float, weights_bytes: int,
    latents_memory: Mapping[str, float], peer: Timed | None, settings: str,
) -> dict[str, Any]:  # fmt: skip
    """All figures, as plain values. `flops` are (base's, adapter's) of a micro-batch; `peak` is the device's, a second."""
    recipe = prepared.recipe
    base, adapter = (part * recipe["gradient_accumulation_steps"] for part in flops)
    steps = recipe["max_train_steps"]
    found: dict[str, Any] = {
        "device": device_name(),
        "torch": torch.__version__,
        "settings": settings,
        "images an update": ours.images,
        "images a second": ours.images_a_second,
        "update, s": ours.update_s,
        "updates, s": ours.updates,
        "outside forward and backward, s": ours.outside_s,
        "outside, part of an update": ours.outside_s / ours.update_s,
        "first update, s": ours.first_s,
        "the whole recipe, s": ours.first_s + (steps - 1) * ours.update_s,
        "updates of the recipe": steps,
        "peak memory, GB": ours.memory,
        "weights of the base, GB": weights_bytes / GB,
        "TFLOP an update, base": base / 1e12,
        "TFLOP an update, adapter": adapter / 1e12,
        "measured peak, TFLOP/s": peak / 1e12,
        "utilisation": (base + adapter) / ours.update_s / peak,
        "utilisation, base alone": base / ours.update_s / peak,
        "latents a second": prepared.views / prepared.latents_s,
        "peak memory of latents, GB": dict(latents_memory),
    }
    if peer:
        found["peer"] = {
            "images a second": peer.images_a_second,
            "update, s": peer.update_s,
            "updates, s": peer.updates,
            "first update, s": peer.first_s,
            "the whole recipe, s": peer.first_s + (steps - 1) * peer.update_s,
            "peak memory, GB": peer.memory,
            "versions": peer.versions,
            "utilisation, base alone": base / peer.update_s / peak,
        }
        found[RATIO] = ours.images_a_second / peer.images_a_second
        found[MEMORY_RATIO] = {kind: ours.memory[kind] / peer.memory[kind] for kind in ours.memory}
    return found


def device_name() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else f"{platform.machine()}, {CPU}"


def table(found: Mapping[str, Any]) -> str:
    """For RESULTS.md: ours, and beside it the peer's and the ratio where it ran."""
    peer, aims = found.get("peer"), {} if found["settings"].startswith(TINY_SAID) else AIMS
    said = [f"{found['device']}, torch {found['torch']}; {found['settings']}."]
    if peer:
        said += ["Peer: " + ", ".join(f"{name} {version}" for name, version in peer["versions"].items()) + "."]
    columns = ["", "ours", *(["peer", "ours / peer"] if peer else []), *(["wanted"] if aims else [])]
    theirs = _rows(peer) if peer else {}
    rows = [
        {"": label, "ours": value, "peer": theirs.get(label), "ours / peer": _ratio(found, label)}
        for label, value in _rows(found).items()
    ]
    if peer:
        rows.append({"": RATIO, "ours / peer": f"**{found[RATIO]:.2f}**"})
    cells = [[row.get(column) or aims.get(row[""], "") * (column == "wanted") for column in columns] for row in rows]
    return "\n".join([*said, "", *(f"| {' | '.join(row)} |" for row in [columns, ["---"] * len(columns), *cells])])


def _rows(found: Mapping[str, Any]) -> dict[str, str]:
    """What ours and the peer both have, and what ours alone has."""
    rows = {
        "images a second": _number(found["images a second"]),
        "an update": f"{_number(found['update, s'])} s",
        "the first update": f"{_number(found['first update, s'])} s",
        "the whole recipe": _time(found["the whole recipe, s"]),
    }
    for kind, gigabytes in found["peak memory, GB"].items():
        rows[f"peak memory, {kind}"] = f"{gigabytes:.2f} GB"
    rows["utilisation of the base's products alone"] = f"{found['utilisation, base alone']:.1%}"
    if "utilisation" not in found:
        return rows
    whole = found["TFLOP an update, base"] + found["TFLOP an update, adapter"]
    return rows | {
        "utilisation": f"{found['utilisation']:.1%}",
        "outside forward and backward": f"{found['outside, part of an update']:.1%}",
        "products of an update": f"{_number(whole)} TFLOP, {found['TFLOP an update, adapter'] / whole:.0%} the adapter's",
        "the device's measured peak": f"{_number(found['measured peak, TFLOP/s'])} TFLOP/s",
        "weights of the base": f"{_number(found['weights of the base, GB'])} GB",
        "latents a second": _number(found["latents a second"]),
    }


def _ratio(found: Mapping[str, Any], label: str) -> str:
    """Of what there is one of, where both sides have it."""
    kind = label.removeprefix("peak memory, ")
    return f"{found[MEMORY_RATIO][kind]:.2f}" if MEMORY_RATIO in found and kind != label else ""


def _number(value: float) -> str:
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def _time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"
