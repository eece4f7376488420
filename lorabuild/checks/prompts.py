"""Judge the file of prompts that [samples] names: can it be read, and is each prompt taken as it stands?"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from lorabuild.data.prompts import PromptFile, read_prompts
from lorabuild.errors import JobError
from lorabuild.findings import Finding, found, of_problems
from lorabuild.sampling.samples import too_long
from lorabuild.stage import TextFile

Counted = Callable[[Sequence[str]], list[int]]  # tokens of each text by the longer tokenizer; raises JobError


def prompt_findings(item: TextFile, place: tuple[str, int], counted: Counted, processes: int = 1) -> list[Finding]:
    """`place` is where the manifest names the file; `processes`: how many train while it is drawn."""
    if not item.path.exists():
        file, line = place
        return [found("LB080", file, f"samples.prompts: {item.shown}: no such file", line)]
    try:
        prompts = read_prompts(item.path, item.shown)
    except JobError as error:
        return of_problems("LB080", error.problems)
    waiting = list(_waiting(len(prompts.prompts), processes, *place))
    return [*of_problems("LB081", prompts.warnings), *_lengths(prompts, item.shown, counted), *waiting]


def _waiting(prompts: int, processes: int, file: str, line: int) -> Iterator[Finding]:
    """sd-scripts deals prompts to its processes; here the first draws them all."""
    if processes > 1 and prompts:
        pictures = f"{prompts} prompt{'s' * (prompts > 1)}"
        said = f"samples.prompts: {pictures} ÷ {processes} processes: one draws, {processes - 1} wait for it each time"
        yield found("LB083", file, said, line)


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
