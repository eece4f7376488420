"""Hands lorabuild's tasks to doit."""

from lorabuild.graph import DOIT_CONFIG, task_lorabuild  # noqa: F401
