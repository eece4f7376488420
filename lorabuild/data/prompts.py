"""Read a file of prompts as sd-scripts has them: `a fox --n blurry --w 1024 --h 768 --d 7 --l 6 --s 30`, or TOML, or JSON."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lorabuild.errors import JobError, Problem, near_miss

# sd-scripts' names of samplers. `k_` stands for Karras' noise levels, where its own trainer takes no notice of it.
SAMPLERS = (
    "ddim", "pndm", "lms", "euler", "euler_a", "heun", "dpm_2", "dpm_2_a", "dpmsolver", "dpmsolver++", "dpmsingle",
    "k_lms", "k_euler", "k_euler_a", "k_dpm_2", "k_dpm_2_a",
)  # fmt: skip

STEPS, MAX_STEPS = 30, 1000  # sd-scripts' default and limit
SCALE = 7.5  # sd-scripts' default
LEAST_SIDE, MOST_SIDE, SIDE_STEP = 64, 16384, 8  # pixels; SIDE_STEP is one cell of latents
MAX_SEED = 2**63 - 1

# option of a line -> key in TOML and JSON
OPTIONS = {
    "n": "negative_prompt", "w": "width", "h": "height", "d": "seed", "l": "scale", "s": "sample_steps",
    "ss": "sample_sampler", "g": "guidance_scale",
}  # fmt: skip
# What sd-scripts reads there for other models than SDXL, or for ControlNets.
IDLE = {
    "g": "guidance_scale", "cn": "controlnet_image", "ctr": "cfg_trunc_ratio", "rcfg": "renorm_cfg", "fs": "flow_shift",
}  # fmt: skip
KEYS = ("prompt", *OPTIONS.values())

# An option begins after a space, or at the line's start, and its name ends at one: dashes in a text are text.
_OPTION = re.compile(r"(?:^|\s)--([A-Za-z]+)(?=[\s=]|$)")
_GLUED = re.compile(rf"\S--({'|'.join(OPTIONS)})\s+\S", re.IGNORECASE)


@dataclass(frozen=True)
class Prompt:
    """A picture that is wanted. What is None has a default that depends on the project. Sides are multiples of 8."""

    prompt: str
    negative_prompt: str = ""
    width: int | None = None
    height: int | None = None
    seed: int | None = None
    scale: float = SCALE
    sample_steps: int = STEPS
    sample_sampler: str | None = None
    line: int = field(default=0, compare=False)


@dataclass(frozen=True)
class PromptFile:
    """Its prompts in order, and what is worth a warning."""

    prompts: tuple[Prompt, ...]
    warnings: tuple[Problem, ...]


@dataclass
class _Found:
    """What was said of one prompt, and what is wrong with it."""

    values: dict[str, Any] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def read_prompts(path: Path, shown: str) -> PromptFile:
    """The prompts of a file, which messages call `shown`. Raises JobError with all that is wrong, each at its line."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise JobError(f"{shown}: no such file") from None
    except OSError as error:
        raise JobError(f"{shown}: {error.strerror}") from None
    return parse_prompts(data, shown)


