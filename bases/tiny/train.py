"""Train the base that draws: `python bases/tiny/train.py` runs all stages; one that was stopped goes on."""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import fields
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2])]

from toy.stages import BY_DEFAULT, STAGES, Settings  # noqa: E402
from toy.unet import Cure  # noqa: E402


def main(arguments: list[str] | None = None) -> None:
    """Run stages in their order. Raises SystemExit where a stage lacks another's result, or the gate is not passed."""
    import torch

    chosen = _parser().parse_args(arguments)
    if strange := set(chosen.stages) - STAGES.keys():
        raise SystemExit(f"{', '.join(sorted(strange))}: not a stage; there are {', '.join(STAGES)}")
    torch.set_num_threads(chosen.threads)
    given = {field.name: getattr(chosen, field.name) for field in fields(Settings) if hasattr(chosen, field.name)}
    cure = Cure(**{field.name: getattr(chosen, field.name) for field in fields(Cure)})
    settings = Settings(**given, cure=cure)
    settings.folder.mkdir(parents=True, exist_ok=True)
    for name, stage in STAGES.items():
        if name in (chosen.stages or BY_DEFAULT):
            stage(settings, _log)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("stages", nargs="*", metavar="STAGE", help=f"of {', '.join(STAGES)}; from vae on all if none")
    parser.add_argument("--folder", type=Path, default=Path("build/tiny-drawing"))
    parser.add_argument("--threads", type=int, default=2, help="more than one only on a quiet machine")
    for field in (*fields(Settings), *fields(Cure)):
        if isinstance(field.default, (int, float, str)):
            _add(parser, field.name, field.default)
    return parser


def _add(parser: argparse.ArgumentParser, name: str, default: Any) -> None:
    parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default)


def _log(line: str) -> None:
    print(time.strftime("%H:%M:%S"), line, flush=True)


if __name__ == "__main__":
    main()
