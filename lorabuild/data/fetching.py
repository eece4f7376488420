"""Fetch CLIP's merges once from the Hugging Face hub, by a user's word alone, and keep what is proven to be them."""

from __future__ import annotations

import http.client
import json
import os
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path

from lorabuild.data.tokenizers import REPOSITORY, holds_clip, kept_clip
from lorabuild.data.vocabulary import FILES, Vocabulary, is_clip, laid_out, parse_merges, spelled
from lorabuild.errors import JobError
from lorabuild.files import staged

HUB = "https://huggingface.co"  # HF_ENDPOINT names a mirror
PATIENCE_SECONDS = 20.0
MOST_BYTES = 4 << 20  # eight times what it has


def fetch_clip(environment: Mapping[str, str] | None = None) -> Path:
    """The folder with CLIP's vocab.json and merges.txt, fetched if it was not yet. Raises JobError where that does not go
    well.

    Only merges.txt is asked for: its sha256 is known, and the tokens follow from it.
    """
    environment = os.environ if environment is None else environment
    kept = kept_clip(environment)
    if kept.is_file() and holds_clip(kept):
        return kept.parent
    if environment.get("HF_HUB_OFFLINE", "").casefold() in ("1", "on", "yes", "true"):
        raise JobError("HF_HUB_OFFLINE is set: nothing is fetched")
    url = f"{(environment.get('HF_ENDPOINT') or HUB).rstrip('/')}/{REPOSITORY}/resolve/main/{FILES[1]}"
    data = _get(url)
    try:
        merges = parse_merges(data)
    except ValueError as error:
        raise JobError(f"{url}: {error}") from None
    if not is_clip(merges):
        raise JobError(f"{url}: what came ({len(data):,} bytes) is not CLIP's merges, and was not kept")
    ids = Vocabulary(laid_out(merges), merges).ids
    for name, content in zip(FILES, (json.dumps(ids, ensure_ascii=False).encode(), spelled(merges)), strict=True):
        with staged(kept.with_name(name), kept.parent) as part:
            part.write_bytes(content)
    return kept.parent


def _get(url: str) -> bytes:
    try:
        with urllib.request.urlopen(url, timeout=PATIENCE_SECONDS) as answer:
            return answer.read(MOST_BYTES)
    except (OSError, http.client.HTTPException, ValueError) as error:  # ValueError: not a URL
        why = error if isinstance(error, urllib.error.HTTPError) else getattr(error, "reason", error)
        raise JobError(f"{url}: cannot be fetched: {why}") from None
