"""`lorabuild export`: a program finds the file and what it reads beside it, and nobody's own files are lost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from world import World

from lorabuild.errors import JobError, UsageError, UserError
from lorabuild.exporting.packages import LAYOUTS
from lorabuild.hashing import sha256_from
from lorabuild.header import read_header
from lorabuild.verbs.export import main

MARK = "lorabuild"


@pytest.fixture
def world(built: World, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.chdir(built.root)
    return built


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A folder of another program."""
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


def artifact(world: World, end: str = "-chopped") -> Path:
    return world.root / f"build/ember/ember{end}.safetensors"


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def told(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def draw(world: World, path: Path) -> Path:
    """A picture as `doit samples` leaves it, of the weights at `path`; and another one of other weights."""
    from lorabuild.state import State

    state = State(world.root / ".lorabuild/state.sqlite", world.root)
    row = state.published(path)
    assert row is not None
    state.close()
    folder = world.root / "build/ember/samples"
    folder.mkdir(exist_ok=True)
    for number, name in enumerate(("00-base", "00-chopped", "01-chopped")):
        Image.new("RGB", (8, 8), (number * 9, 0, 0)).save(folder / f"{name}.png")
    digest = row[0].partition(":")[0]
    drawn = [("00-base", None), ("00-chopped", digest), ("01-chopped", digest)]
    pictures = [{"file": f"samples/{name}.png", "digest": one} for name, one in drawn]
    (folder.parent / "samples.json").write_text(json.dumps({"pictures": pictures}))
    return folder / "00-chopped.png"


def test_a1111_gets_the_very_file_with_its_card_and_preview(world: World, tmp_path: Path, capsys: Any):
    picture, out = draw(world, artifact(world)), tmp_path / "loras"
    assert main(["ember", "--to", "a1111", "-o", str(out), "--weight", "0.8"]) == 0
    assert names(out) == {f"ember-chopped.{end}" for end in ("safetensors", "json", "png")}
    assert (out / "ember-chopped.safetensors").read_bytes() == artifact(world).read_bytes()
    assert (out / "ember-chopped.png").read_bytes() == picture.read_bytes()
    card = told(out / "ember-chopped.json")
    assert card["sd version"] == "SDXL"
    assert card["activation text"] == "ember"
    assert card["preferred weight"] == 0.8
    assert {"description", "negative text", "notes"} <= card.keys()
    assert "Blocks: OUT01, TE1, TE2" in card["notes"] and "Training: 4 steps" in card["notes"]
    assert ": written, " in capsys.readouterr().out


def test_a_programs_own_folder_is_enough(world: World, tmp_path: Path):
    for to, inside in (("a1111", "models/Lora"), ("comfy", "models/loras")):
        (tmp_path / to / inside).mkdir(parents=True)
        assert main(["ember", "--to", to, "-o", str(tmp_path / to)]) == 0
        assert f"{inside}/ember-chopped.safetensors" in names(tmp_path / to)
    assert (tmp_path / "comfy/models/loras/ember-chopped.txt").read_text() == "ember\n"


def test_a_folder_gets_a_model_card(world: World, tmp_path: Path):
    title = 'title = "<script>alert(1)</script> | *x*"\\nlicense = "mine only"'.replace("\\n", "\n")
    world.manifest(title=title)
    assert world.doit().code == 0
    assert main(["ember", "--to", "folder", "--artifact", "resized", "-o", str(tmp_path / "out")]) == 0
    folder = tmp_path / "out/ember-resized"
    assert names(folder) == {"ember-resized.safetensors", "ember-resized.json", "README.md"}
    card = (folder / "README.md").read_text()
    sha256 = sha256_from(folder / "ember-resized.safetensors")
    for said in (sha256, sha256[:10], "Trigger: `ember`", 'instance_prompt: "ember"', "| Base model | tiny |"):
        assert said in card
    assert 'license: other\nlicense_name: "mine only"' in card
    assert "# \\<script\\>alert(1)\\</script\\> \\| \\*x\\*" in card and "<script>" not in card


def test_all_artifacts_and_snapshots_are_exported(world: World, tmp_path: Path):
    assert main(["e*", "--to", "comfy", "--artifact", "all", "-o", str(tmp_path)]) == 0
    expected = {path.name for path in (world.root / "build/ember").glob("*.safetensors")}
    assert {path.name for path in tmp_path.glob("*.safetensors")} == expected
    assert main(["ember", "--to", "folder", "--artifact", "step/2", "-o", str(tmp_path)]) == 0
    assert (tmp_path / "ember-step00000002/ember-step00000002.safetensors").is_file()


def test_diffusers_gets_a_folder_that_it_loads(world: World, tmp_path: Path):
    assert main(["ember", "--to", "diffusers", "-o", str(tmp_path)]) == 0
    folder = tmp_path / "ember-chopped"
    assert names(folder) == {"pytorch_lora_weights.safetensors", "pytorch_lora_weights.json", "README.md"}
    header = read_header(folder / "pytorch_lora_weights.safetensors")
    assert all(key.startswith(("unet.", "text_encoder")) for key in header.tensors)
    assert header.metadata["sshs_model_hash"] == sha256_from(
        folder / "pytorch_lora_weights.safetensors", header.data_start
    )
    assert 'load_lora_weights("ember-chopped")' in (folder / "README.md").read_text()


def test_variants_have_files_of_their_own(world: World, tmp_path: Path):
    manifest = world.root / "projects/ember/lora.toml"
    manifest.write_text(manifest.read_text() + '\n[variants.mini.chop]\nkeep = ["OUT01"]\n')
    assert world.doit().code == 0
    assert main(["ember@mini", "--to", "a1111", "-o", str(tmp_path)]) == 0
    assert main(["ember", "--variant", "mini", "--to", "a1111", "-o", str(tmp_path)]) == 0
    assert {path.name for path in tmp_path.glob("*.safetensors")} == {"ember-mini-chopped.safetensors"}
    with pytest.raises(UsageError, match=r'ember@mimi: no such variant \(did you mean "mini"'):
        main(["ember@mimi", "--to", "a1111", "-o", str(tmp_path)])


# what stands there already


def test_exporting_again_changes_nothing(world: World, tmp_path: Path, capsys: Any):
    draw(world, artifact(world))
    for to in LAYOUTS:
        command = ["ember", "--to", to, "-o", str(tmp_path / to)]
        assert main(command) == 0
        capsys.readouterr()
        before = {path: path.stat().st_mtime_ns for path in (tmp_path / to).rglob("*")}
        assert main([*command, "--json"]) == 0
        (one,) = json.loads(capsys.readouterr().out)["exported"]
        assert {file["action"] for file in one["files"]} == {"there"}
        assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / to).rglob("*")}


