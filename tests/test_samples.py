"""Pictures: which are asked for, that they cost a training nothing, not even a byte, and that none is drawn twice."""

from __future__ import annotations

import json
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny_base import outputs, tiny_base, tiny_digests, tiny_folder, training
from world import World

from lorabuild.data.prompts import Prompt
from lorabuild.errors import JobError
from lorabuild.hashing import digest_bytes, digest_file
from lorabuild.header import read_header
from lorabuild.lora.chopping import Blocks, chopped
from lorabuild.names import BLOCKS
from lorabuild.nn.applied import applied
from lorabuild.nn.sampler import draw
from lorabuild.nn.vae import load_vae
from lorabuild.sampling.differences import mean_difference, pixels_of
from lorabuild.sampling.pictures import parameters, png, settings_of, sheet
from lorabuild.sampling.samples import default_size, sample_steps, too_long
from lorabuild.stage import Artifact, Component, Job, TextFile
from lorabuild.stages.samples import STAGE as SAMPLES
from lorabuild.stages.train import STAGE as TRAIN
from lorabuild.workspace import Workspace
from lorabuild.writing import write_body

PROMPTS = "ember, red --w 64 --h 64 --s 2 --d 3\n# not this\nember, sit --w 64 --h 64 --s 2 --n red\n"
TABLE = {
    "prompts": "prompts.txt",
    "sample_sampler": "euler_a",
    "sample_every_n_steps": None,
    "sample_every_n_epochs": None,
    "sample_at_first": False,
    "parity": False,
}
RECIPE = {"seed": 7, "mixed_precision": "no"}
NAMES = ("unet", "te1", "te2", "tokenizer1", "tokenizer2", "vae")


def of_prompt(prompt: Prompt, index: int = 0, **samples: Any) -> dict[str, Any]:
    return settings_of(prompt, index, {**TABLE, "size": [64, 64], **samples}, RECIPE, "epsilon")


# what is asked for


@pytest.mark.parametrize(
    ("samples", "steps"),
    [
        ({}, {4, 8}),
        ({"sample_every_n_steps": 1}, {1, 2, 3, 4, 5, 6, 7, 8}),
        ({"sample_every_n_steps": 3, "sample_at_first": True}, {0, 3, 6}),
        ({"sample_every_n_epochs": 1}, {2, 4, 5, 7}),  # 5 batches an epoch, 3 an update: epochs end in these
        ({"sample_every_n_epochs": 2}, {4, 7}),
    ],
)
def test_a_training_draws_at_snapshots_or_every_so_often(samples: dict, steps: set[int]):
    assert sample_steps(TABLE | samples, [4, 8], last=8, batches=5, accumulation=3) == steps


def test_the_default_size_is_what_is_trained_on():
    real, tiny = {"file": "sdxl"}, {"builtin": "tiny-sdxl"}
    assert default_size({"dataset": {"resolution": [832, 1216]}}, real) == [832, 1216]
    assert default_size({"dataset": {"resolution": [1001, 64]}}, real) == [1000, 64]
    assert default_size({"dataset": None}, real) == [1024, 1024]
    assert default_size({"dataset": None}, tiny) == [128, 128]
    assert default_size({"dataset": {"resolution": [64, 96]}}, tiny) == [64, 96]


def test_a_seed_follows_from_the_recipes_and_the_place_of_the_prompt():
    one, other = of_prompt(Prompt("a")), of_prompt(Prompt("another text"))
    assert one["seed"] == other["seed"] != of_prompt(Prompt("a"), 1)["seed"]
    assert of_prompt(Prompt("a", seed=3), 1)["seed"] == 3


def test_k_is_karras_unless_parity_says_otherwise():
    assert of_prompt(Prompt("a", sample_sampler="k_euler"))["sampler"] == "k_euler"
    assert of_prompt(Prompt("a", sample_sampler="k_euler"), parity=True) == of_prompt(
        Prompt("a", sample_sampler="euler")
    )
    assert of_prompt(Prompt("a", sample_sampler="ddim"), parity=True)["parity"] is True


def test_long_prompts_are_told_by_both_tokenizers():
    assert too_long([75, 75]) == ""
    assert too_long([75, 80]).startswith("75 and 80 tokens by the two tokenizers: more than the 75")
    assert too_long([75, 151]).endswith("drawn in 3 chunks")


