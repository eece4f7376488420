"""`lorabuild diff`: two projects, two commits of one, two files: what differs, and 0, 1 or 2 as diff has it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from chops import chops, commit, git, lock, manifest, repository, safetensors
from world import World

from lorabuild.nn.distance import difference_square, inner
from lorabuild.nn.factors import Dense, Kronecker, Product


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Two projects that are built and committed; then one was changed, built and committed."""
    world = chops(tmp_path_factory.mktemp("template") / "repository", "ember", "frost")
    manifest(world, "ember", variants={"mini": '["TE"]'})
    assert world.doit().code == 0
    repository(world)
    manifest(world, "ember", keep='["TE"]', title="Two", variants={"mini": '["TE1", "OUT02"]'})
    assert world.doit().code == 0
    commit(world)
    return world


@pytest.fixture
def world(once: World, tmp_path: Path) -> World:
    return once.copy(tmp_path / "repository")


def diff(world: World, a: str, b: str, code: int = 1) -> dict:
    result = world.lorabuild("diff", a, b, "--json")
    assert result.code == code, result.out + result.err
    found = json.loads(result.out)
    assert found["same"] == (code == 0)
    return found


def settings(found: dict) -> dict[str, tuple]:
    return {row["key"]: (row["a"], row["b"]) for row in found["settings"]}


def trouble(world: World, a: str, b: str, code: int = 2) -> str:
    result = world.lorabuild("diff", a, b)
    assert (result.code, len(result.err.splitlines())) == (code, 1), result.out + result.err
    return result.err


# projects


def test_two_commits_of_a_project_differ_by_resolved_settings_and_artifacts(world: World):
    found = diff(world, "HEAD~1:ember", "ember")
    assert settings(found) == {
        "chop.keep.OUT01": (1.0, 0.0),
        "project.title": ("One", "Two"),
        "variants.mini.chop.keep.OUT02": (0.0, 1.0),
        "variants.mini.chop.keep.TE2": (1.0, 0.0),
    }
    assert [(row["job"], row["role"], row["same_key"]) for row in found["artifacts"]] == [
        ("chop", "weights", False),
    ]
    sizes = [found["artifacts"][0][side]["size"] for side in "ab"]
    assert sizes[0] > sizes[1] > 0
    text = world.lorabuild("diff", "HEAD~1:ember", "ember").out
    assert (
        "chop.keep.OUT01: 1 -> 0\n" in text and 'project.title: "One" -> "Two"\n' in text and "chop weights: " in text
    )


def test_a_commit_beside_itself_and_the_working_folder_is_the_same(world: World):
    assert diff(world, "HEAD:ember", "ember", code=0)["artifacts"] == []
    assert diff(world, "HEAD:ember", "main:ember", code=0)["settings"] == []
    assert world.lorabuild("diff", "ember", "ember").out == "no difference\n"


def test_a_variant_is_compared_by_itself(world: World):
    found = diff(world, "HEAD~1:ember@mini", "ember@mini")
    assert {key for key in settings(found) if key.startswith("chop")} == {"chop.keep.OUT02", "chop.keep.TE2"}
    assert diff(world, "HEAD~1:ember@mini", "ember")["settings"]  # title alone: the blocks are the same
    assert "chop.keep.TE2" not in settings(diff(world, "HEAD~1:ember@mini", "ember"))


def test_blocks_in_another_spelling_are_no_difference(world: World):
    manifest(world, "ember", keep='["TE2", "TE1"]', title="Two", variants={"mini": '["OUT02", "TE1"]'})
    assert diff(world, "HEAD:ember", "ember", code=0)


def test_a_variant_that_one_side_lacks_is_told_by_what_it_has_of_its_own(world: World):
    manifest(world, "ember", keep='["TE"]', title="Two")
    world.doit()
    assert settings(diff(world, "HEAD:ember", "ember")) == {
        "variants.mini": ({"chop.keep.OUT02": 1.0, "chop.keep.TE2": 0.0}, None)
    }


def test_two_projects_are_compared(world: World):
    assert "chop.keep.OUT01" in settings(diff(world, "ember", "frost"))


def test_a_recipe_of_that_commit_counts_and_not_todays(world: World):
    world.write("recipes/base.toml", "[project]\nauthor = 'one'\n")
    path = world.root / "projects/ember/lora.toml"
    path.write_text("extends = 'base'\n" + path.read_text())
    world.doit()
    commit(world)
    world.write("recipes/base.toml", "[project]\nauthor = 'two'\n")
    assert settings(diff(world, "HEAD:ember", "ember")) == {"project.author": ("one", "two")}


