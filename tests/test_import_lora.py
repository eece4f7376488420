"""`lorabuild import FILE.safetensors`: a file tells its recipe again; one that lorabuild wrote tells all that shaped it."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from manifest_world import Files

from lorabuild.errors import ConfigError, JobError
from lorabuild.header import Header
from lorabuild.importing.lora import of_lora
from lorabuild.manifest import Project, Repository, load
from lorabuild.manifest.keys import KEYS, result_keys
from lorabuild.metadata import metadata
from lorabuild.names import BLOCKS, resolve_chop
from lorabuild.session import jobs_of

REPOSITORY = Path(__file__).resolve().parents[1]
TINY = {"tiny": {"builtin": "tiny-sdxl"}}
PLACES = ("subset", "train_data_dir", "reg_data_dir")


def draft_of(said: dict[str, str], **how: Any):
    return of_lora(Header({}, said, 0, 0), "x.safetensors", TINY, how.get("base"))


def header_of_project(repository: Repository, project: Project, last: str) -> dict[str, str]:
    """The metadata that publishing writes for the artifact of the stage `last`, of jobs that were declared, not run."""
    stages = ["base", "norms", "dataset", "latents", "train", "spectrum", "resize", "chop"]
    jobs = {job.stage: job for job in jobs_of(repository).values() if job.project == project.name}
    made_by = {
        stage: {"version": 1, "params": json.loads(json.dumps(jobs[stage].params)), "inputs": {}}
        for stage in stages[: stages.index(last) + 1]
        if stage in jobs
    }
    image = {"digest": "0", "caption": "ember, tree", "repeats": 2, "size": [64, 64], "bucket": [64, 64]}
    about = {
        "name": f"{project.name}-{last}",
        "project_name": project.name,
        "trained": "weights",
        "project": dict(project.settings["project"]),
        "made_by": made_by,
    }
    return metadata(about, "0" * 64, {"settings": {}, "images": [image]}, None)


def shaping(settings: dict[str, Any]) -> dict[str, Any]:
    """What of a manifest's settings shapes its files, in the form in which equal is equal."""
    chop = settings["chop"]
    return {
        "project": {key: value for key, value in settings["project"].items() if key != "kind"},
        "dataset": {key: value for key, value in settings["dataset"].items() if key not in PLACES},
        "recipe": result_keys(settings, "recipe"),
        "resize": settings["resize"],
        "chop": chop and (resolve_chop(chop), chop["allow_empty"]),
    }


def again(files: Files, said: dict[str, str]) -> dict[str, Any]:
    return files.project(draft_of(said).text(), name="again").settings


@pytest.mark.parametrize("name", ["ember", "blueprint"])
@pytest.mark.parametrize("last", ["train", "resize", "chop"])
def test_an_example_project_comes_back_out_of_its_file(name: str, last: str, tmp_path: Path):
    repository = load(REPOSITORY)
    project = repository.projects[name]
    found = shaping(again(Files(tmp_path), header_of_project(repository, project, last)))
    wanted = shaping(project.settings)
    later = {"train": ("resize", "chop"), "resize": ("chop",), "chop": ()}[last]  # a file does not know its descendants
    assert found == wanted | dict.fromkeys(later)


