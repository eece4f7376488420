"""What our commands of doit share: errors in one line, exit codes, doit's database in memory."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from doit.cmdparse import CmdParseError
from doit.dependency import Dependency, JSONCodec, MD5Checker
from doit.exceptions import InvalidCommand

from lorabuild.errors import UsageError, UserError, told
from lorabuild.graph.books import Memory
from lorabuild.graph.tasks import engine, running
from lorabuild.progress import nobody_reads, open_streams
from lorabuild.session import selected
from lorabuild.signals import stopping
from lorabuild.workers.interrupts import EXIT_CODE


class Command:
    """Stands before a command of doit's among the bases. `writes`: it holds the lock; `builds`: it keeps a run log."""

    writes = builds = False

    def parse_execute(self, args: list[str]) -> int:
        running.writes, running.builds = self.writes, self.builds
        open_streams()
        try:
            with stopping(), running.held:  # also while it is closed: that waits for uploads
                try:
                    return super().parse_execute(args) or 0  # type: ignore[misc]  # the doit command beside us
                finally:
                    print(end="", flush=True)  # who reads it may have gone: better noticed here than when Python ends
        except UserError as error:
            complain(map(str, error.problems))
            return error.exit_code
        except (CmdParseError, InvalidCommand) as error:
            complain([" ".join(str(error).partition(" (parsing options")[0].split())])  # the rest is doit's own code
            return UsageError.exit_code
        except BrokenPipeError:
            return nobody_reads()
        except OSError as error:  # what no job is to blame for: a record cannot be written, say
            complain([told(error, Path.cwd())])
            return 1
        except KeyboardInterrupt:
            complain(["interrupted: what was finished is kept, a training goes on from its last state"])
            return EXIT_CODE
        finally:
            running.engine = running.wanted = None

    def execute(self, params: Any, args: list[str]) -> int:
        self.dep_manager = Dependency(Memory, "", checker_cls=MD5Checker, codec_cls=JSONCodec)
        return super().execute(params, args)  # type: ignore[misc]

    @staticmethod
    def jobs_of(names: Sequence[str]) -> list[str]:
        """The jobs that `names` stand for; the default ones if there are none. Raises UsageError with a near miss."""
        return selected(names, engine())


def complain(lines: Iterable[str]) -> None:
    """Mistakes and failures, a line each, where errors go."""
    for line in lines:
        sys.stderr.write(f"{line}\n")