def test_what_is_not_built_is_compared_as_it_was_built_last_and_told(world: World):
    manifest(world, "ember", keep='["TE2"]', title="Two", variants={"mini": '["TE1", "OUT02"]'})
    result = world.lorabuild("diff", "HEAD:ember", "ember", "--json")
    assert "not built as it stands now, compared as built last: chop:ember\n" in result.err
    assert settings(json.loads(result.out)) == {"chop.keep.TE1": (1.0, 0.0)} and not json.loads(result.out)["artifacts"]


def test_without_a_lock_only_settings_are_compared_and_that_is_told(world: World):
    git(world, "rm", "-q", "--cached", "projects/ember/lora.lock")
    git(world, "commit", "-q", "-m", "x")
    found = diff(world, "HEAD:ember", "ember", code=0)
    assert found["artifacts"] is None and found["data"] is None
    assert "not compared" in world.lorabuild("diff", "HEAD:ember", "ember").out


def test_other_bytes_under_the_same_key_are_told_as_another_build(world: World):
    text = lock(world, "ember").read_text()
    digest = text.split('"chop:ember"')[1].split('digest = "')[1][:32]
    lock(world, "ember").write_text(text.replace(digest, "0" * 32, 1))
    commit(world)
    (row,) = diff(world, "HEAD:ember", "ember")["artifacts"]
    assert row["same_key"] and row["a"]["digest"] == "0" * 32
    assert "same key, another build" in world.lorabuild("diff", "HEAD:ember", "ember").out


def test_images_are_told_as_added_removed_and_recaptioned(built: World):
    repository(built)
    images = built.root / "projects/ember/images"
    built.write("projects/ember/images/2.txt", "ember, blue, sit, 2")
    built.picture("projects/ember/images/5.png", 5)
    (images / "1.png").unlink()
    (images / "1.txt").unlink()
    assert built.doit("dataset:ember").code == 0
    found = diff(built, "HEAD:ember", "ember")
    rows = {row["image"]: row for row in found["data"]}
    assert {name: row["change"] for name, row in rows.items() if not name.startswith("image ")} == {
        "projects/ember/images/2.png": "changed",
        "projects/ember/images/5.png": "added",
    }
    assert rows["projects/ember/images/2.png"]["a"] == [["ember, red, sit, 2", 1]]
    assert rows["projects/ember/images/2.png"]["b"] == [["ember, blue, sit, 2", 1]]
    (gone,) = (row for name, row in rows.items() if name.startswith("image "))  # its name stands in no artifact
    assert (gone["change"], gone["a"]) == ("removed", [["ember, red, sit, 1", 1]])
    assert not found["settings"]
    text = built.lorabuild("diff", "HEAD:ember", "ember").out
    assert 'projects/ember/images/2.png: "ember, red, sit, 2" -> "ember, blue, sit, 2"' in text


# mistakes


def test_a_mistake_is_one_line_and_2(world: World):
    assert 'did you mean "ember"?' in trouble(world, "embr", "ember")
    assert 'did you mean "ember"?' in trouble(world, "HEAD:embr", "ember")
    assert "git knows no such commit" in trouble(world, "nowhere:ember", "ember")
    assert "no such variant" in trouble(world, "ember@min", "ember")
    assert "no such file" in trouble(world, "a.safetensors", "b.safetensors")
    assert "a file is compared with a file" in trouble(world, "ember", "projects/ember/a.safetensors")
    assert "--help" in trouble(world, "ember", "--nonsense")


def test_a_wrong_manifest_of_a_commit_is_told_with_the_commit(world: World):
    good = (world.root / "projects/ember/lora.toml").read_text()
    world.write("projects/ember/lora.toml", good.replace("title", "titel"))
    commit(world)
    world.write("projects/ember/lora.toml", good)
    said = trouble(world, "HEAD:ember", "ember", code=3)
    assert said.startswith("HEAD:projects/ember/lora.toml:4: ") and 'did you mean "title"?' in said


# files


def file(path: Path, tensors: dict, metadata: dict[str, str] | None = None) -> str:
    shaped = {name: (one.shape, one.ravel().tolist()) for name, one in tensors.items()}
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(safetensors(shaped, metadata))
    return str(path)


def layer(module: str, rank: int, seed: int, alpha: float | None = None) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    found = {
        f"{module}.lora_down.weight": random.normal(size=(rank, 6)).astype("f4"),
        f"{module}.lora_up.weight": random.normal(size=(5, rank)).astype("f4"),
    }
    return found | ({f"{module}.alpha": np.array(alpha, "f4")} if alpha is not None else {})


def delta(tensors: dict, module: str) -> np.ndarray:
    """What a layer adds, as the full matrix."""
    down, up = tensors[f"{module}.lora_down.weight"], tensors[f"{module}.lora_up.weight"]
    return up.astype("f8") @ down.astype("f8") * (tensors.get(f"{module}.alpha", np.array(len(down))) / len(down))