def project(**changes: Any) -> Any:
    recipe = {"max_train_steps": 4, "save_every_n_steps": 2, "seed": 7, "mixed_precision": "no", "unet_lr": 1e-3}
    settings = {
        "project": {"base": "tiny", "source": None},
        "dataset": {"resolution": [64, 64], "subset": []},
        "recipe": recipe,
        "resize": {"step": "last"},
        "chop": {},
        "samples": TABLE,
    } | changes
    folder = Path("/repository/projects/ember")
    one = SimpleNamespace(name="ember", settings=settings, variants={"mini": settings}, swept={}, folder=folder)
    return SimpleNamespace(root=Path("/repository"), projects={"ember": one}, bases={"tiny": {"builtin": "tiny-sdxl"}})


def test_a_job_is_made_of_the_prompts_the_base_and_every_file_of_the_project():
    (job,) = SAMPLES.jobs(project())
    assert job.params == {
        "samples": {"sample_sampler": "euler_a", "parity": False},
        "dataset": {"resolution": [64, 64]},
        "recipe": {"seed": 7, "mixed_precision": "no"},
        "base": {"prediction_type": "epsilon"},
    }
    assert job.inputs["prompts"] == TextFile(
        Path("/repository/projects/ember/prompts.txt"), "projects/ember/prompts.txt", ("samples", "prompts")
    )
    assert {role for role, item in job.inputs.items() if isinstance(item, Component)} == set(NAMES)
    assert {role: item for role, item in job.inputs.items() if isinstance(item, Artifact)} == {
        "step/2": Artifact("train:ember", "step/2"),
        "step/4": Artifact("train:ember", "step/4"),
        "trained": Artifact("train:ember", "weights"),
        "resized": Artifact("resize:ember", "weights"),
        "chopped": Artifact("chop:ember", "weights"),
        "mini/resized": Artifact("resize:ember@mini", "weights"),
        "mini/chopped": Artifact("chop:ember@mini", "weights"),
    }


def test_samples_are_in_no_trainings_key():
    (with_samples,), (without,) = TRAIN.jobs(project()), TRAIN.jobs(project(samples=None))
    assert (with_samples.params, with_samples.inputs) == (without.params, without.inputs)
    assert with_samples.options["samples"]["live"] == "/repository/build/ember/live"
    assert list(SAMPLES.jobs(project(samples=None))) == []


# a picture


def test_a_picture_depends_on_what_is_asked_and_on_nothing_else():
    base = tiny_base()

    def drawn(**changes: Any) -> np.ndarray:
        settings = of_prompt(Prompt("ember, red", "sit", seed=3, sample_steps=2)) | changes
        return draw(base, lambda: load_vae(tiny_folder(), tiny_digests()["vae"]), settings)

    first = drawn()
    assert (first.shape, first.dtype) == ((64, 64, 3), np.uint8)
    assert np.array_equal(drawn(), first)
    assert drawn(width=96).shape == (64, 96, 3)
    for change in ({"prompt": "cat"}, {"negative_prompt": ""}, {"seed": 4}, {"scale": 2.0}, {"sampler": "euler"}):
        assert not np.array_equal(drawn(**change), first), change
    assert np.array_equal(drawn(scale=1.0), drawn(scale=1.0, negative_prompt="cat")), "without guidance it has no say"


def test_a_png_tells_how_it_was_made_and_has_the_same_bytes_each_time():
    settings = of_prompt(
        Prompt("ember, größer", "blurry", seed=3, scale=6.0, sample_steps=20, sample_sampler="k_euler_a")
    )
    pixels = np.zeros((64, 64, 3), np.uint8)
    data = png(pixels, {"weights": "abc", **settings})
    assert data == png(pixels, {"weights": "abc", **settings})
    texts = Image.open(BytesIO(data)).text
    assert texts["parameters"] == parameters(settings) == (
        "ember, größer\nNegative prompt: blurry\n"
        "Steps: 20, Sampler: Euler a, Schedule type: Karras, CFG scale: 6, Seed: 3, Size: 64x64"
    )  # fmt: skip
    assert json.loads(texts["lorabuild"]) == {"weights": "abc", **settings}


