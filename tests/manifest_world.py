"""Little repositories of TOML files only: write some, load them, look at settings or mistakes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lorabuild.errors import ConfigError, Problem
from lorabuild.manifest import Memo, Project, load

GOOD = """\
[project]
base = "tiny"
[[dataset.subset]]
image_dir = "images"
"""


class Files:
    """A repository in a folder of its own."""

    def __init__(self, root: Path):
        self.root = root

    def write(self, name: str, content: str | bytes) -> str:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return name

    def project(self, content: str = "", name: str = "ember", memo: Memo | None = None) -> Project:
        """The project that a manifest with these lines gives; they come after a good beginning unless they have one."""
        whole = content if "[project]" in content else GOOD + content
        self.write(f"projects/{name}/lora.toml", whole)
        return load(self.root, memo).projects[name]

    def settings(self, content: str = "", **changes: Any) -> dict[str, Any]:
        return self.project(content, **changes).settings

    def mistakes(self) -> list[Problem]:
        """What is wrong with the repository; fails if nothing is."""
        with pytest.raises(ConfigError) as caught:
            load(self.root)
        assert caught.value.exit_code == 3
        return caught.value.problems
