"""torch and the GPUs, asked in a process of their own: a library that is broken may crash, hang, or print."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lorabuild.doctor.line import Line, fail, gigabytes, ok, one_line, warn
from lorabuild.signals import ended_by
from lorabuild.workers.slots import cuda_devices

PATIENCE_SECONDS = 180.0  # a cold disk takes its time over the first import of torch
MARK = "lorabuild-doctor "  # begins the lines that are meant for us
NEEDED_BYTES = 8e9  # the smallest card that an SDXL is trained on (recipes/8gb.toml)

# What a build imports of each package, and the package's name where it is another.
LIBRARIES = {
    "xxhash": "xxh3_128",
    "filelock": "FileLock",
    "doit": "",
    "fsspec": "",
    "numpy": "ndarray",
    "PIL.Image": "open",
    "pydantic": "BaseModel",
    "rich": "",
    "tree_sitter": "Parser",
    "tree_sitter_toml": "language",
}
WITH_TORCH = {
    "diffusers": "UNet2DConditionModel AutoencoderKL",
    "transformers": "CLIPTextModel CLIPTokenizer",
    "safetensors.torch": "load_file",
    "lycoris": "LycorisNetwork",
}
PACKAGES = {
    "PIL": "pillow",
    "tree_sitter": "tree-sitter",
    "tree_sitter_toml": "tree-sitter-toml",
    "lycoris": "lycoris-lora",
}

PROBE = """
import json, sys
from importlib import import_module
mark, libraries, with_torch = json.loads(sys.argv[1])
def say(**facts):
    print(mark + json.dumps(facts), flush=True)
def look(libraries):
    for name, needed in libraries.items():
        try:
            module = import_module(name)
            for one in needed.split():
                getattr(module, one)
            say(part="library", name=name)
        except BaseException as error:
            say(part="library", name=name, error=f"{type(error).__name__}: {error}")
look(libraries)
try:
    import torch
    facts = dict(version=torch.__version__, cuda=torch.version.cuda, hip=getattr(torch.version, "hip", None))
    torch.ones(3).sum().item()
except BaseException as error:
    say(part="torch", error=f"{type(error).__name__}: {error}")
    say(part="end")
    sys.exit()
say(part="torch", **facts)
try:
    if facts["cuda"] or facts["hip"]:
        torch.cuda.init()
        for number in range(torch.cuda.device_count()):
            torch.ones(3, device=f"cuda:{number}").sum().item()
            free, total = torch.cuda.mem_get_info(number)
            bf16 = bool(facts["hip"]) or torch.cuda.get_device_capability(number) >= (8, 0)  # from Ampere on
            name = torch.cuda.get_device_name(number)
            say(part="device", number=number, name=name, free=free, total=total, bf16=bf16)
    if facts["cuda"]:
        driver = torch._C._cuda_getDriverVersion()
        say(part="driver", cuda=f"{driver // 1000}.{driver % 1000 // 10}")
except BaseException as error:
    say(part="cuda", error=f"{type(error).__name__}: {error}")