def parse_prompts(data: bytes, shown: str) -> PromptFile:
    """The prompts in the bytes of a file named `shown`; .toml and .json by its ending, all else line by line."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise JobError(Problem(shown, line, "not UTF-8: save the file as UTF-8")) from None
    reader = _READERS.get(Path(shown).suffix.casefold(), _lines)
    prompts, problems, warnings = [], [], []
    for line, found in reader(text, shown):
        problems += [Problem(shown, line, said) for said in found.faults]
        warnings += [Problem(shown, line, said) for said in found.notes]
        if not found.faults:
            found.values.pop(IDLE["g"], None)
            prompts.append(Prompt(**found.values, line=line))
    if not prompts and not problems:
        problems = [Problem(shown, 0, "holds no prompt")]
    if problems:
        raise JobError(*problems)
    return PromptFile(tuple(prompts), tuple(warnings))


def read_line(line: str) -> tuple[dict[str, Any], list[str], list[str]]:
    """(values by sd-scripts' keys, faults, warnings) of a line. What is not said there is not among the values.

    sd-scripts' rules, but where they hide a mistake: its first part is never an option, a negative prompt may have
    dashes in it, an option of no known name or without a space before it is a fault, and so is a value that is no number.
    """
    found = _Found()
    starts = [*_OPTION.finditer(line)]
    head, *rest = _between(line, starts)
    found.values["prompt"] = head
    for start, value in zip(starts, rest, strict=True):
        name = start[1].casefold()
        if line[start.end() :].startswith("="):
            found.faults.append(f"--{name}: write a space in place of =, as in --w 512")
        elif name in OPTIONS:
            _take(found, f"--{name}", OPTIONS[name], value)
        elif name in IDLE:
            found.notes.append(f"--{name} means nothing to SDXL")
        else:
            known = ", ".join(f"--{one}" for one in OPTIONS)
            found.faults.append(f"--{name}: no such option{near_miss(name, OPTIONS)}; they are {known}")
    for text in (head, found.values.get("negative_prompt", "")):
        if isinstance(text, str) and (match := _GLUED.search(text)):
            found.faults.append(f"--{match[1]}: an option needs a space before it")
    return found.values, found.faults, found.notes


def _between(line: str, starts: list[re.Match[str]]) -> Iterator[str]:
    """The text before the first option, and that after each."""
    ends = [*(start.start() for start in starts), len(line)]
    for begin, end in zip([0, *(start.end() for start in starts)], ends, strict=True):
        yield line[begin:end].strip()


def _take(found: _Found, shown: str, key: str, value: Any) -> None:
    """Note a value, as text or as TOML and JSON have it."""
    if key in found.values:
        found.notes.append(f"{shown} is given twice: the last one counts")
    try:
        found.values[key] = _CHECKS[key](value, lambda said: found.notes.append(f"{shown} {said}"))
    except ValueError as error:
        found.faults.append(f"{shown} {value}: {error}" if value != "" else f"{shown}: {error}")
    if key == IDLE["g"]:
        found.notes.append(f"{shown} means nothing to SDXL: its guidance is --l")


Note = Callable[[str], None]


def _text(value: Any, note: Note) -> str:
    if not isinstance(value, str):
        raise ValueError("a text is expected")
    return value.strip()


def _whole(value: Any, note: Note) -> int:
    if isinstance(value, str) and re.fullmatch(r"[0-9]+", value):
        return int(value)
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    raise ValueError("a whole number, 0 or more, is expected")


def _side(value: Any, note: Note) -> int:
    side = _whole(value, note)
    if side > MOST_SIDE:
        raise ValueError(f"at most {MOST_SIDE} pixels")
    if (drawn := max(LEAST_SIDE, side - side % SIDE_STEP)) != side:
        note(f"{side}: drawn with {drawn} pixels, a multiple of {SIDE_STEP} and no less than {LEAST_SIDE}")
    return drawn


def _steps(value: Any, note: Note) -> int:
    steps = _whole(value, note)
    if (taken := min(max(steps, 1), MAX_STEPS)) != steps:
        note(f"{steps}: {taken} steps are taken")
    return taken


def _seed(value: Any, note: Note) -> int:
    seed = _whole(value, note)
    if seed > MAX_SEED:
        raise ValueError(f"at most {MAX_SEED}")
    return seed


def _number(value: Any, note: Note) -> float:
    try:
        number = float(value) if not isinstance(value, bool) else math.nan
    except (TypeError, ValueError):
        number = math.nan
    if not 0 <= number < math.inf:
        raise ValueError("a number, 0 or more, is expected")
    return number


def _sampler(value: Any, note: Note) -> str:
    name = str(value).casefold()
    if name not in SAMPLERS:
        raise ValueError(f"no such sampler{near_miss(name, SAMPLERS)}; they are {', '.join(SAMPLERS)}")
    return name


_CHECKS: dict[str, Callable[[Any, Note], Any]] = {
    "prompt": _text,
    "negative_prompt": _text,
    "width": _side,
    "height": _side,
    "seed": _seed,
    "scale": _number,
    "sample_steps": _steps,
    "sample_sampler": _sampler,
    "guidance_scale": _number,
}


# the three kinds of file


def _lines(text: str, shown: str) -> Iterator[tuple[int, _Found]]:
    """A prompt a line; empty ones and those that begin with # do not count."""
    for number, line in enumerate(text.splitlines(), 1):
        if (line := line.strip()) and not line.startswith("#"):
            yield number, _Found(*read_line(line))


def _toml(text: str, shown: str) -> Iterator[tuple[int, _Found]]:
    """[prompt] says what all have in common, each [[prompt.subset]] a prompt."""
    import tomllib

    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        match = re.search(r"\(at line (\d+), column \d+\)", str(error))
        said = str(error).partition(" (at ")[0]
        raise JobError(Problem(shown, int(match[1]) if match else 0, f"not TOML: {said}")) from None
    common = table.get("prompt")
    subsets = common.get("subset") if isinstance(common, dict) else None
    if table.keys() - {"prompt"} or not isinstance(subsets, list):
        raise JobError(Problem(shown, 1, "expected [prompt] and, for each picture, [[prompt.subset]]"))
    shared = {key: value for key, value in common.items() if key != "subset"}
    starts = [number for number, line in enumerate(text.splitlines(), 1) if _SUBSET.match(line)]
    for index, subset in enumerate(subsets):
        line = starts[index] if len(starts) == len(subsets) else 0
        yield line, _of_table(shared | subset if isinstance(subset, dict) else subset)


_SUBSET = re.compile(r"\s*\[\[\s*prompt\s*\.\s*subset\s*\]\]")


def _json(text: str, shown: str) -> Iterator[tuple[int, _Found]]:
    """A list of tables, or of lines."""
    try:
        entries = json.loads(text)
    except json.JSONDecodeError as error:
        raise JobError(Problem(shown, error.lineno, f"not JSON: {error.msg}")) from None
    if not isinstance(entries, list):
        raise JobError(Problem(shown, 1, "a list of prompts is expected"))
    for line, entry in zip(_places(text, len(entries)), entries, strict=True):
        yield line, _Found(*read_line(entry)) if isinstance(entry, str) else _of_table(entry)


def _places(text: str, count: int) -> Iterator[int]:
    """The line on which each of the `count` elements of a JSON list begins."""
    decoder, at = json.JSONDecoder(), text.index("[") + 1
    for _ in range(count):
        at += len(text[at:]) - len(text[at:].lstrip(" \t\r\n,"))
        yield text.count("\n", 0, at) + 1
        _, at = decoder.raw_decode(text, at)


def _of_table(table: Any) -> _Found:
    found = _Found()
    if not isinstance(table, Mapping):
        found.faults.append("a table is expected, with a prompt in it")
        return found
    for key, value in table.items():
        if key in _CHECKS:
            _take(found, key, key, value)
        elif key in IDLE.values():
            found.notes.append(f"{key} means nothing to SDXL")
        elif key not in ("subset", "enum"):
            found.faults.append(f"{key}: no such key{near_miss(key, KEYS)}; they are {', '.join(KEYS)}")
    if "prompt" not in table:
        found.faults.append("has no prompt")
    return found


_READERS = {".toml": _toml, ".json": _json}