def test_what_was_exported_before_is_replaced(world: World, tmp_path: Path):
    assert main(["ember", "--to", "a1111", "-o", str(tmp_path)]) == 0
    world.manifest(keep='["OUT01"]')
    assert world.doit().code == 0
    assert main(["ember", "--to", "a1111", "-o", str(tmp_path)]) == 0
    assert (tmp_path / "ember-chopped.safetensors").read_bytes() == artifact(world).read_bytes()
    assert "Blocks: OUT01\n" in told(tmp_path / "ember-chopped.json")["notes"] + "\n"


def test_somebody_elses_file_is_not_replaced(world: World, out: Path):
    theirs = out / "ember-chopped.safetensors"
    theirs.write_bytes(b"mine")
    with pytest.raises(JobError, match=r"another file, which was not exported from ember: --as NAME .* --force"):
        main(["ember", "--to", "a1111", "-o", str(out)])
    assert names(out) == {"ember-chopped.safetensors"} and theirs.read_bytes() == b"mine"
    (out / "fire.json").write_text(json.dumps({"preferred weight": 0.3, "stars": 5}))  # nor what it says of a LoRA
    assert main(["ember", "--to", "a1111", "--as", "fire", "-o", str(out)]) == 0
    assert {"preferred weight": 0.3, "stars": 5, "activation text": "ember"}.items() <= told(out / "fire.json").items()
    renamed, original = read_header(out / "fire.safetensors"), read_header(artifact(world))
    assert renamed.metadata["ss_output_name"] == "fire"
    assert renamed.metadata["sshs_model_hash"] == original.metadata["sshs_model_hash"]
    assert renamed.metadata["lorabuild.recipe"] == original.metadata["lorabuild.recipe"]
    assert main(["ember", "--to", "a1111", "--force", "-o", str(out)]) == 0
    assert theirs.read_bytes() == artifact(world).read_bytes()