look(with_torch)
say(part="end")
"""


def look_at_devices(seconds: float = PATIENCE_SECONDS) -> Iterator[Line]:
    """Lines on torch, the GPUs, and the libraries that are imported with it."""
    facts, end = _probed(seconds)
    yield from judged(facts, end, cuda_devices())


def judged(facts: Sequence[Mapping[str, Any]], end: str, drivers: Sequence[str]) -> Iterator[Line]:
    """`facts` as PROBE says them; `end`: how its process came to an end, if not by itself; `drivers`: the GPUs that the
    system has, by its driver."""
    parts = {part: [one for one in facts if one["part"] == part] for part in ("torch", "device", "driver", "library")}
    yield from _torch(parts["torch"], parts["driver"], end)
    if parts["torch"] and "error" not in parts["torch"][0]:
        faults = [one["error"] for one in facts if one["part"] == "cuda"]
        yield from _devices(parts["torch"][0], parts["device"], faults, drivers)
    yield from _libraries(parts["library"], end if parts["torch"] else "")


def _torch(torch: Sequence[Mapping[str, Any]], driver: Sequence[Mapping[str, Any]], end: str) -> Iterator[Line]:
    if not torch or "error" in torch[0]:
        why = torch[0]["error"] if torch else end or "it said nothing"
        remedy = "pip install -c constraints.txt --force-reinstall torch; then `python -c 'import torch'` must work"
        yield fail("torch", f"cannot be imported: {one_line(why)}", remedy)
        return
    (one,) = torch
    build = f"CUDA {one['cuda']}" if one["cuda"] else f"ROCm {one['hip']}" if one["hip"] else "CPU"
    has = "".join(f", the driver has CUDA {one['cuda']}" for one in driver)
    yield ok("torch", f"{one['version']} ({build} build{has})")


def _libraries(libraries: Sequence[Mapping[str, Any]], end: str) -> Iterator[Line]:
    for one in libraries:
        if "error" in one:
            package = one["name"].partition(".")[0]
            install = f"pip install -c constraints.txt --force-reinstall {PACKAGES.get(package, package)}"
            yield fail("libraries", f"{one['name']} cannot be imported: {one_line(one['error'])}", install)
    if end:
        last = libraries[-1]["name"] if libraries else "torch"
        said = f"the process that imports them did not get beyond {last}: {end}"
        yield fail("libraries", said, "pip install -c constraints.txt --force-reinstall diffusers transformers")
    elif names := [one["name"].partition(".")[0] for one in libraries if "error" not in one]:
        yield ok("libraries", f"{', '.join(names)} can be imported")


def _devices(
    torch: Mapping[str, Any], devices: Sequence[Mapping[str, Any]], faults: Sequence[str], drivers: Sequence[str]
) -> Iterator[Line]:
    for one in devices:
        yield _device(one)
    if faults and (drivers or devices):
        said = f"torch cannot use the GPU: {one_line(faults[0])}"
        yield fail("gpu", said, "`nvidia-smi` must work; a driver that is older than torch's CUDA has to be updated")
    elif not devices and drivers and not (torch["cuda"] or torch["hip"]):
        said = f"the driver shows {len(drivers)}, but torch is a build without CUDA: all of it runs on the processor"
        yield warn("gpu", said, "install a CUDA build of torch, of the same version (https://pytorch.org/get-started)")
    elif not devices:
        said = "none: all of it runs on the processor, which is enough for `tiny`, for resize and for chop"
        yield warn("gpu", said, "an SDXL is trained on a GPU of 8 GB or more")


def _device(one: Mapping[str, Any]) -> Line:
    said = f"{one['number']}: {one['name']}, {gigabytes(one['free'])} of {gigabytes(one['total'])} free, " + (
        "bf16" if one["bf16"] else "no bf16"
    )
    if one["total"] < NEEDED_BYTES:
        return warn("gpu", said, "less than the 8 GB that an SDXL needs: `tiny`, resize and chop work")
    if one["free"] < NEEDED_BYTES:
        return warn("gpu", said, "other programs hold its memory: `nvidia-smi` names them")
    if not one["bf16"]:
        return warn("gpu", said, 'recipe.mixed_precision = "fp16": this card computes bf16 slowly or not at all')
    return ok("gpu", said)


def _probed(seconds: float) -> tuple[list[dict[str, Any]], str]:
    """What the process said, and how it ended if not well."""
    command = [
        sys.executable,
        "-P",
        "-c",
        PROBE,
        json.dumps([MARK, LIBRARIES, WITH_TORCH]),
    ]  # -P: a torch.py in the working folder is not torch
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=seconds)
        said, end = done.stdout, ended_by(done.returncode) if done.returncode else ""
    except subprocess.TimeoutExpired as late:
        said, end = late.stdout or "", f"not done within {seconds:.0f} s"
    text = said.decode(errors="replace") if isinstance(said, bytes) else said
    facts = [json.loads(line[len(MARK) :]) for line in text.splitlines() if line.startswith(MARK)]
    whole = bool(facts) and facts[-1]["part"] == "end"
    return facts, end if end or whole else "it ended in the middle"
