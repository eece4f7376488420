"""The installed packages against what lorabuild asks for, and what its extras would add."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

from lorabuild.doctor.line import Line, fail, ok, one_line, warn

CONSTRAINTS = Path(__file__).parents[2] / "constraints.txt"  # in a checkout: the versions that the tests run with
DEVELOPERS = "test"  # an extra that no build needs


def look_at_packages(wanted: Iterable[str] | None = None, constraints: Path = CONSTRAINTS) -> Iterator[Line]:
    """A line for each package that is missing or of another version, then one for all that are right."""
    found, missing = _requirements(wanted)
    if missing:
        yield missing
        return
    pinned, right = _pins(constraints), []
    for one in found:
        if one.marker is not None:  # of an extra
            continue
        have = installed(one.name)
        install = f"pip install {'-c constraints.txt ' if pinned else ''}'{one.name}{one.specifier}'"
        if have is None:
            yield fail("packages", f"{one.name} is not installed", install)
        elif not one.specifier.contains(have, prereleases=True):
            yield fail("packages", f"{one.name} {have}: lorabuild needs {one.specifier}", install)
        elif _plain(have) != (pin := pinned.get(one.name.casefold(), _plain(have))):
            said = f"{one.name} {have}: in range, but the tests run with {pin}"
            yield warn("packages", said, f"pip install {one.name}=={pin} (constraints.txt has all of them)")
        else:
            right.append(f"{one.name} {have}")
    yield ok("packages", ", ".join(right) or "none as they should be")


def look_at_extras(wanted: Iterable[str] | None = None) -> Iterator[Line]:
    """What is optional: a line for each of a version that does not do, one for what is there and what is not."""
    found, missing = _requirements(wanted)
    if missing:
        return
    there: dict[str, str] = {}
    absent: dict[str, str] = {}
    for one in found:
        extra = _extra(one)
        if extra in (None, DEVELOPERS):
            continue
        have = installed(one.name)
        if have is None:
            absent.setdefault(one.name, f"{one.name} (lorabuild[{extra}])")
        elif not one.specifier.contains(have, prereleases=True):
            yield warn(
                "extras", f"{one.name} {have}: lorabuild needs {one.specifier}", f"pip install 'lorabuild[{extra}]'"
            )
        else:
            there[one.name] = f"{one.name} {have}"
    said = [f"installed: {', '.join(there.values()) or 'none'}"]
    if absent:
        said.append(f"not installed: {', '.join(absent.values())}")
    yield ok("extras", "; ".join(said))


def look_at_pictures() -> Iterator[Line]:
    """Which formats of images can be read beyond those that Pillow always has."""
    try:
        from PIL import features

        avif = features.check("avif")
    except Exception as error:  # a library that it was built against is gone, say
        yield fail(
            "images", f"Pillow cannot be imported: {one_line(str(error))}", "pip install --force-reinstall pillow"
        )
        return
    jxl = installed("pillow-jxl-plugin")
    names = {"AVIF": avif, "JPEG XL": jxl}
    said = "; ".join(f"{name} {'is' if have else 'is not'} read" for name, have in names.items())
    if not avif:
        yield warn("images", said, "pip install -U pillow: from version 12 on it has AVIF")
    else:
        yield ok("images", said + ("" if jxl else " (pip install 'lorabuild[jxl]')"))


def installed(name: str) -> str | None:
    """The version of a package; None if there is none, or none that can be read."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _requirements(wanted: Iterable[str] | None) -> tuple[list[Any], Line | None]:
    """lorabuild's own, from what pip wrote when it was installed; or a line that says why they are not known."""
    if wanted is None:
        try:
            wanted = _of_project() or requires("lorabuild") or []
        except PackageNotFoundError:
            said = "lorabuild was not installed by pip: which versions it needs is not known here"
            return [], warn("packages", said, "pip install -c constraints.txt -e .")
    try:
        from packaging.requirements import Requirement
    except ImportError:
        return [], fail("packages", "packaging is not installed", "pip install packaging (transformers needs it, too)")
    return [Requirement(one) for one in wanted], None


def _of_project() -> list[str]:
    """In a checkout, what its pyproject.toml asks for now; pip's own notes are as old as the last `pip install`."""
    file = CONSTRAINTS.with_name("pyproject.toml")
    if not (file.is_file() and CONSTRAINTS.is_file()):
        return []
    import tomllib

    project = tomllib.loads(file.read_text(encoding="utf-8"))["project"]
    extras = project.get("optional-dependencies", {})
    return [*project["dependencies"], *(f'{one}; extra == "{name}"' for name, all_ in extras.items() for one in all_)]


def _extra(requirement: Any) -> str | None:
    """`extra == "s3"` -> s3."""
    found = str(requirement.marker or "").partition("extra == ")[2]
    return found.split('"')[1] if found.startswith('"') else None


def _pins(constraints: Path) -> dict[str, str]:
    try:
        lines = constraints.read_text().splitlines()
    except OSError:
        return {}
    pairs = (line.partition("==")[::2] for line in lines if "==" in line)
    return {name.strip().casefold().replace("_", "-"): pin.strip() for name, pin in pairs}


def _plain(found: str) -> str:
    """`2.13.0+cpu` -> `2.13.0`: which build it is, is told elsewhere."""
    return found.partition("+")[0]
