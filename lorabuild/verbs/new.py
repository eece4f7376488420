"""`lorabuild new`: a project with a manifest that explains itself, ready to be built."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from lorabuild.errors import ConfigError, JobError, UsageError, near_miss
from lorabuild.files import staged
from lorabuild.manifest.bases import base_path
from lorabuild.manifest.layers import shown
from lorabuild.manifest.repository import Repository, survey
from lorabuild.names import RESERVED, name_problem, quoted
from lorabuild.scaffold.pictures import Pictures, look
from lorabuild.scaffold.project import KEEP, TINY, Wanted, like, manifest, recipes_for
from lorabuild.scaffold.recipes import available, copied, packaged
from lorabuild.scaffold.repository import is_of_others
from lorabuild.scaffold.schemas import first_line, there
from lorabuild.scan import Scan
from lorabuild.verbs.common import warn
from lorabuild.verbs.parser import Parser
from lorabuild.verbs.reading import root_here

HELP = """\
Make projects/NAME/lora.toml, with comments, on the recipe schnell; on the tiny base it then takes a minute.

  lorabuild new ember --trigger ember --images ~/pictures/ember    that folder is used where it is
  lorabuild new ember                                              makes projects/ember/images for you to fill
  lorabuild new ember --base pony --from pony                      another base, another recipe
  lorabuild new ember2 --from ember --images ../more               with the settings of another project"""

RECIPE = "schnell"


def parser() -> Parser:
    found = Parser(prog="lorabuild new", description=HELP)
    found.add_argument("name", metavar="NAME", help="lower-case letters, digits, _ and -")
    found.add_argument("--from", dest="source", metavar="RECIPE", help="a recipe, or a project with settings to copy")
    found.add_argument("--images", metavar="DIR", help="a folder of images and captions, used where it is")
    found.add_argument("--base", metavar="BASE", help="a base of lorabuild.toml")
    found.add_argument("--kind", metavar="KIND", help="character (if nothing is said), style or concept")
    found.add_argument("--trigger", metavar="WORD", help="the word in a prompt that calls it")
    return found


def main(args: Sequence[str]) -> int:
    options = parser().parse_args(args)
    root = root_here()
    taken = {path.parent.name: path for path in Scan().manifests(root / "projects")[0]}
    _check_name(options.name, root, taken)
    if options.kind not in (None, *KEEP):
        raise UsageError(f"--kind {options.kind}: expected {' or '.join(KEEP)}{near_miss(options.kind, KEEP)}")
    other = _other(options.source, root, taken)
    repository = _repository(root, other)
    folder = root / "projects" / options.name
    images, pictures = _images(options.images, folder)
    settings = repository.projects[other.parent.name].settings["project"] if other else {}
    base = _base(options.base or settings.get("base"), repository)
    is_tiny = repository.bases[base].get("builtin") is not None
    wanted = Wanted(options.name, options.kind, base, is_tiny, options.trigger, images, pictures)
    if other:
        was_tiny = repository.bases[settings["base"]].get("builtin") is not None
        text = like(wanted, other.read_bytes(), os.path.relpath(other.parent, folder), was_tiny)
        copies = [TINY] * (is_tiny and not was_tiny)
    else:
        recipes = [options.source or RECIPE]
        text, copies = manifest(wanted, recipes), recipes_for(recipes, is_tiny)
    _write(root, folder, text, [name for name in copies if not (root / "recipes" / f"{name}.toml").exists()])
    if not options.images and pictures is None:
        (folder / "images").mkdir(exist_ok=True)
    _tell(root, folder, wanted, repository)
    return 0


def _check_name(name: str, root: Path, taken: Mapping[str, Path]) -> None:
    """Raises UsageError for a name that a project cannot have, with one that it could."""
    free = next(one for one in (f"{name}{end}" for end in ("-lora", *range(2, 1000))) if one not in taken)
    if said := name_problem(name):
        raise UsageError(said)
    if name in RESERVED:
        raise UsageError(f"{quoted(name)} is the name of a stage or command: take another (for example {quoted(free)})")
    if name in taken:
        number = next(f"{name}{one}" for one in range(2, 1000) if f"{name}{one}" not in taken)
        said = f"is a project already, {shown(taken[name], root)}: take another name (for example {quoted(number)})"
        raise UsageError(f"{quoted(name)} {said}, or change it: lorabuild set {name} KEY=VALUE")


def _other(source: str | None, root: Path, taken: Mapping[str, Path]) -> Path | None:
    """The manifest that settings are copied from; None for a recipe. Raises UsageError with a near miss."""
    if source is None or source in available(root):
        return None
    if source not in taken:
        near = near_miss(source, [*available(root), *taken]) or f" ({', '.join([*available(root), *sorted(taken)])})"
        raise UsageError(f"--from {source}: no such recipe or project{near}")
    return taken[source]


def _repository(root: Path, other: Path | None) -> Repository:
    """The repository, and of its projects `other` alone. Raises ConfigError if what is needed of it is wrong."""
    repository, problems = survey(root, skip=lambda path: path != other)
    own = [one for one in problems if repository is None or (other and one.file == shown(other, root))]
    if own or repository is None or (other and other.parent.name not in repository.projects):
        raise ConfigError(*(own or problems))
    return repository


def _images(given: str | None, folder: Path) -> tuple[str, Pictures | None]:
    """The folder of images as the manifest names it, and what is in it; None if there is nothing yet.

    Raises UsageError for a folder without images: who names one has some.
    """
    if given is not None:
        path = Path(os.path.abspath(os.path.expanduser(given)))
        try:
            pictures = look(path)
        except OSError as error:
            raise UsageError(f"--images {given}: {error.strerror}") from None
        if not pictures.images:
            raise UsageError(f"--images {given}: no images in this folder")
        return Path(os.path.relpath(path, folder)).as_posix(), pictures
    for name in ("images", "."):  # who made the folder first
        try:
            if (pictures := look(folder / name)).images:
                return name, pictures
        except OSError:
            continue
    return "images", None


def _base(given: str | None, repository: Repository) -> str:
    """The base that is named, or the only one, or the one marked. Raises UsageError that names the choices."""
    bases = repository.bases
    if given is not None:
        if given not in bases:
            near = near_miss(given, bases) or f" ({', '.join(bases)})"
            raise UsageError(f"--base {given}: no such base in lorabuild.toml{near}")
        return given
    marked = [name for name, base in bases.items() if base.get("default")]
    if len(marked or bases) == 1:
        return (marked or list(bases))[0]
    choices = " or ".join(f"--base {name}" for name in marked or bases)
    said = "several are marked as default" if marked else "or mark one with default = true in lorabuild.toml"
    raise UsageError(f"which base? {choices} ({said})")


def _write(root: Path, folder: Path, text: str, recipes: Sequence[str]) -> None:
    """Write the manifest and recipes that it needs, if a build would take them. Raises ConfigError, and writes nothing."""
    path = folder / "lora.toml"
    own = [packaged()[name] for name in recipes if name in packaged()]
    files = {root / "recipes" / recipe.name: copied(recipe, there("recipe", root)) for recipe in own}
    schema = first_line("lora", f"projects/{folder.name}/lora.toml") * there("lora", root)
    files[path] = (schema + text).encode()
    known = set(map(str, survey(root, skip=lambda one: True)[1]))
    wrong = [one for one in survey(root, skip=lambda one: one != path, instead=files)[1] if str(one) not in known]
    if wrong:
        raise ConfigError(*wrong)
    for file, data in files.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        with staged(file, root / ".lorabuild") as part:
            part.write_bytes(data)
        print(f"made {shown(file, root)}")


def _tell(root: Path, folder: Path, wanted: Wanted, repository: Repository) -> None:
    """What is there, and what is to be done next."""
    pictures, where = wanted.pictures, Path(os.path.normpath(folder / wanted.images))
    place = os.path.relpath(where)
    if pictures is None:
        print(f"made {shown(where, root)}/")
    else:
        words = f", {pictures.captions} with captions ({pictures.extension})" if pictures.captions else ", no captions"
        print(f"found {pictures.images} images in {place}{words}")
    try:
        base_path(repository, wanted.base)
    except JobError as error:
        warn(str(error))
    print("next:")
    tags = f"{wanted.trigger or wanted.name}, red scarf, sitting"
    if pictures is None:
        print(f"  put images into {place}, 10 to 30 for a start, and tags beside each: 01.png, 01.txt ({tags})")
    elif not pictures.captions:
        print(f"  put tags beside each image, in a file of its name: {quoted(f'{pictures.first}.txt')} ({tags})")
    if wanted.trigger is None:
        print(f"  lorabuild set {wanted.name} project.trigger={(pictures and pictures.first_tag) or 'WORD'}")
    build = "lorabuild build" if is_of_others(root) else "doit"
    print(f"  lorabuild check {wanted.name}\n  {build} {wanted.name}")
