"""What a word on the command line may become: names of this repository, found without opening it, within a blink."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

MOST_READ = 50  # manifests that are looked into for variants at one press of a key

_VARIANT = re.compile(r"^\s*\[\s*variants\.([a-z0-9_-]+)", re.M)
_BASE = re.compile(r"^\s*\[\s*bases\.([a-z0-9_-]+)", re.M)


def candidates(kind: str, word: str, root: Path | None) -> list[str]:
    """All of a kind that begin with `word`; none for a kind that there is not, and outside a repository few."""
    find = KINDS.get(kind)
    return [one for one in dict.fromkeys(find(word, root)) if one.startswith(word)] if find else []


def projects(word: str, root: Path | None) -> Iterator[str]:
    return map(_name, _manifests(root))


def targets(word: str, root: Path | None) -> Iterator[str]:
    """Stages and projects; once a stage is begun, `stage:project` too, and after an @ its variants."""
    from lorabuild.names import STAGES

    yield from STAGES
    yield "report"
    yield from projects(word, root)
    if not word:
        return
    of_base = [f"{stage}:{base}" for stage in ("base", "norms") for base in bases(word, root)]
    yield from of_base
    manifests = list(_manifests(root))
    begun = [stage for stage in STAGES if f"{stage}:".startswith(word) or word.startswith(f"{stage}:")]
    for stage in begun:
        yield from (f"{stage}:{_name(one)}" for one in manifests if stage not in ("base", "norms"))
    stage, _, name = word.partition(":")
    if stage in ("train", "resize", "chop", "spectrum", "samples") and name:
        meant = [one for one in manifests if _name(one).startswith(name.partition("@")[0])]
        for one in meant[:MOST_READ]:
            content = _text(one)
            found = [*_VARIANT.findall(content), *_swept(content, stage)]
            yield from (f"{stage}:{_name(one)}@{variant}" for variant in found)


def blocks(word: str, root: Path | None) -> Iterator[str]:
    """The last of a list with commas; a `!` before it stays."""
    from lorabuild.names import BLOCKS

    before, comma, last = word.rpartition(",")
    sign = "!" if last.startswith("!") else ""
    given = set(before.split(","))
    return (f"{before}{comma}{sign}{block}" for block in ("TE", *BLOCKS) if f"{sign}{block}" not in given)


def recipes(word: str, root: Path | None) -> Iterator[str]:
    """Those of the repository, those that come with lorabuild, and projects: `new --from` takes all of them."""
    here = Path(__file__).resolve().parents[1]
    for folder in (root, here, here.parent):
        if folder is not None:
            yield from sorted(path.stem for path in (folder / "recipes").glob("*.toml"))
    yield from projects(word, root)


def bases(word: str, root: Path | None) -> Iterator[str]:
    yield "tiny"
    for name in ("lorabuild.toml", "lorabuild.local.toml"):
        yield from _BASE.findall(_text(root / name)) if root else ()


def codes(word: str, root: Path | None) -> Iterator[str]:
    from lorabuild.findings import CODES

    return iter(CODES)


# What a verb's help calls a value -> what it may be. What is not here is a file, or words of the user's own.
KINDS: dict[str, Callable[[str, Path | None], Iterator[str]]] = {
    "projects": projects,
    "targets": targets,
    "blocks": blocks,
    "recipes": recipes,
    "bases": bases,
    "codes": codes,
}


def _manifests(root: Path | None) -> Iterator[Path]:
    """Every lora.toml, in order. Folders of images, which have no folders in them, cost a look each."""
    for folder, below, files in os.walk(root / "projects") if root else ():
        below.sort()
        if "lora.toml" in files:
            yield Path(folder, "lora.toml")


def _name(manifest: Path) -> str:
    return manifest.parent.name


def _swept(content: str, stage: str) -> list[str]:
    """The names of the jobs of a stage that a manifest's own [matrix] makes, whether or not the rest of it is right."""
    if "matrix" not in content:
        return []
    import tomllib

    from lorabuild.manifest.layers import Layer
    from lorabuild.manifest.matrix import axes, part_name, points
    from lorabuild.manifest.merge import merge
    from lorabuild.manifest.targets import PARTS

    try:
        tomllib.loads(content)
    except ValueError:  # who presses Tab may be in the middle of it
        return []
    found, problems = axes(merge([Layer(Path(), Path("lora.toml"), content.encode())]))
    names = (part_name(point, PARTS.get(stage, ())) for point in (points(found) if not problems else ()))
    return [name for name in dict.fromkeys(names) if name]


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def main(args: Sequence[str]) -> int:
    """`lorabuild _complete KIND WORD`, which the scripts call: a line a candidate, and whatever happens no complaint."""
    from lorabuild.cli import find_root

    try:
        print("\n".join(candidates(args[0], args[1] if len(args) > 1 else "", find_root(Path.cwd()))))
    except (OSError, IndexError):
        pass  # who presses Tab is at a line of their own: nothing may stand in it
    return 0