def test_a_sheet_shows_small_pictures_in_a_grid():
    picture = png(np.full((64, 128, 3), 200, np.uint8), of_prompt(Prompt("a")))
    page = Image.open(BytesIO(sheet([[picture, picture], [picture, picture]], ["base", "trained"], 64)))
    assert page.size == (2 * 64 + 3 * 4, 16 + 2 * 32 + 3 * 4)


# while it trains


def options(folder: Path, **changes: Any) -> dict[str, Any]:
    samples = TABLE | {"path": str(folder / "prompts.txt"), "shown": "prompts.txt", "live": str(folder / "live")}
    return {"samples": samples | {"size": [64, 64], "sample_every_n_steps": 1, "sample_at_first": True} | changes}


def trained(folder: Path, options: dict[str, Any], recipe: dict[str, Any] | None = None) -> SimpleNamespace:
    """Two updates with a snapshot after the first; what came out, and what was warned of."""
    folder.mkdir(exist_ok=True)
    job, workspace = training(folder, recipe={"max_train_steps": 2, **(recipe or {})}, options=options, snapshots=(1,))
    warnings: list[str] = []
    workspace.warn = warnings.append
    TRAIN.run(job, workspace, lambda done, total, text: None)
    pictures = sorted(path.name for path in (folder / "live").glob("*"))
    return SimpleNamespace(outputs=outputs(folder), warnings=warnings, pictures=pictures, folder=folder)


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    folder = tmp_path_factory.mktemp("watched")
    (folder / "prompts.txt").write_text(PROMPTS)
    return trained(folder, options(folder))


def test_pictures_are_drawn_and_not_a_byte_of_the_training_changes(watched: SimpleNamespace, tmp_path: Path):
    assert watched.warnings == []
    assert watched.pictures == [f"step{step:08}-{index:02}.png" for step in (0, 1, 2) for index in (0, 1)]
    assert watched.outputs == trained(tmp_path, {}).outputs


