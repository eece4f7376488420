"""What loaders have in common: the namings and kinds of adapters that one knows, and the rules by which it judges a file."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Literal

from lorabuild.lora.modules import KINDS, OF_ANY_KIND, LoraFile, Module
from lorabuild.lora.sdxl_names import known_modules

Loads = Literal["yes", "partly", "no"]


@dataclass(frozen=True)
class Finding:
    """A flaw of a file in a loader's eyes, and the keys that are lost by it."""

    loads: Loads
    reason: str
    keys: tuple[str, ...] = ()


Rule = Callable[["Loader", LoraFile], Iterator[Finding]]


@dataclass(frozen=True)
class Loader:
    """`namings` are of NAMINGS, `kinds` of KINDS; the rules stand in the order in which they strike."""

    name: str
    namings: tuple[str, ...]
    kinds: tuple[str, ...]
    rules: tuple[Rule, ...]
    note: Callable[[LoraFile], str] = lambda file: ""

    def unmatched(self, file: LoraFile) -> tuple[str, ...]:
        """Keys that mean nothing to it: of a layer that it does not know, or of a kind that it does not take."""
        known = known_modules(self.namings)
        found = []
        for name, module in file.modules.items():
            kinds = [KINDS[kind] for kind in self.kinds if KINDS[kind].fits(module)] if name in known else []
            taken = {*OF_ANY_KIND, *(suffix for kind in kinds for suffix in kind.suffixes)} if name in known else ()
            found += [name + suffix for suffix in module if suffix not in taken]
        return tuple(found)


def half_pairs(loader: Loader, file: LoraFile) -> Iterator[Finding]:
    """An up without its down, or a factor without the others, is an error for all. A down alone means nothing to most."""
    kinds = [KINDS[kind] for kind in loader.kinds]
    yield from incomplete(file, lambda module: any(kind.fits(module) and not kind.whole(module) for kind in kinds))


def incomplete(file: LoraFile, lacks: Callable[[Module], bool]) -> Iterator[Finding]:
    if halves := [name for name, module in file.modules.items() if lacks(module)]:
        yield Finding("no", f"a module lacks one of its matrices: {shown(halves)}", file.keys_of(halves))


def ignores_unknown(loader: Loader, file: LoraFile) -> Iterator[Finding]:
    """What a loader does not know, it leaves out, and goes on."""
    unmatched, count = loader.unmatched(file), len(file.keys_of())
    if unmatched and len(unmatched) == count:
        yield Finding("no", f"it knows none of the keys: {shown(unmatched)}", unmatched)
    elif unmatched:
        yield Finding("partly", f"{len(unmatched):,} of {count:,} keys are ignored: {shown(unmatched)}", unmatched)


def shown(names: Collection[str]) -> str:
    """The first of them, and how many more there are."""
    return next(iter(names)) + (f" and {len(names) - 1:,} more" if len(names) > 1 else "")
