"""The recipes that come with lorabuild, and copies of them for a repository."""

from __future__ import annotations

from pathlib import Path

from lorabuild import __version__
from lorabuild.scaffold.schemas import first_line

HERE = Path(__file__).resolve().parents[1]
FOLDERS = (
    HERE / "recipes",
    HERE.parent / "recipes",
)  # installed; in lorabuild's own repository, which is where they are written


def packaged() -> dict[str, Path]:
    """Name -> file of each recipe that comes with lorabuild."""
    folder = next((one for one in FOLDERS if one.is_dir()), FOLDERS[0])
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def copied(recipe: Path, schema: bool) -> bytes:
    """A recipe as a repository gets it: it says where it came from, and names its schema if there is one for editors."""
    said = first_line("recipe", f"recipes/{recipe.name}") * schema
    said += f"# The recipe {recipe.stem} of lorabuild {__version__}, copied here to be changed at will.\n\n"
    return said.encode() + recipe.read_bytes()


def available(root: Path) -> list[str]:
    """The names of a repository's recipes, and of those that it could have."""
    return sorted({path.stem for path in (root / "recipes").glob("*.toml")} | packaged().keys())
