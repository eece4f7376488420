"""Read the commands of a guide: accelerate, sd-scripts' training, resize_lora and chop_blocks."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import PurePosixPath

from lorabuild.importing.arguments import ARGUMENTS
from lorabuild.importing.shell import Command, read_script
from lorabuild.importing.told import Told
from lorabuild.lora.ranks import parse_recipe

TRAINING = ("sdxl_train_network.py",)
OTHER_TRAINING = {  # scripts of sd-scripts whose arguments are the same, and which train something else
    "train_network.py": "it trains LoRAs of SD 1.5 and 2; here they are SDXL's",
    "flux_train_network.py": "it trains LoRAs of FLUX; here they are SDXL's",
    "sd3_train_network.py": "it trains LoRAs of SD 3; here they are SDXL's",
    "sdxl_train.py": "it trains the whole model; here it is a LoRA of it",
}
MADE = {  # what a stage does by itself
    "cache_latents.py": "the stage latents does that by itself",
    "cache_text_encoder_outputs.py": "the text encoders run at each step: there is nothing to cache",
}
IDLE = (
    "git", "cd", "pip", "pip3", "uv", "source", "conda", "mkdir", "export", "set", "activate", "venv", "sudo", "chmod", "echo",
    "write-output", "write-host", "pause", "deactivate", "nvidia-smi", "tensorboard", "wget", "curl", "sleep", "exit",
)  # fmt: skip
# accelerate launch's options that would change the result
SEVERAL = ("num_processes", "num_machines", "multi_gpu")
PRECISION = "mixed_precision"


def tell_script(told: Told, text: str, file: str) -> None:
    """Take over what the commands of a text say. Raises JobError for a quote without an end."""
    script = read_script(text, file)
    for name in script.unset:
        told.warnings.append(f"{file}: ${name} is set nowhere in the text: it stays as it is")
    if script.typeset:
        told.warnings.append(f"{file}: typographic quotes or dashes: read as plain ones; look the values over")
    trained = ""
    for command in script.commands:
        name, at = _program(command)
        where = f"{file}:{command.lines[0]}"
        if name in TRAINING or name in OTHER_TRAINING or (not name and _is_arguments(command)):
            if name and trained:
                told.notes.append(f"{' '.join(command.words)}: a second training: import it by itself")
                told.warnings.append(f"{where}: a second training ({name}): import it by itself")
                continue
            if name in OTHER_TRAINING:
                told.warnings.append(f"{where}: {name}: {OTHER_TRAINING[name]}")
                told.notes.append(f"{name}: {OTHER_TRAINING[name]}")
            trained = trained or name
            _tell_launch(told, command, at, where)
            _tell_arguments(told, command, at, file)
        elif handler := FINISHING.get(name):
            handler(told, command.words[at:], where)
        else:
            told.notes.append(f"{' '.join(command.words)}: {_why_not(name, command)}")
            if name not in MADE and command.words[0].casefold() not in IDLE:
                told.warnings.append(
                    f"{where}: {name or command.words[0]}: no command that is known here: not taken over"
                )


def _why_not(name: str, command: Command) -> str:
    if name in MADE:
        return MADE[name]
    return "it prepares the machine" if command.words[0].casefold() in IDLE else "no command that is known here"


def _program(command: Command) -> tuple[str, int]:
    """(name of the script, place of its first argument) of a command; ("", 0) without one."""
    for at, word in enumerate(command.words):
        if word.startswith("--") and "=" not in word and at == 0:
            break
        name = PurePosixPath(word.replace("\\", "/")).name
        if re.fullmatch(r"\w+\.py", name):
            return name, at + 1
    return "", 0


def _is_arguments(command: Command) -> bool:
    """Arguments alone, as some guides give them, or as a list in brackets."""
    names = [name for name, _, _ in _options(command.words, command.lines)]
    return any(name in ARGUMENTS for name in names)


def _tell_launch(told: Told, command: Command, at: int, where: str) -> None:
    """What stands before the script: accelerate's own options, and variables of the environment."""
    for name, values, _ in _options(command.words[: max(at - 1, 0)], command.lines):
        if name:
            told.notes.append(f"accelerate launch --{name} {' '.join(values)}".strip() + f": {_launched(name)}")
        if name in SEVERAL and values != ["1"]:
            said = "sd-scripts shows each process a batch of its own"
            told.warnings.append(f"{where}: --{name}: {said}: multiply gradient_accumulation_steps by their number")


def _launched(name: str) -> str:
    if name in SEVERAL:
        return "a batch a process in sd-scripts: gradient_accumulation_steps times their number is the same here"
    if name == PRECISION:
        return "sd-scripts' own mixed_precision counts"
    return "how a process is started; cores and GPUs are shared by [slots]"


def _tell_arguments(told: Told, command: Command, at: int, file: str) -> None:
    told.trains = True
    for name, values, line in _options(command.words[at:], command.lines[at:]):
        where = f"{file}:{line}"
        if not name:
            told.notes.append(f"{' '.join(values)}: an argument without a name")
            told.warnings.append(f"{file}:{command.lines[at]}: {told.notes[-1]}: not taken over")
        elif not values and name in ARGUMENTS and ARGUMENTS[name].kind not in ("flag", "texts", "floats", "pairs"):
            told.note(name, None, "nothing stands behind it")
            told.misread.add(name)
            told.warnings.append(f"{where}: --{name}: nothing stands behind it: not taken over")
        else:
            told.tell(name, values if values or name not in ARGUMENTS else _nothing(name), where)


