"""Judge captions: empty ones, tags that stand twice, the trigger, and how many tokens there are."""

from __future__ import annotations

import re
from collections.abc import Iterator
from random import Random

from lorabuild.checks.files import Entry
from lorabuild.data.captions import draw_caption
from lorabuild.findings import Finding, found

# Settings that leave nothing of a caption to chance, and all of it there.
CERTAIN = {
    "shuffle_caption": False,
    "caption_dropout_rate": 0.0,
    "caption_dropout_every_n_epochs": 0,
    "caption_tag_dropout_rate": 0.0,
    "token_warmup_step": 0,
    "enable_wildcard": False,
}


def seen_texts(entry: Entry) -> list[str]:
    """The caption as training sees it, nothing dropped or left to chance.

    With wildcards it is a text for each line, with the longest part of each {a|b}.
    """
    settings, lines = {**entry.settings, **CERTAIN}, [entry.text]
    if entry.settings.get("enable_wildcard"):
        longest = re.sub(r"\{([^}]+)\}", lambda part: max(part[1].split("|"), key=len), entry.text)
        lines = longest.split("\n")
    return [draw_caption(line, settings, Random(0)) for line in lines]


def caption_findings(entry: Entry, trigger: str | None) -> Iterator[Finding]:
    """What is to be said of the words of a caption. One that cannot be read has been told of before."""
    if entry.caption is None:
        return
    if not entry.text:
        yield found("LB052", entry.caption, "empty", 1)
        return
    texts = seen_texts(entry)
    for tag in doubled(texts[0], entry.settings["caption_separator"]) if len(texts) == 1 else ():
        yield found("LB053", entry.caption, f'"{tag}" stands twice', 1)
    if trigger and not entry.settings.get("is_reg") and not all(holds(text, trigger) for text in texts):
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