def test_a_prompt_that_fails_is_one_warning_and_touches_nothing(
    watched: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    import lorabuild.nn.sampler

    real = lorabuild.nn.sampler.draw

    def fails(base: Any, vae: Any, picture: Any, *args: Any) -> np.ndarray:
        found = real(base, vae, picture, *args)
        if "sit" in picture["prompt"]:
            raise RuntimeError("CUDA out of memory\nby far")
        return found

    monkeypatch.setattr(lorabuild.nn.sampler, "draw", fails)
    (tmp_path / "prompts.txt").write_text(PROMPTS)
    found = trained(tmp_path, options(tmp_path))
    assert found.warnings == [
        "prompts.txt:3: the prompt: RuntimeError: CUDA out of memory (not drawn; the training goes on)"
    ]
    assert found.pictures == [f"step{step:08}-00.png" for step in (0, 1, 2)]
    assert found.outputs == watched.outputs


def test_prompts_that_cannot_be_read_are_one_warning(watched: SimpleNamespace, tmp_path: Path):
    found = trained(tmp_path, options(tmp_path))
    assert found.warnings == ["prompts.txt: no such file (not drawn; the training goes on)"]
    assert (found.pictures, found.outputs) == ([], watched.outputs)


def test_the_stage_finds_what_was_drawn_from_a_snapshot(watched: SimpleNamespace, tmp_path: Path):
    step, weights = watched.folder / "staging/step/1", watched.folder / "staging/weights"
    (job,) = SAMPLES.jobs(project(recipe={"max_train_steps": 2, "save_every_n_steps": 1, **RECIPE}))
    files = {"step/1": step, "trained": weights}
    paths = {"prompts": watched.folder / "prompts.txt", **{name: tiny_folder() for name in NAMES}, **files}
    digests = {
        role: digest_file(path) for role, path in {"prompts": paths["prompts"], **files}.items()
    } | tiny_digests()
    warnings: list[str] = []

    def run(prompts: str = PROMPTS) -> Workspace:
        paths["prompts"].write_text(prompts)
        digests["prompts"] = digest_file(paths["prompts"])
        staging = tmp_path / "staging"
        workspace = Workspace(staging, tmp_path, watched.folder / "pieces", paths, digests, warn=warnings.append)
        options = {"prompts": "prompts.txt"}
        SAMPLES.run(Job(job.name, job.params, {}, job.outputs, options=options), workspace, lambda *told: None)
        return workspace

    assert run().notes == {"drawn": 4, "reused": 2}, "the base and the last weights are drawn"
    written = {path.name: path.read_bytes() for path in (tmp_path / "staging/samples").iterdir()}
    columns = ("base", "step00000001", "trained")
    assert set(written) == {f"{n:02}-{name}.png" for n in (0, 1) for name in columns} | {"sheet.png", "strip.png"}
    assert written["00-step00000001.png"] == (watched.folder / "live/step00000001-00.png").read_bytes()
    assert len(set(written.values())) == 8, "each LoRA draws another picture"
    told = json.loads((tmp_path / "staging/samples.json").read_bytes())["pictures"]
    assert [one["weights"] for one in told[::2]] == ["base", "step/1", "trained"]
    assert run().notes == {"drawn": 0, "reused": 6}
    assert {path.name: path.read_bytes() for path in (tmp_path / "staging/samples").iterdir()} == written
    assert run(PROMPTS.replace("--n red", "--n " + "cat " * 80)).notes == {"drawn": 3, "reused": 3}, "one prompt"
    assert warnings == []
    run(PROMPTS.replace("ember, sit", "sit " * 80))
    assert [line[:61] for line in warnings] == ["prompts.txt:3: 80 and 80 tokens by the two tokenizers: more t"]
    with pytest.raises(JobError, match=r"^prompts.txt:1: --s x: a whole number"):
        run("ember --s x")


def test_each_block_is_drawn_left_out_and_alone(watched: SimpleNamespace, tmp_path: Path):
    whole, few = watched.folder / "staging/weights", tmp_path / "few.safetensors"
    tensors = read_header(whole).tensors
    weights = {block: float(block in ("OUT01", "TE2")) for block in BLOCKS}
    write_body(few, list(chopped(whole, tensors, Blocks.read(tensors), weights)))
    (job,) = SAMPLES.jobs(project(recipe={"max_train_steps": 2, **RECIPE}, samples={**TABLE, "blocks_ablation": True}))
    assert job.params["samples"] == {"sample_sampler": "euler_a", "parity": False, "blocks_ablation": True}
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("ember, red --w 64 --h 64 --s 2 --d 3\n")
    paths = {"prompts": prompts, **{name: tiny_folder() for name in NAMES}, "trained": few}
    digests = {role: digest_file(paths[role]) for role in ("prompts", "trained")} | tiny_digests()
    workspace = Workspace(tmp_path / "staging", tmp_path, tmp_path / "pieces", paths, digests)
    job = Job(job.name, job.params, {}, job.outputs, options={"prompts": "prompts.txt"})
    SAMPLES.run(job, workspace, lambda *told: None)
    told = json.loads((tmp_path / "staging/samples.json").read_bytes())["pictures"]
    parts = {(one["shown"], one["block"]): one for one in told if "block" in one}
    assert set(parts) == {(kind, block) for kind in ("without", "only") for block in ("OUT01", "TE2")}
    pictures = {one["file"]: (tmp_path / "staging" / one["file"]).read_bytes() for one in told}
    assert all(digest_bytes(pictures[one["file"]]) == one["picture"] for one in told)
    pixels = {name: pixels_of(data) for name, data in pictures.items()}
    of = {key: pixels[one["file"]] for key, one in parts.items()}
    # With two blocks in the file, one left out is the other alone; and neither is the whole or nothing.
    assert np.array_equal(of["without", "OUT01"], of["only", "TE2"])
    assert np.array_equal(of["without", "TE2"], of["only", "OUT01"])
    assert not np.array_equal(of["only", "TE2"], of["only", "OUT01"])
    for block in ("OUT01", "TE2"):
        assert not np.array_equal(of["only", block], pixels["samples/00-trained.png"])
        assert not np.array_equal(of["only", block], pixels["samples/00-base.png"])
        found = parts["only", block]["difference"]
        assert found == {"trained": mean_difference(of["only", block], pixels["samples/00-trained.png"])}
    alone = tmp_path / "alone.safetensors"
    tensors = read_header(few).tensors
    write_body(alone, list(chopped(few, tensors, Blocks.read(tensors), {"TE2": 0.0})))
    with applied(base := tiny_base(), alone):
        settings = {key: told[0][key] for key in of_prompt(Prompt("a"))}
        found = draw(base, lambda: load_vae(tiny_folder(), tiny_digests()["vae"]), settings)
    assert np.array_equal(found, of["only", "OUT01"]), "as a chop of these blocks would draw"
    assert workspace.notes["drawn"] == 4, "one left out is the other alone: a picture is drawn once"


# by doit


@pytest.mark.slow
def test_a_chop_redraws_what_it_made_and_a_prompts_mistake_is_told_at_once(built: World):
    samples = '[samples]\nprompts = "prompts.txt"\nsample_sampler = "euler"\nsample_every_n_steps = 4\n'
    built.manifest(title=samples)
    result = built.doit("samples:ember")
    assert (result.code, result.ran) == (1, {})
    assert 'projects/ember/lora.toml:5: samples.prompts: "prompts.txt": no such file' in result.err + result.out
    built.write("projects/ember/prompts.txt", "ember --s 2\nsit --zz 3\n")
    result = built.doit()
    assert (result.code, result.ran) == (1, {})
    assert "projects/ember/prompts.txt:2: --zz: no such option" in result.err + result.out
    built.write("projects/ember/prompts.txt", "ember --s 1\n")
    assert built.doit().ran == {}, "samples train nothing"
    result = built.doit("samples:ember")
    assert result.built == {"samples:ember"}, result.out + result.err
    (event,) = result.events
    assert (event["drawn"], event["reused"]) == (4, 1), "the last snapshot is what was trained"
    names = {name for name in built.built_files() if "samples" in name}
    own = {f"ember/samples/00-{one}.png" for one in ("base", "step00000004", "trained", "resized", "chopped")}
    assert names == own | {"ember/samples.json", "ember/samples/sheet.png", "ember/samples/strip.png"}
    assert built.doit("samples:ember").ran == {}
    built.manifest(title=samples, keep='["OUT*"]')
    result = built.doit("samples:ember")
    assert result.built == {"chop:ember", "samples:ember"}
    assert (result.events[-1]["drawn"], result.events[-1]["reused"]) == (1, 4)
    (built.root / "build/ember/samples/00-base.png").unlink()
    assert built.doit("samples:ember").ran == {"samples:ember": "restored"}
    built.write("projects/ember/prompts.txt", "ember --s 1 --d 5\n")
    assert built.doit("samples:ember").why("samples:ember") == "projects/ember/prompts.txt: content"
    assert built.doit("clean", "samples:ember").code == 0
    assert not (built.root / "build/ember/samples").exists()
    assert built.doit("samples:ember").ran == {"samples:ember": "restored"}
    built.manifest()
    assert "removed build/ember/samples/00-base.png: no longer wanted" in built.doit().out
    assert not (built.root / "build/ember/samples").exists()


@pytest.mark.parametrize("there", [True, False])
def test_pictures_are_drawn_on_the_device_that_the_job_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: bool
):
    monkeypatch.setattr("torch.cuda.is_available", lambda: there)
    monkeypatch.setattr("torch.cuda.set_device", lambda number: None)
    seen: dict[str, Any] = {}

    def painter(workspace: Workspace, digests: Any, base: Any, vae: Any, device: Any, stepped: Any) -> None:
        device()
        seen["device"] = device()  # asked for each picture, told once
        raise JobError("far enough")

    monkeypatch.setattr("lorabuild.stages.samples.Painter", painter)
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("ember\n")
    said: list[str] = []
    workspace = Workspace(
        tmp_path / "staging",
        tmp_path,
        tmp_path,
        {"prompts": prompts},
        {"prompts": digest_file(prompts)},
        warn=said.append,
    )
    (job,) = SAMPLES.jobs(project(recipe={"max_train_steps": 2, **RECIPE}, samples=TABLE))
    job = Job(job.name, job.params, {}, job.outputs, options={"prompts": "prompts.txt", "device": "cuda"})
    with pytest.raises(JobError, match="far enough"):
        SAMPLES.run(job, workspace, lambda *told: None)
    assert (seen["device"], len(said)) == (("cuda", 0) if there else ("cpu", 1)), said
