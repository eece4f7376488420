"""The command `lorabuild`: doit's verbs and ours, from any folder of a repository."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

from lorabuild import __version__
from lorabuild.names import REPOSITORY_VERBS

USAGE = """\
lorabuild: make for LoRAs

  lorabuild init [DIR]         make a folder a repository; adds what is missing, overwrites nothing
  lorabuild new NAME           a project: --images DIR, --from RECIPE or project, --base, --kind, --trigger
  lorabuild set NAME KEY=VALUE edit a manifest in place: resize.thr=-3.2, chop.keep=TE,OUT01

  lorabuild build [TARGET …]   build what is stale; a target is a project, a stage or stage:project
                               -n 4 (jobs at once)  --continue (after a failure)  -a (build anew)
  lorabuild list [--all]       the targets
  lorabuild clean [TARGET …]   remove files in build/; the next build restores them
  lorabuild forget TARGET      drop what was built, so that it is built again
  lorabuild verify [NAME …]    read store and build/ anew: what is damaged, missing or edited
  lorabuild gc [--yes]         free what no manifest, git ref or pin names
  lorabuild diff A B           two projects, two commits (HEAD~3:ember ember), or two files
  lorabuild pull [NAME …]      restore artifacts by lora.lock, without the data set
  lorabuild push [NAME …]      upload what the remote store lacks
  lorabuild export NAME --to P copies for a1111, comfy or diffusers, or a folder with a model card; of any LoRA file, too

  lorabuild import FILE        an sd-scripts command, config or data set, or a LoRA's metadata -> a manifest (anywhere)

  lorabuild check [NAME …]     manifests, images, captions, tokens, buckets, adapter: all that is wrong, at once
  lorabuild explain CODE       what a finding means, and what helps
  lorabuild doctor             the installation: packages, GPU, disk, bases, tokenizers, remote store (anywhere)
  lorabuild plan [TARGET …]    what a build would do, why, how long; exit code 1 if anything is stale
  lorabuild why TARGET         the value that makes it stale, with its file and line
  lorabuild status             projects and stages at a glance
  lorabuild report             pages to look at, build/report/index.html, of what stands there; `doit report` builds first

  lorabuild schema [KIND]      JSON Schemas of the TOML files, for editors
  lorabuild completion SHELL   a script for bash, zsh or fish that completes all this

In a repository, `doit` is `lorabuild build`, and `doit VERB` is `lorabuild VERB`.

Any LoRA file, without a repository (each has --help):

  lorabuild resize FILE --base CKPT -r RECIPE -o OUT        keep the ranks that matter
  lorabuild chop FILE --keep TE,OUT01 -o OUT                keep, scale or drop blocks; or --vector "1,0,…"
  lorabuild merge A:0.7 B:0.3 -o OUT                        add LoRAs up, exactly
  lorabuild blocks FILE                                     what each block holds, with ready-made vectors
  lorabuild show FILE                                       header, metadata, hashes, what loads it"""

DOIT_VERBS = ("build", "run", "list", "clean", "forget")  # doit's, in our form; in a repository
FILE_VERBS = ("resize", "chop", "merge", "show")
# `doit report` is a target: it builds first.
VERBS = (
    *FILE_VERBS,
    "report",
    "completion",
    "schema",
    *REPOSITORY_VERBS,
)  # a module each in verbs/, with main(args) -> exit code


def main() -> None:
    """Entry point of the console script."""
    sys.exit(_main(sys.argv[1:]))


def _main(args: list[str]) -> int:
    if not args or args[0] in ("-h", "--help", "help"):
        return _told(partial(_usage, 0 if args else 2))
    if args[0] == "--version":
        print(__version__)
        return 0
    if args[0] == "_complete":  # asked at each press of Tab
        from lorabuild.completing.candidates import main as complete

        return complete(args[1:])
    from lorabuild.errors import near_miss

    if args[0] in VERBS:
        return run_verb(args[0], args[1:])
    if args[0] not in DOIT_VERBS:
        sys.stderr.write(f"{args[0]}: no such command{near_miss(args[0], (*DOIT_VERBS, *VERBS))}\n")
        return 2
    root = find_root(Path.cwd())
    if root is None:
        sys.stderr.write(
            "no repository here or above: no folder holds lorabuild.toml or projects/*/lora.toml (`lorabuild init` makes one)\n"
        )
        return 2
    from lorabuild.graph import main as run

    return run(["run" if args[0] == "build" else args[0], *args[1:]], root)


def run_verb(verb: str, args: list[str]) -> int:
    """Run a verb of ours: a mistake is one line, never a traceback."""
    return _told(partial(_verb, verb, args))


def _usage(code: int) -> int:
    print(USAGE)
    return code


def _verb(verb: str, args: list[str]) -> int:
    from importlib import import_module

    for stream in filter(None, (sys.stdout, sys.stderr)):  # a terminal that has no Unicode gets what it can show
        stream.reconfigure(errors="backslashreplace")
    return import_module(f"lorabuild.verbs.{verb}").main(args)


def _told(run: Callable[[], int]) -> int:
    """What `run` returns: a mistake is one line and a signal a word, never a traceback."""
    from lorabuild.errors import UserError
    from lorabuild.progress import nobody_reads, open_streams
    from lorabuild.signals import Stopped, stopping

    open_streams()

    try:
        with stopping():
            try:
                return run()
            finally:
                print(end="", flush=True)  # who reads it may have gone: better noticed here than when Python ends
    except UserError as error:
        sys.stderr.writelines(f"{problem}\n" for problem in error.problems)
        return error.exit_code
    except BrokenPipeError:
        return nobody_reads()
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        sys.stderr.write(f"{where}{error.strerror or error}\n")
        return 1
    except KeyboardInterrupt as stopped:
        with suppress(OSError):  # after a hang-up there may be nobody to tell
            sys.stderr.write("interrupted\n")
        return stopped.exit_code if isinstance(stopped, Stopped) else 130


def find_root(folder: Path) -> Path | None:
    """The nearest folder, from `folder` upwards, that holds lorabuild.toml or projects with manifests."""
    for one in (folder, *folder.parents):
        if (one / "lorabuild.toml").is_file() or any(one.glob("projects/*/lora.toml")):
            return one
    return None
