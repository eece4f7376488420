"""`lorabuild export`: copies of LoRAs where other programs look for them, with what these read beside a file."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from lorabuild.cli import find_root
from lorabuild.errors import JobError, UsageError, UserError
from lorabuild.exporting.artifacts import ALL, STAGE_OF, STEP, Lora, any_file, of_projects
from lorabuild.exporting.delivery import Step, deliver, steps
from lorabuild.exporting.packages import LAYOUTS, Package, folder_of, package
from lorabuild.verbs.common import SUFFIX, megabytes, warn
from lorabuild.verbs.parser import Parser
from lorabuild.verbs.reading import reading

HELP = """\
Copies of LoRAs for other programs, with what these read beside a file: preview, description, trigger, model card.

  lorabuild export ember --to a1111 -o ~/forge         A1111 and Forge: its own folder, or that of its LoRAs
  lorabuild export ember --to comfy -o ~/ComfyUI
  lorabuild export 'style-*' --to diffusers -o out     a folder a LoRA, for pipeline.load_lora_weights
  lorabuild export ember --to folder --artifact all -o release
  lorabuild export any.safetensors --to diffusers -o out

[export] in lorabuild.local.toml makes -o needless: a1111 = "~/forge". What stands there already with the same bytes is
left; what was exported before from the same project is replaced; anything else is not, without --force."""

WORDS = {"written": "written", "replaced": "replaced", "there": "already there"}


def parser() -> Parser:
    found = Parser(prog="lorabuild export", description=HELP)
    found.add_argument(
        "names", nargs="+", metavar="NAME|FILE", help="projects, project@variant, globs, or any LoRA file"
    )
    found.add_argument("--to", choices=list(LAYOUTS), required=True, help="whom it is for")
    found.add_argument("-o", "--out", metavar="DIR", type=Path, help="the folder; made if it is not there")
    choices = f"{', '.join(STAGE_OF)}, {STEP}N or {ALL}"
    found.add_argument("--artifact", metavar="WHICH", help=f"{choices}; the first of these that the project makes")
    found.add_argument("--variant", metavar="V", help="that of this variant")
    found.add_argument("--as", metavar="NAME", dest="rename", help="another name, in the file's metadata, too")
    found.add_argument("--weight", type=float, default=0.0, metavar="W", help="the preferred weight, for prompts")
    found.add_argument("--force", action="store_true", help="replace whatever stands there")
    found.add_argument("--dry-run", action="store_true", help="tell what would be written, and write nothing")
    found.add_argument("--json", action="store_true", help="the same as JSON (docs/commands.md)")
    return found


def main(args: Sequence[str]) -> int:
    options = parser().parse_args(args)
    if not math.isfinite(options.weight):
        raise UsageError(f"--weight {options.weight}: expected a number, as in 0.8")
    loras = _loras(options)
    if options.rename and len(loras) > 1:
        raise UsageError(f"--as {options.rename}: names one LoRA, and there are {len(loras)}")
    folder = folder_of(options.to, _folder(options.to, options.out))
    with TemporaryDirectory() as scratch:
        packages = list(_packages(loras, options, folder, Path(scratch)))
        _no_two_alike(packages)
        plans = _plans(packages, options.force)
        for text in (text for one in packages for text in (*_stale(one.lora), *one.warnings)):
            warn(text)
        if not options.dry_run:
            deliver(plans)
    if options.json:
        exported = [_facts(one, plan) for one, plan in zip(packages, plans, strict=True)]
        print(json.dumps({"to": options.to, "dry_run": options.dry_run, "exported": exported}, indent=2))
        return 0
    for one, plan in zip(packages, plans, strict=True):
        print(_line(one, plan, options.dry_run))
    return 0


def _loras(options: Any) -> list[Lora]:
    """What is to be exported, each once: files as they are named, then what projects have built."""
    files = [name for name in options.names if name.endswith(SUFFIX) or Path(name).is_file()]
    names = [name for name in options.names if name not in files]
    if files and not names and (options.artifact or options.variant):
        said = "--artifact" if options.artifact else "--variant"
        raise UsageError(f"{files[0]}: a file, which has no {said.removeprefix('--')}s: {said} is for projects")
    loras = [any_file(name) for name in dict.fromkeys(map(Path, files))]
    with reading() if names else nullcontext() as engine:
        return loras + (of_projects(engine, names, options.artifact, options.variant) if engine else [])


def _folder(to: str, out: Path | None) -> Path:
    """-o, or what [export] says. Raises UsageError without either, or for what is no folder."""
    if out is not None:
        if out.exists() and not out.is_dir():
            raise UsageError(f"-o {out}: is a file; a folder was expected")
        return out
    root = find_root(Path.cwd())
    configured = _configured(root).get(to) if root else None
    if root is None or configured is None:
        raise UsageError(f'say where to: -o DIR, or [export] {to} = "DIR" in lorabuild.local.toml')
    folder = root / os.path.expanduser(configured)
    if not folder.is_dir():  # whoever names it once and for all means one that is there
        raise UsageError(f"[export] {to}: {folder}: no such folder")
    return folder


def _configured(root: Path) -> dict[str, str]:
    from lorabuild.manifest import load

    return dict(load(root, skip=lambda manifest: True).export)


def _packages(loras: Iterable[Lora], options: Any, folder: Path, scratch: Path) -> Iterator[Package]:
    for number, lora in enumerate(loras):
        own = scratch / str(number)
        own.mkdir()
        yield package(lora, options.to, folder, options.rename, options.weight, own)


def _no_two_alike(packages: Iterable[Package]) -> None:
    first: dict[Path, Package] = {}
    for one in packages:
        if (other := first.setdefault(one.path, one)) is not one:
            raise UsageError(
                f"{one.path}: would be both {other.lora.path} and {one.lora.path}: export one at a time, --as NAME"
            )


def _plans(packages: Iterable[Package], force: bool) -> list[list[Step]]:
    """What is to be done for each. Raises JobError with all that stands in the way."""
    plans, problems = [], []
    for one in packages:
        try:
            plans.append(steps(one, force))
        except UserError as error:
            problems += error.problems
    if problems:
        raise JobError(*problems)
    return plans


def _stale(lora: Lora) -> Iterator[str]:
    if lora.stale:
        name = lora.path.name
        yield f"{name}: exported as it was built last; a build would change it, or might: {'; '.join(lora.stale)}"


def _line(one: Package, plan: Sequence[Step], dry: bool) -> str:
    """One LoRA: what became of its file, and of what stands beside it."""
    *others, weights = plan
    word = WORDS[weights.action] if weights.action == "there" or not dry else f"would be {WORDS[weights.action]}"
    line = f"{one.path}: {word}, {megabytes(one.size)}"
    if beside := [step.path.name for step in others if step.action != "kept"]:
        line += f"; beside it {', '.join(beside)}"
    if kept := [step.path.name for step in others if step.action == "kept"]:
        line += f"; kept as somebody has changed it: {', '.join(kept)}"
    return line


def _facts(one: Package, plan: Sequence[Step]) -> dict[str, Any]:
    """An object of --json."""
    lora = one.lora
    return {
        "name": one.folder.name if one.weights.startswith("pytorch") else Path(one.weights).stem,
        "project": lora.project,
        "artifact": lora.artifact,
        "source": str(lora.path),
        "sha256": one.sha256,
        "stale": list(lora.stale),
        "warnings": list(one.warnings),
        "files": [{"path": str(step.path), "action": step.action} for step in reversed(plan)],
    }
