"""Remember what a check found, so that the report can show it without looking at the images again."""

from __future__ import annotations

import json
from typing import Any

from lorabuild.checks.repository import Report
from lorabuild.state import State


def remember(report: Report, state: State, when: str) -> None:
    """Keep findings and lengths of captions of each project that was checked."""
    state.put_all({_key(name): json.dumps(_facts(report, name) | {"when": when}) for name in report.findings})


def remembered(state: State, project: str) -> dict[str, Any] | None:
    """{"when", "findings", "tokens"} of the last check; None if there was none of this project."""
    known = state.get(_key(project))
    return json.loads(known) if known else None


def _facts(report: Report, name: str) -> dict[str, Any]:
    checked = report.projects.get(name)
    tokens = sorted(checked.tokens.values()) if checked else []
    return {"findings": [one.facts for one in report.findings[name]], "tokens": tokens}


def _key(project: str) -> str:
    return f"checked:{project}"