TE, OUT, INP = (
    "lora_te1_text_model_encoder_layers_0_mlp_fc1",
    "lora_unet_output_blocks_1_0_x",
    "lora_unet_input_blocks_4_1_x",
)


def test_files_differ_by_the_distance_of_what_they_add_block_by_block(tmp_path: Path):
    world = World(tmp_path)
    a = layer(TE, 2, 1) | layer(OUT, 3, 2, alpha=1.5) | layer(INP, 2, 3)
    b = layer(TE, 2, 1) | layer(OUT, 2, 4, alpha=3) | layer(INP.replace("4_1", "7_1"), 2, 3)
    found = diff(world, file(tmp_path / "a.safetensors", a), file(tmp_path / "b.safetensors", b))
    rows = {row["block"]: row for row in found["blocks"]}
    assert rows.keys() == {"INP04", "INP07", "OUT01"}  # TE1 is equal
    naive = np.linalg.norm(delta(a, OUT) - delta(b, OUT)) / np.linalg.norm(delta(a, OUT))
    assert rows["OUT01"]["distance"] == pytest.approx(naive, rel=1e-12)
    assert (rows["OUT01"]["rank_max"], rows["OUT01"]["tensors"]) == ([3, 2], [3, 3])
    assert (rows["INP04"]["only"], rows["INP07"]["only"], rows["INP04"]["distance"]) == ([1, 0], [0, 1], None)


def test_other_metadata_alone_is_told(tmp_path: Path):
    world = World(tmp_path)
    a = file(tmp_path / "a.safetensors", layer(TE, 2, 1), {"title": "a", "both": "x"})
    b = file(tmp_path / "b.safetensors", layer(TE, 2, 1), {"both": "x", "new": "b"})
    found = diff(world, a, b)
    assert [row["key"] for row in found["metadata"]] == ["new", "title"]
    assert found["weights"] and not found["blocks"]
    assert world.lorabuild("diff", a, b).out == "metadata new: unset -> b\nmetadata title: a -> unset\n"
    assert diff(world, a, a, code=0)


def test_an_alpha_of_the_same_effect_is_no_distance_but_other_bytes(tmp_path: Path):
    world = World(tmp_path)
    one, other = layer(TE, 2, 1, alpha=2), layer(TE, 2, 1)
    a, b = file(tmp_path / "a.safetensors", one), file(tmp_path / "b.safetensors", other)
    assert diff(world, a, b)["blocks"] == []
    assert "equal numbers in another form" in world.lorabuild("diff", a, b).out


def test_tensors_of_no_layer_are_compared_by_their_bytes(tmp_path: Path):
    world = World(tmp_path)
    norm = {f"{OUT}.w_norm": np.ones(4, "f4"), f"{INP}.w_norm": np.ones(4, "f4")}
    a = file(tmp_path / "a.safetensors", layer(TE, 2, 1) | norm)
    b = file(tmp_path / "b.safetensors", layer(TE, 2, 1) | norm | {f"{OUT}.w_norm": np.zeros(4, "f4")})
    (row,) = diff(world, a, b)["blocks"]
    assert (row["block"], row["others"], row["layers"]) == ("OUT01", 1, 0)


# the algebra


def factors(seed: int) -> list:
    """The same kinds of factors, of weights [6, 8]."""
    random = np.random.default_rng(seed)

    def part(*shape: int) -> np.ndarray:
        return random.normal(size=shape)

    return [
        Product(part(6, 2), part(2, 8)),
        Dense(part(6, 8)),
        Kronecker(Dense(part(2, 4)), Product(part(3, 2), part(2, 2))),
        Kronecker(Dense(part(3, 2)), Dense(part(2, 4))),
    ]


@pytest.mark.parametrize("first", range(4))
@pytest.mark.parametrize("second", range(4))
def test_distances_are_those_of_the_full_matrices(first: int, second: int):
    a, b = factors(1)[first], factors(2)[second]
    assert inner(a, b) == pytest.approx(np.vdot(a.dense(), b.dense()), rel=1e-12)
    square = np.linalg.norm(0.5 * a.dense() - 3 * b.dense()) ** 2
    assert difference_square(a, 0.5, b, 3) == pytest.approx(square, rel=1e-12)


@pytest.mark.parametrize("kind", range(4))
def test_equal_factors_are_exactly_no_distance_apart(kind: int):
    assert difference_square(factors(1)[kind], 0.3, factors(1)[kind], 0.3) == 0.0
    assert difference_square(factors(1)[kind], 0.3, factors(1)[kind], 0.4) > 0


def test_products_are_compared_without_forming_the_weight(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Product, "dense", lambda self: pytest.fail("formed"))
    monkeypatch.setattr(Kronecker, "dense", lambda self: pytest.fail("formed"))
    for kind in (0, 2, 3):
        difference_square(factors(1)[kind], 1, factors(2)[kind], 1)
