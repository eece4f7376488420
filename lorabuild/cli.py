"""The command `lorabuild`: doit's verbs and ours, from any folder of a repository."""

from __future__ import annotations

import sys
from pathlib import Path

from lorabuild import __version__

USAGE = """\
lorabuild: make for LoRAs

  lorabuild build [TARGET …]   build what is stale; a target is a project, a stage or stage:project
                               -n 4 (jobs at once)  --continue (after a failure)  -a (build anew)
  lorabuild list [--all]       the targets
  lorabuild clean [TARGET …]   remove files in build/; the next build restores them
  lorabuild forget TARGET      drop what was built, so that it is built again

In a repository, `doit` is `lorabuild build`, and `doit VERB` is `lorabuild VERB`."""

VERBS = ("build", "run", "list", "clean", "forget")


def main() -> None:
    """Entry point of the console script."""
    sys.exit(_main(sys.argv[1:]))


def _main(args: list[str]) -> int:
    if not args or args[0] in ("-h", "--help", "help"):
        print(USAGE)
        return 0 if args else 2
    if args[0] == "--version":
        print(__version__)
        return 0
    from lorabuild.errors import near_miss

    if args[0] not in VERBS:
        sys.stderr.write(f"{args[0]}: no such command{near_miss(args[0], VERBS)}\n")
        return 2
    root = find_root(Path.cwd())
    if root is None:
        sys.stderr.write("no repository here or above: no folder holds lorabuild.toml or projects/*/lora.toml\n")
        return 2
    from lorabuild.graph import main as run

    return run(["run" if args[0] == "build" else args[0], *args[1:]], root)


def find_root(folder: Path) -> Path | None:
    """The nearest folder, from `folder` upwards, that holds lorabuild.toml or projects with manifests."""
    for one in (folder, *folder.parents):
        if (one / "lorabuild.toml").is_file() or any(one.glob("projects/*/lora.toml")):
            return one
    return None