def _nothing(name: str) -> object:
    return True if ARGUMENTS[name].kind == "flag" else []


def _options(words: Sequence[str], lines: Sequence[int]) -> Iterator[tuple[str, list[str], int]]:
    """(name, values, line) of each option. Words before the first one have no name; brackets and array names are left out."""
    name, values, line = "", [], 0
    for word, number in zip(words, lines, strict=False):
        if re.fullmatch(r"@?[()]|\w+=\(|\$?\{?\w+\[@\]\}?", word):
            continue
        option = re.fullmatch(r"--?([A-Za-z]\w*(?:-\w+)*)(?:=(.*))?", word, re.DOTALL)
        if option and word.startswith("--"):
            if name or values:
                yield name, values, line
            name, line = option[1].replace("-", "_"), number
            values = [] if option[2] is None else [option[2]]
        else:
            values.append(word)
    if name:
        yield name, values, line


def _resize(told: Told, words: Sequence[str], where: str) -> None:
    """resize_lora's `-r fro_ckpt=1,thr=-3.55`, or sd-scripts' own resize_lora."""
    options = dict(_short_options(words, ("o", "t", "d", "r", "v")))
    if "r" not in options and ("new_rank" in options or "dynamic_method" in options):
        told.resize = _peer_resize(told, options, where)
        return
    recipes = options.get("r", "fro_ckpt=1,thr=-3.5").split(":")  # resize_lora's default
    try:
        told.resize = parse_recipe(recipes[0].strip())
    except ValueError as error:
        told.notes.append(f"resize_lora {' '.join(words)}: {error}")
        told.warnings.append(f"{where}: resize_lora: {error}: not taken over")
    for further in recipes[1:]:
        told.notes.append(f"resize_lora -r {further}: a second recipe: [variants.<name>.resize] holds one")
    told.notes += [f"resize_lora -{key} {value}: {_RESIZE[key]}" for key, value in options.items() if key in _RESIZE]


_RESIZE = {
    "o": "files go to build/<name>/",
    "t": "recipe.save_precision says it",
    "d": "which device makes no difference to a result",
    "v": "`lorabuild blocks` shows what was kept",
}


def _peer_resize(told: Told, options: dict[str, str], where: str) -> dict[str, float] | None:
    """sd-scripts' networks/resize_lora.py: ranks by a layer's own singular values."""
    found = {}
    for key, name in (("max_rank", "new_rank"), ("max_conv_rank", "new_conv_rank")):
        if name in options:
            found[key] = int(options[name])
    method, value = options.get("dynamic_method"), options.get("dynamic_param")
    if method in ("sv_ratio", "sv_fro", "sv_cumulative") and value:
        found[method] = float(value)
    else:
        found["sv_cumulative"] = 1.0  # all that max_rank leaves
    used = ("new_rank", "new_conv_rank", "dynamic_method", "dynamic_param")
    told.notes += [
        f"resize_lora --{key} {value}: files, devices and precisions are lorabuild's own matter"
        for key, value in options.items()
        if key not in used
    ]
    return found


def _chop(told: Told, words: Sequence[str], where: str) -> None:
    """chop_blocks' vector: `chop_blocks.py FILE 1,0,0,…`, or --vector. Without one it only looks."""
    options = dict(_short_options(words, ("o", "q", "v")))
    vector = options.get("vector") or next(
        (word for word in words if re.fullmatch(r"[-+\d.eE, ]*,[-+\d.eE, ]*", word)), ""
    )
    if not vector:
        told.notes.append(f"chop_blocks {' '.join(words)}: it only shows the blocks, as `lorabuild blocks` does")
        return
    numbers = [number.strip() for number in vector.split(",")]
    told.chop = {"vector": ",".join(numbers)}
    if numbers[0] not in ("1", "1.0"):
        told.chop["vector_style"] = "resize_lora"  # its first number multiplies the U-Net
    if any(number not in ("0", "0.0", "1", "1.0") for number in numbers):
        said = (
            "chop_blocks scales by the third power of a weight (both matrices and alpha); here 0.5 is half the effect"
        )
        told.notes.append(f"chop.vector: {said}")
        told.warnings.append(f"{where}: {said}")


def _short_options(words: Sequence[str], short: Sequence[str]) -> Iterator[tuple[str, str]]:
    """(name, value) of the options of a small script; `short` are those of one letter."""
    at = 0
    while at < len(words):
        match = re.fullmatch(r"--(\w+)(?:=(.*))?|-([A-Za-z])(.*)", words[at])
        if match and (match[1] or match[3] in short):
            value = match[2] or match[4] or ""
            following = words[at + 1] if at + 1 < len(words) else "-"
            if not value and (not following.startswith("-") or re.match(r"-\d", following)):
                value, at = following, at + 1
            yield match[1] or match[3], value
        at += 1


FINISHING: dict[str, Callable[[Told, Sequence[str], str], None]] = {"resize_lora.py": _resize, "chop_blocks.py": _chop}
