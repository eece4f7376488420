"""Read a caption file, and draw the wording that one training sample sees."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from math import floor
from random import Random
from typing import Any

from lorabuild.errors import JobError

# The settings of a data set that draw_caption reads, and their defaults.
DRAWN: dict[str, Any] = {
    "shuffle_caption": False,
    "keep_tokens": 0,
    "keep_tokens_separator": "",
    "caption_separator": ",",
    "secondary_separator": "",
    "caption_prefix": "",
    "caption_suffix": "",
    "caption_dropout_rate": 0.0,
    "caption_dropout_every_n_epochs": 0,
    "caption_tag_dropout_rate": 0.0,
    "enable_wildcard": False,
    "token_warmup_min": 1,
    "token_warmup_step": 0,
}
_OPEN, _CLOSE = "\0<", "\0>"  # stand for {{ and }}: no caption holds a zero character


def read_caption(data: bytes, shown: str, every_line: bool = False) -> str:
    """The caption in a caption file's bytes: its first line, stripped; `shown` is what messages call the file.

    With `every_line` it is all lines that are not blank, each stripped: wildcards draw one of them. A byte-order mark is removed: it would be part of the first tag, often the trigger word. Raises JobError for a file
    that is not UTF-8, with the offset of the offending byte.
    """
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        kind = "looks like UTF-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else f"byte 0x{data[error.start]:02x}"
        raise JobError(f"{shown}: not UTF-8 ({kind} at offset {error.start}): save it as UTF-8") from None
    if "\0" in text:
        offset = data.index(b"\0")
        raise JobError(f"{shown}: not UTF-8 text (a zero byte at offset {offset}, UTF-16?): save it as UTF-8")
    lines = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    if every_line:
        return "\n".join(line.strip() for line in lines.split("\n") if line.strip())
    return lines.partition("\n")[0].strip()


def draw_caption(
    caption: str, settings: Mapping[str, Any], random: Random, epoch: int = 0, update: int = 0, updates: int = 0
) -> str:
    """The caption as one sample of `epoch` (from 0) sees it in `update` (from 0) of `updates`, by sd-scripts' rules.

    In this order: caption_prefix and caption_suffix with a space; the whole caption dropped; with enable_wildcard one
    of its lines and one part of each {a|b}, else its first line; tags shuffled and dropped; secondary_separator made
    caption_separator. From `random` is drawn only what is asked for, so that without any of it the text stays as it is.
    """
    said = DRAWN | settings
    caption = f"{said['caption_prefix']} {caption}" if said["caption_prefix"] else caption
    caption = f"{caption} {said['caption_suffix']}" if said["caption_suffix"] else caption
    every = said["caption_dropout_every_n_epochs"]
    if said["caption_dropout_rate"] > 0 and random.random() < said["caption_dropout_rate"]:
        return ""
    if every and (epoch + 1) % every == 0:
        return ""
    caption = _wildcards(caption, random) if said["enable_wildcard"] else caption.partition("\n")[0]
    if said["shuffle_caption"] or said["token_warmup_step"] or said["caption_tag_dropout_rate"]:
        caption = ", ".join(_tags(caption, said, random, update, updates))
    if said["secondary_separator"]:
        caption = caption.replace(said["secondary_separator"], said["caption_separator"])
    return caption


def _wildcards(caption: str, random: Random) -> str:
    """One line, and one of the parts of each {a|b|c} in it; {{ and }} are braces."""
    lines = caption.split("\n")
    line = random.choice(lines) if len(lines) > 1 else caption
    line = line.replace("{{", _OPEN).replace("}}", _CLOSE)
    line = re.sub(r"\{([^}]+)\}", lambda found: random.choice(found[1].split("|")), line)
    return line.replace(_OPEN, "{").replace(_CLOSE, "}")


def _tags(caption: str, said: Mapping[str, Any], random: Random, update: int, updates: int) -> list[str]:
    """The tags of a caption, of which those that are free to move are cut by the warm-up, then shuffled, then dropped.

    Fixed are the first keep_tokens, or what stands before keep_tokens_separator and after a second one. An empty tag is
    a tag, but where that separator is used.
    """

    def split(text: str) -> list[str]:
        return [tag.strip() for tag in text.split(said["caption_separator"])]

    bar = said["keep_tokens_separator"]
    if bar and bar in caption:
        parts = [[tag for tag in split(part) if tag] for part in caption.split(bar, 2)]
        fixed, free, last = [*parts, []][:3]
    else:
        tags, last = split(caption.strip()), []
        fixed, free = tags[: said["keep_tokens"]], tags[said["keep_tokens"] :]
    warmup = said["token_warmup_step"]
    warmup = floor(warmup * updates) if warmup < 1 else warmup
    if update < warmup:
        least = said["token_warmup_min"]
        free = free[: floor(update * ((len(free) - least) / warmup)) + least]
    if said["shuffle_caption"]:
        random.shuffle(free)
    if rate := said["caption_tag_dropout_rate"]:
        free = [tag for tag in free if random.random() >= rate]
    return fixed + free + last


def tag_counts(captions: Iterable[str]) -> Counter[str]:
    """How many captions hold each tag, as sd-scripts counts for a file's metadata: in lower case, commas between them."""
    return Counter(tag.strip().lower() for caption in captions for tag in caption.split(",") if tag.strip())
