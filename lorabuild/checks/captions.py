"""Judge captions: empty ones, tags that stand twice, the trigger, and how many tokens there are."""

from __future__ import annotations

import re
from collections.abc import Iterator

from lorabuild.checks.files import Entry
from lorabuild.findings import Finding, found


def caption_findings(entry: Entry, separator: str, trigger: str | None) -> Iterator[Finding]:
    """What is to be said of the words of a caption. One that cannot be read has been told of before."""
    if entry.caption is None:
        return
    if not entry.text:
        yield found("LB052", entry.caption, "empty", 1)
        return
    for tag in doubled(entry.text, separator):
        yield found("LB053", entry.caption, f'"{tag}" stands twice', 1)
    if trigger and not holds(entry.text, trigger):
        yield found("LB054", entry.caption, f'the trigger "{trigger}" is not in it', 1)


def doubled(text: str, separator: str) -> list[str]:
    """Tags that stand more than once, in their order, as they are written the second time; case does not count."""
    seen: set[str] = set()
    twice: dict[str, str] = {}
    for tag in (part.strip() for part in text.split(separator)):
        folded = tag.casefold()
        if folded in seen:
            twice.setdefault(folded, tag)
        if folded:
            seen.add(folded)
    return list(twice.values())


def holds(text: str, word: str) -> bool:
    """Does the word, or the words, stand in the text by themselves? Case does not count."""
    return re.search(rf"(?<!\w){re.escape(word.strip().casefold())}(?!\w)", text.casefold()) is not None


def too_long(entry: Entry, tokens: int, limit: int) -> Iterator[Finding]:
    """`tokens` is the count of the longer of both tokenizers, without start and end."""
    if tokens > limit:
        said = f"{tokens} tokens, {tokens - limit} more than max_token_length {limit}: they are cut off"
        yield found("LB055", entry.caption or entry.shown, said, 1)