RECIPES = st.fixed_dictionaries(
    {},
    optional={
        "network_dim": st.integers(1, 64),
        "network_alpha": st.sampled_from([0.0, 1.0, 4.0]),
        "unet_lr": st.floats(1e-6, 1e-2),
        "text_encoder_lr": st.one_of(st.floats(1e-6, 1e-2), st.lists(st.floats(1e-6, 1e-2), min_size=2, max_size=2)),
        "network_train_unet_only": st.booleans(),
        "optimizer_type": st.sampled_from(["AdamW", "clybw", "Lion", "Adafactor", "lodew", "SGDNesterov"]),
        "lr_scheduler": st.sampled_from(["constant", "linear", "cosine", "cosine_with_restarts", "polynomial", "constant_with_warmup"]),
        "lr_warmup_steps": st.sampled_from([0, 3, 0.1]),
        "max_train_steps": st.integers(20, 400),
        "train_batch_size": st.integers(1, 8),
        "gradient_accumulation_steps": st.integers(1, 8),
        "multires_noise_iterations": st.integers(0, 12),
        "noise_offset": st.sampled_from([0.0, 0.05]),
        "min_snr_gamma": st.sampled_from([0.0, 5.0]),
        "loss_type": st.sampled_from(["l2", "huber", "smooth_l1"]),
        "scale_weight_norms": st.floats(0.5, 2.0),
        "mixed_precision": st.sampled_from(["no", "bf16", "fp16"]),
        "save_precision": st.sampled_from(["fp32", "fp16", "bf16"]),
        "save_every_n_steps": st.integers(1, 20),
        "seed": st.integers(0, 2**32 - 1),
        "validation_split": st.sampled_from([0.0, 0.2]),
        "network_args": st.fixed_dictionaries(
            {},
            optional={
                "algo": st.sampled_from(["locon", "loha", "lokr", "full"]),
                "preset": st.sampled_from(["full", "attn-mlp", "attn-only"]),
                "conv_dim": st.integers(1, 16),
                "rank_dropout": st.sampled_from([0.0, 0.25]),
                "block_dims": st.dictionaries(st.sampled_from(["INP07", "OUT01", "TE1"]), st.integers(0, 8), max_size=3),
            },
        ),
        "phases": st.lists(
            st.fixed_dictionaries(
                {"max_train_steps": st.integers(4, 40)},
                optional={"unet_lr": st.floats(1e-6, 1e-2), "lr_scheduler": st.sampled_from(["linear", "cosine", "constant"])},
            ),
            min_size=1,
            max_size=3,
        ),
    },
)  # fmt: skip
DATASETS = st.fixed_dictionaries(
    {},
    optional={
        "resolution": st.sampled_from([512, [768, 640]]),
        "flip_aug": st.booleans(),
        "shuffle_caption": st.booleans(),
        "keep_tokens": st.integers(0, 4),
        "caption_prefix": st.text("ab, ", max_size=6),
        "caption_dropout_rate": st.sampled_from([0.0, 0.1]),
        "latents": st.sampled_from(["mean", "sample"]),
    },
)
CHOPS = st.one_of(
    st.none(),
    st.fixed_dictionaries(
        {"keep": st.lists(st.sampled_from([*BLOCKS, "TE", "OUT*", "!OUT08"]), min_size=1, max_size=4)},
        optional={
            "weights": st.dictionaries(st.sampled_from(BLOCKS), st.sampled_from([0.0, 0.5, -1.0, 2.0]), max_size=2)
        },
    ),
    st.fixed_dictionaries({"weights": st.dictionaries(st.sampled_from(BLOCKS), st.floats(-2, 2), max_size=2)}),
)
RESIZES = st.one_of(
    st.none(),
    st.fixed_dictionaries(
        {},
        optional={
            "fro_ckpt": st.sampled_from([1.0, 3.0]),
            "spn_lora": st.just(1.0),
            "rescale": st.sampled_from([1.0, 2.0]),
        },
    ).flatmap(lambda terms: st.sampled_from([terms | {"thr": -3.0}, terms | {"size": 16.0}])),
)


@given(RECIPES, DATASETS, RESIZES, CHOPS, st.text("a b,'\"é", min_size=1, max_size=8))
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
def test_any_manifest_comes_back_out_of_its_file(tmp_path: Path, recipe, dataset, resize, chop, title):
    from lorabuild.tomltext import written

    files = Files(tmp_path)
    tables = {
        "project": {"base": "tiny", "title": title},
        "dataset": dataset,
        "recipe": recipe,
        "resize": resize,
        "chop": chop,
    }
    tables["dataset"] = {**dataset, "subset": [{"image_dir": "images", "num_repeats": 2}]}
    text = "".join(
        f"[{name}]\n" + "".join(f"{key} = {written(value)}\n" for key, value in table.items())
        for name, table in tables.items()
        if table is not None
    )
    try:
        files.project(text)
    except ConfigError:
        event("refused")
        return  # keys that do not go together
    repository = load(tmp_path)
    project = repository.projects["ember"]
    last = "chop" if project.settings["chop"] else "resize" if project.settings["resize"] else "train"
    found = shaping(again(files, header_of_project(repository, project, last)))
    assert found == shaping(project.settings)
    (tmp_path / "projects/again/lora.toml").unlink()


def test_every_key_that_shapes_a_training_is_looked_for():
    """A key of [recipe] that a later version brings is in the record, and comes back as any other."""
    said = {"lorabuild.stages": '{"train": 1}', "lorabuild.recipe": json.dumps({"brand_new": 3, "seed": 7})}
    made = draft_of(said)
    assert made.value("recipe", "seed") == 7
    assert any(note.startswith("brand_new = 3: ") for note in made.notes)  # this version has no such key: told
    assert "max_train_steps" in KEYS["recipe"]["result"]


def test_what_a_file_cannot_know_is_marked():
    repository = load(REPOSITORY)
    made = draft_of(header_of_project(repository, repository.projects["ember"], "train"))
    assert 'image_dir = "images"  # TO BE SET' in made.text()
    assert any("kind" in note for note in made.notes)
    assert any("ember 1, tree 1" in note for note in made.notes)


def test_a_file_made_of_anothers_lora_names_it_as_source():
    said = {
        "lorabuild.stages": '{"resize": 2}',
        "lorabuild.resize": '{"fro_ckpt": 1.0, "thr": -2.0}',
        "ss_network_dim": "8",
    }
    made = draft_of(said, base="tiny")
    assert made.value("project", "source") and made.value("resize", "thr") == -2.0
    assert "network_dim" not in made.tables["recipe"]


