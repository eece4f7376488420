"""Hand our jobs to doit, which orders and selects them; the only package that imports doit.

doit finds here what a repository's dodo.py and pyproject.toml name: the tasks, and each command by its class.
"""

from lorabuild.graph.books import DOIT_CONFIG
from lorabuild.graph.commands import COMMANDS, REFUSED, main
from lorabuild.graph.tasks import task_lorabuild

globals().update({command.__name__: command for command in COMMANDS.values()})

__all__ = ["COMMANDS", "DOIT_CONFIG", "REFUSED", "main", "task_lorabuild"]
