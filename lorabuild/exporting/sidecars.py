"""What stands beside a LoRA for other programs, told from the file's own metadata: card, user metadata, trigger."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from lorabuild.header import Header
from lorabuild.lora.chopping import Blocks

AUTOV2, AUTOV3 = 10, 12  # Civitai's hashes: so many hex digits of the file's sha256, of its body's
HUB_LICENCE = re.compile(r"[a-z0-9][a-z0-9.+-]*")  # as the Hub spells those that it knows; other ones it calls "other"


@dataclass(frozen=True)
class About:
    """A LoRA as a sidecar tells of it: its name, what its metadata says, its blocks, and the hashes of the file."""

    name: str
    metadata: Mapping[str, str]
    blocks: list[str]
    sha256: str
    body_sha256: str
    size: int
    weight: float = 0.0

    def said(self, *keys: str) -> str:
        """What the metadata says under the first of `keys` that it has; kohya writes None for nothing."""
        return next((found for key in keys if (found := self.metadata.get(key, "").strip()) not in ("", "None")), "")

    @property
    def trigger(self) -> str:
        return self.said("modelspec.trigger_phrase")


def about(header: Header, name: str, sha256: str, body_sha256: str, weight: float = 0.0) -> About:
    """What sidecars tell of the file with this header."""
    blocks = Blocks.read(header.tensors).present
    return About(name, header.metadata, blocks, sha256, body_sha256, header.size, weight)


def user_metadata(one: About) -> dict[str, Any]:
    """The keys of A1111's and Forge's card of a LoRA, which InvokeAI and managers for ComfyUI read, too.

    A preferred weight of 0 leaves it to the program's own setting.
    """
    return {
        "description": one.said("modelspec.description"),
        "sd version": "SDXL",
        "activation text": one.trigger,
        "preferred weight": one.weight,
        "negative text": "",
        "notes": "\n".join(f"{label}: {value}" for label, value in facts(one).items()),
    }


def facts(one: About) -> dict[str, str]:
    """What is worth a line: by label, in order, without what the file does not say."""
    steps, images = one.said("ss_steps"), one.said("ss_num_train_images")
    found = {
        "Title": one.said("modelspec.title"),
        "Author": one.said("modelspec.author"),
        "Base model": one.said("ss_sd_model_name"),
        "Trigger": one.trigger,
        "Tags": one.said("modelspec.tags"),
        "Training": f"{steps} steps" + (f", {images} images an epoch" if images else "") if steps else "",
        "Optimizer": one.said("ss_optimizer").partition("(")[0],
        "Learning rates": ", ".join(
            f"{part} {rate}"
            for part, key in (("U-Net", "ss_unet_lr"), ("text encoders", "ss_text_encoder_lr"))
            if (rate := one.said(key))
        ),
        "Resolution": one.said("ss_resolution").strip("()").replace(", ", " × "),
        "Rank": one.said("ss_network_dim").removeprefix("Dynamic"),
        "Blocks": ", ".join(one.blocks),
        "Licence": one.said("modelspec.license"),
    }
    return {label: value for label, value in found.items() if value}


def card(one: About, usage: str = "") -> str:
    """A model card in Markdown, with the front matter that the Hugging Face Hub reads. `usage` is a program, in Python."""
    lines = ["---", *_front_matter(one), "---", "", f"# {_text(one.said('modelspec.title') or one.name)}", ""]
    if description := one.said("modelspec.description"):
        lines += [_text(description), ""]
    if one.trigger:
        lines += [f"Trigger: {_code(one.trigger)}", ""]
    lines += ["| | |", "|---|---|", *(f"| {label} | {_text(value)} |" for label, value in facts(one).items())]
    lines += [
        f"| sha256 | `{one.sha256}` |",
        f"| AutoV2 | `{one.sha256[:AUTOV2]}` |",
        f"| AutoV3 | `{one.body_sha256[:AUTOV3]}` |",
        "",
    ]
    if usage:
        lines += ["```python", usage.strip(), "```", ""]
    if one.said("lorabuild.stages"):
        lines += ["The whole recipe is in the file's metadata: `lorabuild show FILE --all`.", ""]
    return "\n".join(lines)


def _front_matter(one: About) -> Iterator[str]:
    """YAML; JSON's strings are YAML's, too."""
    if licence := one.said("modelspec.license"):
        known = HUB_LICENCE.fullmatch(licence)
        yield f"license: {licence}" if known else f"license: other\nlicense_name: {_yaml(licence)}"
    if one.trigger:
        yield f"instance_prompt: {_yaml(one.trigger)}"
    yield "library_name: diffusers"
    yield "pipeline_tag: text-to-image"
    yield "tags:\n- lora\n- stable-diffusion-xl\n- text-to-image"


def _yaml(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _text(text: str) -> str:
    """On one line, and without a sign that Markdown or HTML would take for its own."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", " ".join(text.split()))


def _code(text: str) -> str:
    """As code, whatever is in it: fenced by more backticks than it has in a row."""
    text = " ".join(text.split())
    fence = "`" * (max(map(len, re.findall("`+", text)), default=0) + 1)
    return f"{fence} {text} {fence}" if "`" in text else f"`{text}`"
