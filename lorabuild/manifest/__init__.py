"""Read a repository's TOML files: every project with its settings complete, or every mistake with its place."""

from lorabuild.manifest.repository import Memo, Project, Repository, load

__all__ = ["Memo", "Project", "Repository", "load"]