KOHYA = {
    "ss_sd_model_name": "ponyDiffusionV6XL.safetensors",
    "ss_new_sd_model_hash": "67ab2fd8ec439a89b3fedb15cc65f54336af163c7eb5e4f2acc98f090a29b0b3",
    "ss_network_module": "lycoris.kohya",
    "ss_network_dim": "16",
    "ss_network_alpha": "8.0",
    "ss_network_args": '{"algo": "lokr", "conv_dim": "4", "factor": "8", "preset": "full"}',
    "ss_optimizer": "bitsandbytes.optim.adamw.AdamW8bit(weight_decay=0.1,betas=(0.9, 0.99))",
    "ss_learning_rate": "0.0003",
    "ss_unet_lr": "0.0003",
    "ss_text_encoder_lr": "5e-05",
    "ss_lr_scheduler": "cosine_with_restarts",
    "ss_max_train_steps": "900",
    "ss_seed": "1234",
    "ss_noise_offset": "None",
    "ss_debiased_estimation": "False",
    "ss_full_fp16": "False",
    "ss_mixed_precision": "bf16",
    "ss_training_started_at": "1.0",
    "ss_tag_frequency": '{"10_fox": {"fox": 20, "tree": 4}}',
    "ss_datasets": json.dumps(
        [
            {
                "is_dreambooth": True, "batch_size_per_device": 4, "num_train_images": 20, "resolution": [1024, 1024],
                "enable_bucket": True, "min_bucket_reso": 256, "max_bucket_reso": 2048, "bucket_info": {},
                "subsets": [
                    {"img_count": 20, "num_repeats": 10, "image_dir": "10_fox", "class_tokens": "fox", "is_reg": False,
                     "shuffle_caption": True, "keep_tokens": 1, "flip_aug": False, "caption_prefix": None},
                ],
            }
        ]
    ),
    "sshs_model_hash": "00",
}  # fmt: skip


def test_sd_scripts_metadata_becomes_a_manifest():
    made = draft_of(KOHYA)
    found = tomllib.loads(made.text())
    recipe = found["recipe"]
    assert recipe["optimizer_type"] == "AdamW8bit"
    assert recipe["optimizer_args"] == {"weight_decay": 0.1, "betas": [0.9, 0.99]}
    assert (recipe["network_dim"], recipe["max_train_steps"], recipe["train_batch_size"]) == (16, 900, 4)
    assert recipe["text_encoder_lr"] == 5e-05
    assert recipe["network_args"] == {"algo": "lokr", "conv_dim": 4, "factor": 8, "preset": "full"}
    assert found["dataset"]["subset"] == [
        {"shuffle_caption": True, "keep_tokens": 1, "image_dir": "10_fox", "num_repeats": 10, "class_tokens": "fox"}
    ]
    assert found["project"]["base"] == "ponydiffusionv6xl"
    assert any(line.startswith("digest = ") for line in made.base_lines)
    assert any("fox 20" in note for note in made.notes)
    assert "not in the file" in made.text()  # bucket_reso_steps: sd-scripts writes it nowhere
    told = made.text()
    assert all(key.removeprefix("ss_") in told for key in KOHYA if key not in ("ss_datasets", "ss_noise_offset", "ss_optimizer", "ss_debiased_estimation", "ss_sd_model_name"))  # fmt: skip


def test_older_metadata_has_folders_and_a_resized_file_no_rank():
    said = {key: value for key, value in KOHYA.items() if key not in ("ss_datasets", "ss_network_dim")}
    said |= {
        "ss_dataset_dirs": '{"10_fox": {"n_repeats": 10, "img_count": 20}}',
        "ss_resolution": "(1024, 1024)",
        "ss_network_dim": "Dynamic",
        "ss_batch_size_per_device": "2",
    }
    made = draft_of(said)
    assert made.lists["dataset.subset"][0]["num_repeats"].value == 10
    assert made.value("dataset", "resolution") == [1024, 1024]
    assert made.value("recipe", "train_batch_size") == 2
    assert any("Dynamic" in line for line in made.warnings)


def test_a_file_that_says_nothing_is_one_line():
    with pytest.raises(JobError, match="says nothing of how it was made"):
        draft_of({"format": "pt"})


@given(st.dictionaries(st.sampled_from([*KOHYA, "lorabuild.recipe", "lorabuild.stages", "lorabuild.chop", "ss_dataset_dirs"]),
                       st.one_of(st.text(max_size=20), st.sampled_from(["{}", "[]", "[1]", '{"a": 1}', '{"train": []}', '{"keep": {"x": 1}}'])),
                       min_size=1))  # fmt: skip
@settings(max_examples=100, deadline=None)
def test_any_metadata_is_read_or_refused_in_one_line(said: dict[str, str]):
    from lorabuild.errors import UserError

    try:
        tomllib.loads(draft_of(said).text())
    except UserError as error:
        assert len(str(error).splitlines()) == 1
