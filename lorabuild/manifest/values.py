"""Give each setting its one spelling, and say what is expected of one that has none."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from lorabuild.names import quoted
from lorabuild.training import optimizers

SAFETENSORS = ".safetensors"
PICKLES = (".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth")  # what torch.save's files are called
KEEP_WORDS = ("last", "every")
# What a remote store may be reached by -> the extra of lorabuild that brings the package for it.
REMOTES = {"file": "", "s3": "s3", "gs": "gs", "ssh": "ssh", "sftp": "ssh"}


class Misfit(ValueError):
    """Settings that do not go together. `key` is the one to change, dotted, seen from the table that was checked."""

    def __init__(self, key: str, said: str):
        self.key = key
        super().__init__(said)


class Misfits(ValueError):
    """Several at once."""

    def __init__(self, *misfits: Misfit):
        self.misfits = misfits
        super().__init__("; ".join(map(str, misfits)))


def shown(value: Any) -> str:
    """A value as TOML writes it, on one line of a readable length; of a list or table, that it is one."""
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "a table"
    text = quoted(value) if isinstance(value, str) else str(value)
    text = text.lower() if isinstance(value, bool) else text
    return text if len(text) <= 60 else f"{text[:59]}…"


def unset(value: Any) -> bool:
    return value is None


def both_sides(value: Any) -> Any:
    """1024 -> [1024, 1024]."""
    return [value, value] if isinstance(value, int) and not isinstance(value, bool) else value


def tag_list(value: Any) -> Any:
    """ "fox, ember" -> ["fox", "ember"]."""
    return [tag.strip() for tag in value.split(",") if tag.strip()] if isinstance(value, str) else value


def dotted(extension: str) -> str:
    """ "txt" -> ".txt", as sd-scripts does."""
    extension = extension if extension.startswith(".") else f".{extension}"
    if len(extension) == 1 or any(sign in extension for sign in "/\\\0"):
        raise ValueError(f'expected a file extension like ".txt", got {shown(extension)}')
    return extension


def folder(path: str) -> str:
    if "\0" in path:
        raise ValueError("a folder's name cannot hold a zero character")
    return path


def file(path: str) -> str:
    if "\0" in path:
        raise ValueError("a file's name cannot hold a zero character")
    return path


def sha256(digits: str) -> str:
    """The first digits of a sha256, ten or more, in lower case; AutoV2 in Civitai's words."""
    if not re.fullmatch(r"[0-9a-fA-F]{10,64}", digits):
        raise ValueError(
            f"expected a sha256: 64 hexadecimal digits, or the first ten or more of them, got {shown(digits)}"
        )
    return digits.casefold()


def remote(url: str) -> str:
    """The URL of a remote store without a slash at its end; an empty one stays: no remote."""
    protocol, sign, path = url.partition("://")
    if not url:
        return url
    if not sign or protocol not in REMOTES:
        known = ", ".join(f"{name}://" for name in REMOTES)
        raise ValueError(f"expected a URL that begins with one of {known}, got {shown(url)}")
    if protocol == "file" and not path.startswith("/"):
        raise ValueError(f'expected an absolute path, as in "file:///mnt/share/loras", got {shown(url)}')
    host, _, _ = path.partition("/")
    if ":" in host.rpartition("@")[0]:
        raise ValueError("a password does not belong in this file: keys, profiles and environment variables are read")
    if "\0" in url or not path.strip("/"):
        raise ValueError('expected a bucket or folder, as in "s3://bucket/prefix"')
    return url.rstrip("/")


def is_single_file(path: str) -> bool:
    """Is it a base in one file? A diffusers folder has no such ending."""
    return path.casefold().endswith(SAFETENSORS)


def is_file_name(text: str) -> bool:
    """Does it name a file, and no project?"""
    return "/" in text or "\\" in text or text.startswith("~") or "." in text


def algo(value: Any) -> Any:
    """LyCORIS's "lora" is its locon."""
    return "locon" if value == "lora" else value


def named(canonical: Callable[[str], str]) -> Callable[[Any], str]:
    """Give a name its one spelling by a table's `canonical`."""

    def check(value: Any) -> str:
        if not isinstance(value, str):
            raise ValueError(f"expected text in quotes, got {shown(value)}")
        return canonical(value)

    return check


def arguments(value: Any) -> dict[str, Any]:
    """A table of arguments, or sd-scripts' list of "key=value"."""
    parsed = optimizers.parsed(value)
    if not isinstance(parsed, dict):
        raise ValueError(f"expected a table, got {shown(value)}")
    if problem := next((f"{key}: got {shown(one)}" for key, one in parsed.items() if not optimizers.plain(one)), ""):
        raise ValueError(f"expected numbers, text, true or false, and lists of them; {problem}")
    return parsed


def save_precision(value: Any) -> Any:
    """sd-scripts says "float" for fp32."""
    return "fp32" if value == "float" else value


def warmup(value: Any) -> int | float:
    """A number of steps, or a part of all steps: 0.1 or "10%"."""
    if isinstance(value, str) and (percent := re.fullmatch(r"(\d{1,2}(?:\.\d+)?)\s*%", value.strip())):
        return float(percent[1]) / 100
    if isinstance(value, float) and 0 <= value < 1:
        return value
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31:
        return value
    raise ValueError(f"expected a number of steps, or a part of all steps below 1, got {shown(value)}")


def keep_policy(text: str) -> str:
    """Which snapshots stay, in one spelling: "last 3, every 20"."""
    terms = [term.split() for term in text.split(",")]
    for term in terms:
        if len(term) != 2 or term[0] not in KEEP_WORDS or not term[1].isdecimal() or not 0 < int(term[1]) < 2**31:
            raise ValueError(f'expected "last 3" (saves), "every 20" (steps) or both with a comma, got {shown(text)}')
    if len({word for word, _ in terms}) < len(terms):
        raise ValueError(f'expected "last" and "every" once each, got {shown(text)}')
    return ", ".join(f"{word} {int(number)}" for word, number in sorted(terms, reverse=True))


def text_rates(value: Any) -> float | list[float]:
    """A learning rate for both text encoders, or one for each."""
    rates = value if isinstance(value, list) and len(value) == 2 else [value]
    if all(isinstance(one, int | float) and not isinstance(one, bool) and 0 <= one < float("inf") for one in rates):
        return [float(one) for one in rates] if isinstance(value, list) else float(value)
    raise ValueError(f"expected a number, or a list of two, 0 or more, got {shown(value)}")


def interpolation(value: Any) -> Any:
    """OpenCV's "linear" and "cubic" are its bilinear and bicubic, "lanczos4" is read as PIL's Lanczos."""
    known = {"linear": "bilinear", "cubic": "bicubic", "lanczos4": "lanczos"}
    return known.get(value, value) if isinstance(value, str) else value


def never(value: bool) -> bool:
    """Of an augmentation that would show each time other pixels."""
    if value:
        raise ValueError("expected false, got true: latents are made once an image and kept; crop or vary the images")
    return value


def step(value: Any) -> int | str:
    """A saved step."""
    if value == "last" or (isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**31):
        return value
    raise ValueError(f'expected "last" or the number of a step (1 or more), got {shown(value)}')


def dotted_class(name: str) -> str:
    """ "StepLR" -> "torch.optim.lr_scheduler.StepLR", as sd-scripts does; "" stays: none."""
    if name and not all(part.isidentifier() for part in name.split(".")):
        raise ValueError(f'expected a class like "StepLR" or "package.module.Class", got {shown(name)}')
    return name if not name or "." in name else f"torch.optim.lr_scheduler.{name}"
