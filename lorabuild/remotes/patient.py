"""A shared folder that may be away for minutes: who needs it to go on at all asks it again and again."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from lorabuild.remotes.transport import Answer, Folder, Refused, Unreachable

PATIENCE_SECONDS = 600.0  # a store that restarts, or asks for less haste, is back by then
TOLD_SECONDS = 60.0  # between two words about it
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0  # seconds; each is twice the one before


class PatientFolder(Folder):
    """As its base, but Unreachable is raised after PATIENCE_SECONDS, or as soon as `left()`. `told` hears of it now and then.

    Refused is raised at once.
    """

    def __init__(self, url: str, told: Callable[[str], None] = lambda text: None, left: Callable[[], bool] = bool):
        super().__init__(url)
        self._told, self._left = told, left
        self._said = float("-inf")

    def _tried(self, work: Callable[[Any, str], Answer], size: int = 0) -> Answer:
        until, pause = time.monotonic() + PATIENCE_SECONDS, FIRST_PAUSE
        while True:
            try:
                return super()._tried(work, size)
            except Refused:
                raise
            except Unreachable as error:
                if time.monotonic() + pause > until or self._left():
                    raise
                if time.monotonic() - self._said > TOLD_SECONDS:
                    self._said = time.monotonic()
                    self._told(f"{self.url}: {error}; it is asked again")
            self._pause(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    def _pause(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end and not self._left():
            time.sleep(0.1)
