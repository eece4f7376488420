"""The shape of the house: imports point down, a no-op stays light, every stage and every key has its place."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "lorabuild"

# Lowest first. A module imports from its own layer and from those before it.
LAYERS = {
    "ground": "errors signature scan signals ahead memory hashing files header writing bases components names vectors data streams training tensors git codes findings colours tomltext pointing",
    "lora": "lora",
    "manifest": "manifest",
    "model": "stage workspace store state locks runlog history reasons progress inputs metadata publish sampling remotes team loaded events watching nn",
    "stages": "stages",
    "graph": "executors workers rank worker assess urgency rehearsal making builder engine watch session upkeep forecast ending graph",
    "checks": "checks doctor importing scaffold",
    "faces": "cli __main__ verbs report exporting completing",
}
RANK = {name: rank for rank, names in enumerate(LAYERS.values()) for name in names.split()}
HEAVY = {
    "torch",
    "numpy",
    "diffusers",
    "transformers",
    "lycoris",
    "safetensors",
    "PIL",
    "pydantic",
    "rich",
    "tree_sitter",
    "jinja2",
}
MODULES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))


def part_of(module: Path | str) -> str:
    """`nn/noise.py` or `lorabuild.nn.noise` -> `nn`."""
    parts = module.split(".")[1:] if isinstance(module, str) else module.with_suffix("").parts
    return parts[0] if parts else ""


def imports(tree: ast.AST, top_level: bool = False) -> set[str]:
    """What a module imports, leaving out what only a type checker sees."""
    found: set[str] = set()
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            if node.module == "lorabuild":
                found |= {f"lorabuild.{alias.name}" for alias in node.names if (PACKAGE / f"{alias.name}.py").exists()}
            found.add(node.module or "")
        elif not (top_level and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)):
            found |= imports(node, top_level)
    return found


def parsed(module: Path) -> ast.AST:
    return ast.parse((PACKAGE / module).read_text())


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_imports_point_down(module: Path):
    part = part_of(module)
    if part == "__init__":
        return
    assert part in RANK, f"{module} has no layer: give it one in LAYERS"
    for name in imports(parsed(module)):
        if name.startswith("lorabuild.") and part_of(name) != part:
            target = part_of(name)
            assert RANK[target] <= RANK[part], f"{module} ({part}) imports {name}: that is upwards"
            assert not (part == "nn" and RANK[target] == RANK["nn"]), f"{module} imports {name}: nn knows tensors only"


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_only_nn_imports_tensor_libraries_at_the_top(module: Path):
    if part_of(module) == "nn" or module.name == "schema.py" or module.parent.name == "tables":
        return
    heavy = {name.partition(".")[0] for name in imports(parsed(module), top_level=True)} & HEAVY
    assert not heavy, f"{module}: {heavy} belong into the function that needs them"


def test_only_graph_imports_doit():
    users = {
        module.parts[0] for module in MODULES for name in imports(parsed(module)) if name.partition(".")[0] == "doit"
    }
    assert users == {"graph"}


def test_importing_all_that_a_no_op_needs_is_light():
    idle = HEAVY | {"tomllib", "lorabuild.team", "lorabuild.watching"}  # a parser, and what a training alone needs
    code = f"import sys, lorabuild.graph; print({idle!r} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_every_stage_file_is_in_stages():
    from lorabuild import names
    from lorabuild.stages import STAGES

    files = {path.stem for path in (PACKAGE / "stages").glob("*.py")} - {"__init__"}
    assert files == set(STAGES)
    assert tuple(STAGES) == names.STAGES
    assert all(name == stage.name for name, stage in STAGES.items())


def test_every_package_is_shipped():
    import tomllib

    shipped = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    assert shipped.pop(shipped.index("lorabuild.recipes")) == "lorabuild.recipes"  # files alone: tests/test_scaffold.py
    assert shipped == sorted(
        ".".join(path.parent.relative_to(PACKAGE.parent).parts) for path in PACKAGE.rglob("__init__.py")
    )


def test_init_files_hold_no_logic():
    for path in PACKAGE.rglob("__init__.py"):
        kinds = {type(node) for node in ast.parse(path.read_text()).body}
        assert not kinds & {ast.FunctionDef, ast.ClassDef, ast.For, ast.While, ast.If}, path


def test_every_module_says_what_it_is_in_one_sentence():
    for module in MODULES:
        doc = ast.get_docstring(parsed(module))
        assert doc, f"{module} has no docstring"
        assert len(doc.split("\n\n")[0].splitlines()) <= 2, f"{module}: the first sentence is too long"


def test_the_manifest_reference_is_the_schemas():
    from lorabuild.manifest.reference import reference

    page = (PACKAGE.parent / "docs/manifest.md").read_text()
    assert page == reference() + "\n", "python -m lorabuild.manifest.reference > docs/manifest.md"


def test_every_command_is_in_the_readme():
    from lorabuild.cli import DOIT_VERBS, VERBS

    readme = (PACKAGE.parent / "README.md").read_text()
    assert [
        verb for verb in (*DOIT_VERBS, *VERBS) if f"`lorabuild {verb}" not in readme and f"`doit {verb}" not in readme
    ] == ["run"]


def test_every_command_of_a_repository_is_registered_with_doit():
    import tomllib

    from lorabuild import graph

    said = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["tool"]["doit"]["plugins"]["command"]
    assert said == {name: f"lorabuild.graph:{command.__name__}" for name, command in graph.COMMANDS.items()}
    assert all(getattr(graph, command.__name__) is command for command in graph.COMMANDS.values())
