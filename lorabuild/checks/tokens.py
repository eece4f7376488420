"""Count the tokens of texts by both CLIP tokenizers of a base, without torch and without its weights."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lorabuild.components import FOLDERS, component_digests
from lorabuild.data.tokenizers import find_vocabulary
from lorabuild.data.vocabulary import read_vocabulary
from lorabuild.errors import JobError
from lorabuild.hashing import digest_json
from lorabuild.state import State

COUNTING = 1  # raised by hand when equal texts should have other counts
NAMES = ("tokenizer1", "tokenizer2")


def token_counts(
    base: Mapping[str, Any], path: Path | None, texts: Sequence[str], state: State, dirs: Sequence[Path] = ()
) -> list[int]:
    """For each text, how many tokens the tokenizer that makes more of it makes, without start and end.

    `base` is its table in lorabuild.toml, `path` where it lies (None for a built-in one, whose tokenizers are known
    before it is generated); those of a single file are looked for in `dirs`, too. Raises JobError, in words for the
    user, where there are no tokenizers.
    """
    identity = _identity(base, path)
    key = f"check tokens {digest_json([COUNTING, version('transformers'), identity, list(texts)])}"
    if (known := state.get(key)) is not None:
        return json.loads(known)
    counts = _counted(path, texts, dirs)
    state.put(key, json.dumps(counts))
    return counts


def _identity(base: Mapping[str, Any], path: Path | None) -> Any:
    if path is None:
        from lorabuild import __version__

        return [base["builtin"], __version__]
    return list(component_digests(path, NAMES).values())


def _counted(path: Path | None, texts: Sequence[str], dirs: Sequence[Path]) -> list[int]:
    if not texts:
        return []
    counts = []
    for tokenizer in _tokenizers(path, dirs):
        rows = tokenizer(list(texts), add_special_tokens=False, truncation=False).input_ids
        counts.append([len(row) for row in rows])
    return [max(both) for both in zip(*counts, strict=True)]


def _tokenizers(path: Path | None, dirs: Sequence[Path]) -> list[Any]:
    """CLIPTokenizers, each different one once."""
    import transformers

    transformers.utils.logging.set_verbosity_error()  # it warns of each text that is too long for its model
    if path is None:
        from lorabuild.nn.tokenizer import vocabulary

        tokens, merges = vocabulary()
        return [transformers.CLIPTokenizer(vocab=tokens, merges=merges)]  # both are the same one
    if path.is_file():
        found = read_vocabulary(find_vocabulary(path, dirs))
        return [transformers.CLIPTokenizer(vocab=found.ids, merges=list(found.merges))]  # likewise
    try:
        return [
            transformers.CLIPTokenizer.from_pretrained(path / FOLDERS[name], local_files_only=True) for name in NAMES
        ]
    except Exception as error:  # the library's own, of many kinds
        raise JobError(f"{path}: its tokenizers cannot be read: {' '.join(str(error).split())[:200]}") from None