def test_a_link_that_leads_nowhere_is_somebodys(world: World, out: Path):
    """To a disk that is not there just now."""
    theirs = out / "ember-chopped.safetensors"
    theirs.symlink_to(out / "nowhere")
    with pytest.raises(JobError, match="another file"):
        main(["ember", "--to", "a1111", "-o", str(out)])
    assert theirs.is_symlink()


def test_a_file_that_was_edited_since_is_not_replaced(world: World, tmp_path: Path):
    """Exported once, then somebody put another file in its place."""
    assert main(["ember", "--to", "a1111", "-o", str(tmp_path)]) == 0
    (tmp_path / "ember-chopped.safetensors").write_bytes(b"mine")
    with pytest.raises(JobError, match="another file"):
        main(["ember", "--to", "a1111", "-o", str(tmp_path)])


def test_what_a_user_has_changed_beside_it_stays(world: World, tmp_path: Path, capsys: Any):
    draw(world, artifact(world))
    command = ["ember", "--to", "comfy", "-o", str(tmp_path)]
    assert main(command) == 0
    card = tmp_path / "ember-chopped.json"
    card.write_text(json.dumps({**told(card), "preferred weight": 0.65, "my stars": 5}))
    (tmp_path / "ember-chopped.png").write_bytes(b"a better picture")
    (tmp_path / "ember-chopped.txt").write_text("ember, on fire\n")
    world.manifest(keep='["OUT01"]')
    assert world.doit().code == 0
    for _ in range(2):  # once more: it stays theirs
        assert main(command) == 0
        assert (tmp_path / "ember-chopped.safetensors").read_bytes() == artifact(world).read_bytes()
        found = told(card)
        assert (found["preferred weight"], found["my stars"]) == (0.65, 5)
        assert "Blocks: OUT01" in found["notes"] and "TE1" not in found["notes"]
        assert (tmp_path / "ember-chopped.txt").read_text() == "ember, on fire\n"
    assert "kept as somebody has changed it: ember-chopped.txt" in capsys.readouterr().out
    assert (tmp_path / "ember-chopped.png").read_bytes() == b"a better picture"


def test_all_or_nothing(world: World, out: Path, monkeypatch: pytest.MonkeyPatch):
    """One of two that cannot be written: neither is; a failing write leaves no part."""
    (out / "ember-resized.safetensors").write_bytes(b"mine")
    before = names(out)
    with pytest.raises(UserError):
        main(["ember", "--to", "a1111", "--artifact", "all", "-o", str(out)])
    assert names(out) == before
    new = out / "new"

    def full(content: Any) -> Any:
        yield b"some"
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lorabuild.exporting.delivery._chunks", full)
    with pytest.raises(OSError, match="No space"):
        main(["ember", "--to", "a1111", "-o", str(new)])
    assert names(new) == set()


def test_a_dry_run_writes_nothing(world: World, tmp_path: Path, capsys: Any):
    for to in LAYOUTS:
        assert main(["ember", "--to", to, "-o", str(tmp_path / "new"), "--dry-run"]) == 0
    assert not (tmp_path / "new").exists()
    assert capsys.readouterr().out.count("would be written") == len(LAYOUTS)


