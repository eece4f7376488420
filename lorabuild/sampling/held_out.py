"""The held-out loss of the base, of what was trained and of each file made of it: how much of the gain a file keeps."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorabuild.errors import Interrupted, JobError
from lorabuild.hashing import canonical_json

if TYPE_CHECKING:
    from lorabuild.nn.base import Base
    from lorabuild.nn.held_out import Yardstick
    from lorabuild.workspace import Progress, Workspace

MEASURING = 1  # raised by hand when equal inputs should give another loss
NETWORKS = ("unet", "te1", "te2", "tokenizer1", "tokenizer2")  # of the base, that a loss hangs on
BASE, TRAINED = "base", "trained"
DIGITS = 6  # of a loss, as in train.jsonl


@dataclass
class Meter:
    """Measures the files of one job. Each loss is a piece; the base is loaded for the first that is not there yet.

    `told`: the job's parameters. `base` and `device` as of a Painter.
    """

    workspace: Workspace
    told: Mapping[str, Any]
    clip_skip: int
    base: Callable[[], Base]
    device: Callable[[], str]
    measured: int = 0
    _yardsticks: dict[str, Yardstick] = field(default_factory=dict)

    def all(self, files: Mapping[str, tuple[str, Path]], progress: Progress) -> dict[str, dict[str, Any]]:
        """What samples.json tells of the held-out loss. `files`: role -> digest and place, in their order.

        Raises JobError for a loss that is not finite, and Interrupted between two micro-batches.
        """
        trainings = ["", *self._others]
        of = {role: name for name, one in self._others.items() for role in one["files"]}
        wanted: list[tuple[str, str]] = [(_of(name, BASE), name) for name in trainings]
        wanted += [(role, of.get(role, "")) for role in files]
        losses: dict[str, float] = {}
        for number, (role, training) in enumerate(wanted):
            progress(number, len(wanted), f"held-out loss, {role}")
            losses[role] = self._loss(role, training, files.get(role))
        found = kept(losses, dict(wanted))
        for name in trainings:
            yardstick = self._yardstick(name)
            found[_of(name, BASE)] |= {"samples": yardstick.samples, "unseen": yardstick.unseen}
        return found

    @property
    def _others(self) -> Mapping[str, Any]:
        """Trainings beside the project's own, by their variant's name: `recipe`, `learns_text`, and `files`, the roles."""
        return self.told["held_out"].get("trainings", {})

    def _loss(self, role: str, training: str, file: tuple[str, Path] | None) -> float:
        yardstick, digests = self._yardstick(training), self.workspace.digests
        shapes = {"version": MEASURING, "weights": file and file[0], **yardstick.identity, "clip_skip": self.clip_skip}
        components = {name: digests[name] for name in NETWORKS}

        def make() -> bytes:
            from lorabuild.nn.applied import applied

            with applied(self.base(), file and file[1], self.device()):
                loss = yardstick.loss(self.base(), self.device(), self._stepped)
            if not math.isfinite(loss):
                raise JobError(f"the held-out loss of {role} is not finite ({loss})")
            self.measured += 1
            return canonical_json(float(f"{loss:.{DIGITS}g}"))

        return json.loads(self.workspace.piece({"piece": "held_out", **shapes, "base": components}, make)[0])

    def _yardstick(self, training: str) -> Yardstick:
        if training not in self._yardsticks:
            from lorabuild.nn.held_out import Yardstick

            dataset = json.loads(self.workspace.path("dataset").read_bytes())
            told = self._others.get(training, self.told["held_out"])
            predicts, latents = self.told["base"]["prediction_type"], self.workspace.path("latents")
            made = Yardstick.of(dataset, latents, told["recipe"], predicts, told["learns_text"])
            self._yardsticks[training] = made
        return self._yardsticks[training]

    def _stepped(self) -> None:
        if self.workspace.stopping():
            raise Interrupted("the held-out loss")


def kept(losses: Mapping[str, float], trainings: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Role -> `loss`; `gain`, the part of the base's loss by which it is less; of what was made of the trained file
    `kept`, which part of the training's gain that is: (base - x) / (base - trained). None where nothing was gained.

    `trainings`: role -> the variant whose training it comes from, empty for the project's own.
    """
    found: dict[str, dict[str, Any]] = {}
    for role, loss in losses.items():
        training = trainings[role]
        base, trained = losses[_of(training, BASE)], losses[_of(training, TRAINED)]
        found[role] = one = {"loss": loss}
        if role == _of(training, BASE):
            continue
        one["gain"] = round((base - loss) / base, 4)
        if role != _of(training, TRAINED):
            one["kept"] = round((base - loss) / (base - trained), 4) if trained < base else None
    return found


def read(path: Path) -> dict[str, dict[str, Any]] | None:
    """What a samples.json tells of the held-out loss; None if nothing, or if it is not there or is none."""
    try:
        found = json.loads(path.read_bytes())["held_out"]
        return found if all("loss" in one for one in found.values()) else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def lines(project: str, told: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """One for the project, and one for each variant:

    `ember: held-out loss 0.2188 (3 unseen pictures), trained 0.1595 (-27.1 %); resized keeps 96 %, chopped 71 %`
    """
    families: dict[str, dict[str, Mapping[str, Any]]] = {}
    for role, one in told.items():
        family, _, member = role.rpartition("/")
        families.setdefault(family, {})[member] = one
    return [_line(f"{project}@{name}" if name else project, family) for name, family in families.items()]


def _line(name: str, family: Mapping[str, Mapping[str, Any]]) -> str:
    parts = []
    if base := family.get(BASE):
        kind = "unseen pictures" if base["unseen"] else "samples of trained pictures"
        trained = family[TRAINED]
        loss, change = f"{base['loss']:.4f} ({base['samples']} {kind})", f"{0.0 - 100 * trained['gain']:+.1f} %"
        parts.append(f"held-out loss {loss}, trained {trained['loss']:.4f} ({change})")
    made = {member: one for member, one in family.items() if member not in (BASE, TRAINED)}
    keeping = {member: one["kept"] for member, one in made.items() if one["kept"] is not None}
    if len(keeping) < len(made):  # nothing was gained: there is nothing to be kept
        parts.append(", ".join(f"{member} {one['loss']:.4f}" for member, one in made.items()))
    elif made:
        said = [
            f"{member}{' keeps' * (not at)} {round(100 * one)} %" for at, (member, one) in enumerate(keeping.items())
        ]
        parts.append(", ".join(said))
    return f"{name}: {'; '.join(parts)}"


def _of(training: str, member: str) -> str:
    """The role of a training's base or trained file."""
    return f"{training}/{member}" if training else member
