"""Judge the file of prompts that [samples] names: can it be read, and is each prompt taken as it stands?"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from lorabuild.data.prompts import PromptFile, read_prompts
from lorabuild.errors import JobError
from lorabuild.findings import Finding, found, of_problems
from lorabuild.sampling.samples import too_long
from lorabuild.stage import TextFile

Counted = Callable[[Sequence[str]], list[int]]  # tokens of each text by the longer tokenizer; raises JobError


def prompt_findings(item: TextFile, place: tuple[str, int], counted: Counted) -> list[Finding]:
    """`place` is where the manifest names the file."""
    if not item.path.exists():
        file, line = place
        return [found("LB080", file, f"samples.prompts: {item.shown}: no such file", line)]
    try:
        prompts = read_prompts(item.path, item.shown)
    except JobError as error:
        return of_problems("LB080", error.problems)
    return [*of_problems("LB081", prompts.warnings), *_lengths(prompts, item.shown, counted)]


def _lengths(prompts: PromptFile, shown: str, counted: Counted) -> list[Finding]:
    texts = [(prompt.line, text) for prompt in prompts.prompts for text in (prompt.prompt, prompt.negative_prompt)]
    try:
        counts = counted([text for _, text in texts])
    except JobError:  # no tokenizers: told of the project's captions, or of its base
        return []
    return [
        found("LB082", shown, said, line)
        for (line, _), count in zip(texts, counts, strict=True)
        if (said := too_long([count]))
    ]