# what is not as it should be


def test_what_is_stale_is_exported_with_a_word(world: World, tmp_path: Path, capsys: Any):
    world.manifest(keep='["OUT01"]')
    assert main(["ember", "--to", "a1111", "-o", str(tmp_path)]) == 0
    assert "ember-chopped.safetensors: exported as it was built last" in capsys.readouterr().err


def test_what_was_not_built_is_one_line_with_the_command(world: World, tmp_path: Path):
    artifact(world).unlink()
    with pytest.raises(
        JobError, match=r"^build/ember/ember-chopped.safetensors: is not there: lorabuild build chop:ember$"
    ):
        main(["ember", "--to", "a1111", "-o", str(tmp_path)])
    artifact(world, "-resized").write_bytes(b"edited")
    with pytest.raises(JobError, match="is not as it was built: lorabuild build resize:ember puts it right"):
        main(["ember", "--to", "a1111", "--artifact", "resized", "-o", str(tmp_path)])


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["embers", "-o", "x"], 'embers: no such project or file (did you mean "ember"?)'),
        (["ember"], 'say where to: -o DIR, or [export] a1111 = "DIR" in lorabuild.local.toml'),
        (["ember", "-o", "x", "--artifact", "choped"], '(did you mean "chopped"?)'),
        (["ember", "-o", "x", "--artifact", "step/3"], "no snapshot of step 3 in build/: there are 2"),
        (["ember", "-o", "x", "--artifact", "all", "--as", "a"], "--as a: names one LoRA, and there are"),
        (["ember", "-o", "x", "--as", "a,b"], 'cannot be the name of a LoRA, it has ","'),
        (["ember", "-o", "x", "--as", "../a"], "cannot be the name of a LoRA"),
        (["ember", "-o", "lorabuild.toml"], "is a file; a folder was expected"),
        (["nothing.safetensors", "-o", "x"], "no such file"),
        (["ember", "-o", ""], "argument -o/--out: a name was expected, and it is empty"),
    ],
)
def test_mistakes_are_one_line(world: World, args: list[str], said: str):
    world.write("lorabuild.toml", "")
    with pytest.raises(UserError) as error:
        main([*args, "--to", "a1111"])
    assert said in str(error.value) and len(error.value.problems) == 1
    assert not (world.root / "x").exists()


def test_folders_are_configured(world: World, tmp_path: Path):
    world.write("lorabuild.local.toml", '[export]\na1111 = "../forge"\n')
    with pytest.raises(UsageError, match="no such folder"):
        main(["ember", "--to", "a1111"])
    (world.root.parent / "forge").mkdir()
    assert main(["ember", "--to", "a1111"]) == 0
    assert (world.root.parent / "forge/ember-chopped.safetensors").is_file()


def test_any_file_is_exported_without_a_repository(built_once: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "some lora.safetensors"
    path.write_bytes((built_once.root / "build/ember/ember.safetensors").read_bytes())
    path.with_suffix(".png").write_bytes(b"picture")
    for to in LAYOUTS:
        assert main([path.name, f"./{path.name}", "--to", to, "-o", to]) == 0  # one file, however it is named
    assert names(tmp_path / "comfy") == {f"some lora.{end}" for end in ("safetensors", "png", "json", "txt")}
    assert (tmp_path / "diffusers/some lora/pytorch_lora_weights.png").read_bytes() == b"picture"
    with pytest.raises(UsageError, match="--artifact is for projects"):
        main([str(path), "--to", "a1111", "-o", "x", "--artifact", "trained"])
    with pytest.raises(JobError, match="is another file"):  # nor is the file itself replaced by one of another name
        path.write_bytes((built_once.root / "build/ember/ember-chopped.safetensors").read_bytes())
        (tmp_path / "comfy/some lora.json").unlink()
        main([str(path), "--to", "comfy", "-o", "comfy"])
