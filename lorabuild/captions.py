"""Read a caption file, and draw the wording that one training sample sees."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from random import Random
from typing import Any

from lorabuild.errors import JobError


def read_caption(data: bytes, shown: str) -> str:
    """The caption in a caption file's bytes: its first line, stripped; `shown` is what messages call the file.

    A byte-order mark is removed: it would be part of the first tag, often the trigger word. Raises JobError for a file
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
    return lines.partition("\n")[0].strip()


def draw_caption(caption: str, settings: Mapping[str, Any], random: Random) -> str:
    """The caption as one sample of an epoch sees it, by the rules of sd-scripts.

    With `shuffle_caption` the tags between `caption_separator`s are shuffled, but for the first `keep_tokens`, and
    joined by ", " whatever separated them; an empty tag is a tag. Without it the text stays as it is, and nothing is
    drawn from `random`.
    """
    caption = caption.partition("\n")[0]
    if not settings["shuffle_caption"]:
        return caption
    tags = [tag.strip() for tag in caption.split(settings["caption_separator"])]
    fixed, free = tags[: settings["keep_tokens"]], tags[settings["keep_tokens"] :]
    random.shuffle(free)
    return ", ".join(fixed + free)


def tag_counts(captions: Iterable[str]) -> Counter[str]:
    """How many captions hold each tag, as sd-scripts counts for a file's metadata: in lower case, commas between them."""
    return Counter(tag.strip().lower() for caption in captions for tag in caption.split(",") if tag.strip())
