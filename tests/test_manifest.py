"""What a manifest comes to: defaults, one spelling for each value, layers merged in order, variants, all projects."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from manifest_world import GOOD, Files

from lorabuild.manifest import load
from lorabuild.manifest.keys import keys_of_class, result_keys


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def set_values(table: dict) -> dict:
    """What a table says beside its defaults."""
    return {key: value for key, value in table.items() if value not in (None, False)}


# defaults and spellings


def test_four_lines_are_a_manifest(files: Files):
    project = files.project()
    assert (project.name, project.folder) == ("ember", files.root / "projects/ember")
    assert project.manifest == files.root / "projects/ember/lora.toml"
    assert project.variants == {}
    assert project.settings == {
        "project": {
            "base": "tiny",
            **dict.fromkeys(("source", "kind", "trigger", "title", "author", "description", "license", "tags")),
        },
        "dataset": {
            "resolution": [1024, 1024],
            "enable_bucket": True,
            "min_bucket_reso": 256,
            "max_bucket_reso": 2048,
            "bucket_reso_steps": 32,
            "bucket_no_upscale": False,
            "flip_aug": False,
            "caption_extension": ".txt",
            "caption_separator": ",",
            "shuffle_caption": False,
            "keep_tokens": 0,
            "max_token_length": 75,
            "subset": [{"image_dir": "images", "num_repeats": 1, "caption_extension": ".txt"}],
        },
        "recipe": {
            "network_module": "lycoris.kohya",
            "network_dim": 8,
            "network_alpha": 1.0,
            "network_args": {"algo": "locon", "preset": "full", "conv_dim": 8, "conv_alpha": 1.0},
            "optimizer_type": "AdamW",
            "optimizer_args": {"betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.01},
            "learning_rate": 1e-4,
            "unet_lr": 1e-4,
            "text_encoder_lr": 1e-4,
            "lr_scheduler": "constant",
            "lr_scheduler_args": {"num_cycles": 0.5},
            "lr_warmup_steps": 0,
            "max_train_steps": 1600,
            "train_batch_size": 1,
            "gradient_accumulation_steps": 1,
            "multires_noise_iterations": 0,
            "multires_noise_discount": 0.3,
            "mixed_precision": "no",
            "save_precision": "fp16",
            "save_every_n_steps": None,
            "seed": 42,
            "max_grad_norm": 1.0,
            "gradient_checkpointing": False,
        },
        "resize": None,
        "chop": None,
    }


SPELLINGS = [
    ("[recipe]\nunet_lr = 1", "[recipe]\nunet_lr = 1.0"),
    ("[recipe]\nunet_lr = 3e-4", "[recipe]\nunet_lr = 0.0003"),
    ("[recipe]\noptimizer_type = 'adamw'", "[recipe]\noptimizer_type = 'AdamW'"),
    ("[recipe]\nsave_precision = 'float'", "[recipe]\nsave_precision = 'fp32'"),
    ("[recipe]\nnetwork_args = { algo = 'lora' }", "[recipe.network_args]\nalgo = 'locon'"),
    ("[recipe]\nnetwork_dim = 4\nnetwork_alpha = 0", "[recipe]\nnetwork_dim = 4\nnetwork_alpha = 4\n"),
    ("[recipe.network_args]\nconv_dim = 2\nconv_alpha = 0", "[recipe.network_args]\nconv_dim = 2\nconv_alpha = 2"),
    ("[recipe]\nunet_lr = 1e-4", ""),
    ("[recipe]\nlearning_rate = 2e-4", "[recipe]\nunet_lr = 2e-4\ntext_encoder_lr = 2e-4\nlearning_rate = 2e-4"),
    (
        "[recipe]\nlr_scheduler = 'cosine'\nmax_train_steps = 80\nlr_warmup_steps = 0.1",
        "[recipe]\nlr_scheduler = 'cosine'\nmax_train_steps = 80\nlr_warmup_steps = 8",
    ),
    ("[resize]\nthr = -3", "[resize]\nthr = -3.0\nfro_ckpt = 1\nstep = 'last'"),
    ("[resize]\nthr = -3\nfro_ckpt = 2.5", "[resize]\nthr = -3\nfro_ckpt = 1"),  # weights are divided by their sum
    (
        "[recipe]\nmax_train_steps = 8\n[resize]\nthr = -3\nstep = 8",
        "[recipe]\nmax_train_steps = 8\n[resize]\nthr = -3",
    ),
    ("[dataset]\nresolution = 512", "[dataset]\nresolution = [512, 512]"),
    ("[dataset]\ncaption_extension = 'caption'", "[dataset]\ncaption_extension = '.caption'"),
]


@pytest.mark.parametrize(("one", "other"), SPELLINGS)
def test_two_spellings_of_one_setting_are_equal(files: Files, one: str, other: str):
    if "[dataset]" in one:
        one, other = GOOD.replace("[[", one + "\n[["), GOOD.replace("[[", other + "\n[[")
    assert json.dumps(files.settings(one)) == json.dumps(files.settings(other))  # 1 and 1.0 are equal, but not as JSON


def test_tags_are_a_list_however_they_are_written(files: Files):
    for tags in ('"fox, ember"', '["fox", "ember"]'):
        assert files.settings(GOOD.replace("[[", f"tags = {tags}\n[["))["project"]["tags"] == ["fox", "ember"]


def test_a_folder_may_have_captions_of_its_own(files: Files):
    own = '[project]\nbase = "tiny"\n[dataset]\ncaption_extension = ".tags"\n'
    own += '[[dataset.subset]]\nimage_dir = "a"\n[[dataset.subset]]\nimage_dir = "b"\ncaption_extension = ".txt"\n'
    assert [one["caption_extension"] for one in files.settings(own)["dataset"]["subset"]] == [".tags", ".txt"]


def test_a_byte_order_mark_and_windows_line_ends_are_no_mistake(files: Files):
    files.write("projects/ember/lora.toml", b"\xef\xbb\xbf" + GOOD.replace("\n", "\r\n").encode())
    assert load(files.root).projects["ember"].settings["project"]["base"] == "tiny"


# layers


def test_layers_merge_in_order_and_the_manifest_is_the_strongest(files: Files):
    files.write("recipes/one.toml", "[recipe]\nseed = 1\nnetwork_dim = 1\nmax_train_steps = 1\ntrain_batch_size = 1\n")
    files.write("recipes/two.toml", "[recipe]\nseed = 2\nnetwork_dim = 2\nmax_train_steps = 2\n")
    files.write("recipes/three.toml", "extends = 'two'\n[recipe]\nseed = 3\nnetwork_dim = 3\n")
    recipe = files.settings('extends = ["one", "three"]\n' + GOOD + "[recipe]\nseed = 4\n")["recipe"]
    assert [recipe[key] for key in ("seed", "network_dim", "max_train_steps", "train_batch_size")] == [4, 3, 2, 1]


def test_a_recipe_that_two_others_extend_counts_once_and_first(files: Files):
    files.write("recipes/ground.toml", "[recipe]\nseed = 1\n")
    files.write("recipes/one.toml", "extends = 'ground'\n[recipe]\nseed = 2\n")
    files.write("recipes/two.toml", "extends = 'ground'\n")
    assert files.settings('extends = ["one", "two"]\n' + GOOD)["recipe"]["seed"] == 2


def test_tables_merge_key_by_key_and_lists_replace(files: Files):
    files.write(
        "recipes/low.toml",
        "[recipe]\nnetwork_args = { conv_dim = 4, conv_alpha = 2 }\noptimizer_args = { betas = [0.5, 0.5], eps = 1 }\n"
        "[chop]\nkeep = ['TE', 'OUT01']\nweights = { OUT01 = 0.5, TE = 0.5 }\n"
        "[dataset]\nkeep_tokens = 1\n[[dataset.subset]]\nimage_dir = 'a'\n[[dataset.subset]]\nimage_dir = 'b'\n",
    )
    settings = files.settings(
        'extends = "low"\n' + GOOD + "[recipe]\nnetwork_args.conv_dim = 8\noptimizer_args.betas = [0.1, 0.2]\n"
        "[chop]\nkeep = ['MID*']\nweights.TE = 0.25\n"
    )
    assert settings["recipe"]["network_args"]["conv_dim"] == 8
    assert settings["recipe"]["network_args"]["conv_alpha"] == 2
    assert settings["recipe"]["optimizer_args"] == {"betas": [0.1, 0.2], "eps": 1, "weight_decay": 0.01}
    assert settings["chop"]["keep"] == ["MID*"]
    assert settings["chop"]["weights"] == {"OUT01": 0.5, "TE": 0.25}
    assert [one["image_dir"] for one in settings["dataset"]["subset"]] == ["images"]
    assert settings["dataset"]["keep_tokens"] == 1


def test_keep_and_vector_take_each_others_place(files: Files):
    vector = ",".join("1" * 21)
    files.write("recipes/names.toml", "[chop]\nkeep = ['TE']\n")
    files.write("recipes/numbers.toml", f"[chop]\nvector = '{vector}'\n")
    chop = files.settings('extends = "names"\n' + GOOD + f"[chop]\nvector = '{vector}'\n")["chop"]
    assert (chop["keep"], chop["vector"]) == (None, vector)
    chop = files.settings('extends = "numbers"\n' + GOOD + "[chop]\nkeep = ['TE']\n")["chop"]
    assert (chop["keep"], chop["vector"]) == (["TE"], None)


@pytest.mark.parametrize(
    ("table", "below", "above"),
    [("resize", "size = 16", "thr = -3"), ("recipe", "max_train_epochs = 4", "max_train_steps = 4")],
)
def test_a_later_layer_replaces_the_other_way_to_say_it(files: Files, table: str, below: str, above: str):
    files.write("recipes/low.toml", f"[{table}]\n{below}\n")  # refused by itself: not supported yet
    assert files.settings('extends = "low"\n' + GOOD + f"[{table}]\n{above}\n")


def test_arguments_go_when_their_owner_changes(files: Files):
    files.write("recipes/wave.toml", "[recipe]\nlr_scheduler = 'cosine'\nlr_scheduler_args = { num_cycles = 3 }\n")
    wave = 'extends = "wave"\n' + GOOD
    assert files.settings(wave)["recipe"]["lr_scheduler_args"] == {"num_cycles": 3}
    assert files.settings(wave + "[recipe]\nlr_scheduler = 'cosine'\n")["recipe"]["lr_scheduler_args"] == {
        "num_cycles": 3
    }
    assert files.settings(wave + "[recipe]\nlr_scheduler = 'constant'\n")["recipe"]["lr_scheduler_args"] == {
        "num_cycles": 0.5
    }
    files.write("recipes/other.toml", "[recipe]\noptimizer_type = 'ClybW'\noptimizer_args = { amp_fac = 2 }\n")
    other = 'extends = "other"\n' + GOOD + "[recipe]\noptimizer_type = 'AdamW'\n"
    assert files.settings(other)["recipe"]["optimizer_args"]["eps"] == 1e-8


def test_arguments_stay_when_their_owner_is_only_spelled_otherwise(files: Files):
    files.write("recipes/low.toml", "[recipe]\noptimizer_args = { eps = 1e-6 }\n")  # AdamW's: it is the default
    files.write("recipes/mid.toml", "extends = 'low'\n[recipe]\noptimizer_type = 'adamw'\n")
    settings = files.settings('extends = "mid"\n' + GOOD + "[recipe]\noptimizer_type = 'AdamW'\n")
    assert settings["recipe"]["optimizer_args"]["eps"] == 1e-6


def test_a_recipe_is_not_changed_by_what_is_laid_over_it(files: Files):
    files.write("recipes/low.toml", "[chop]\nweights = { TE = 0.5 }\n")
    files.write("projects/a/lora.toml", 'extends = "low"\n' + GOOD + "[chop]\nweights = { OUT01 = 0.5 }\n")
    files.write("projects/b/lora.toml", 'extends = "low"\n' + GOOD)
    assert load(files.root).projects["b"].settings["chop"]["weights"] == {"TE": 0.5}


# variants


def test_a_variant_says_only_what_differs(files: Files):
    project = files.project(
        "[resize]\nthr = -3.5\nstep = 4\n[chop]\nkeep = ['TE']\nallow_empty = true\n"
        "[variants.mini.resize]\nthr = -3.2\n"
        "[variants.whole.chop]\nvector = '" + ",".join("1" * 21) + "'\n"
    )
    assert list(project.variants) == ["mini", "whole"]
    mini, whole = project.variants["mini"], project.variants["whole"]
    assert set_values(mini["resize"]) == {"fro_ckpt": 1.0, "thr": -3.2, "step": 4}
    assert mini["chop"] == project.settings["chop"]
    assert whole["chop"]["keep"] is None and whole["chop"]["allow_empty"]
    assert whole["resize"] == project.settings["resize"]
    for table in ("project", "dataset", "recipe"):
        assert mini[table] == project.settings[table]


def test_a_variant_may_add_a_table_that_the_project_has_not(files: Files):
    project = files.project("[variants.small.resize]\nthr = -3\n")
    assert project.settings["resize"] is None
    assert project.variants["small"]["resize"]["thr"] == -3.0


def test_a_variant_may_have_layers_too(files: Files):
    files.write("recipes/low.toml", "[variants.mini.resize]\nthr = -3.2\nstep = 4\n")
    project = files.project('extends = "low"\n' + GOOD + "[resize]\nthr = -3.5\n[variants.mini.resize]\nstep = 8\n")
    assert set_values(project.variants["mini"]["resize"]) == {"fro_ckpt": 1.0, "thr": -3.2, "step": 8}


# the repository


def test_all_projects_are_found_by_the_names_of_their_folders(files: Files):
    for folder in ("projects/b", "projects/deep/down/a", "projects/b/inside"):
        files.write(f"{folder}/lora.toml", GOOD)
    files.write("elsewhere/c/lora.toml", GOOD)
    assert list(load(files.root).projects) == ["a", "b", "inside"]


def test_a_repository_without_anything_has_the_embedded_base(files: Files):
    repository = load(files.root)
    assert repository.projects == {}
    assert repository.bases == {"tiny": {"builtin": "tiny-sdxl"}}
    assert repository.slots == {"gpu": 1, "cpu": 2}
    assert repository.build_default[-1] == "chop"


def test_the_local_file_goes_over_the_shared_one(files: Files):
    files.write(
        "lorabuild.toml", "[bases.own]\nbuiltin = 'tiny-sdxl'\nprediction_type = 'epsilon'\n[slots]\ngpu = 2\ncpu = 8\n"
    )
    files.write("lorabuild.local.toml", "[slots]\ncpu = 4\n[build]\ndefault = ['train']\n")
    repository = load(files.root)
    assert repository.bases == {"tiny": {"builtin": "tiny-sdxl"}, "own": {"builtin": "tiny-sdxl"}}
    assert repository.slots == {"gpu": 2, "cpu": 4}
    assert repository.build_default == ["train"]


def test_files_are_those_read_and_those_looked_for(files: Files):
    files.write("recipes/used.toml", "")
    files.write("recipes/unused.toml", "")
    files.write("lorabuild.toml", "")
    files.project('extends = "used"\n' + GOOD)
    names = ["lorabuild.local.toml", "lorabuild.toml", "projects/ember/lora.toml", "recipes/used.toml"]
    assert load(files.root).files == [files.root / name for name in names]


# classes of keys


def test_keys_of_a_class_are_sorted_and_reach_into_tables(files: Files):
    recipe = files.settings("[recipe]\nsave_every_n_steps = 10\n")
    result = result_keys(recipe, "recipe")
    assert list(result) == sorted(result)
    assert result["network_args"] == {"algo": "locon", "conv_alpha": 1.0, "conv_dim": 8, "preset": "full"}
    assert keys_of_class(recipe, "recipe", "saved") == {"save_every_n_steps": 10}
    assert keys_of_class(recipe, "recipe", "execution") == {"gradient_checkpointing": False}
    assert not {"save_every_n_steps", "gradient_checkpointing"} & set(result)


def test_folders_are_in_no_key_and_a_table_that_is_not_there_has_none(files: Files):
    settings = files.settings()
    assert "subset" not in result_keys(settings, "dataset")
    assert "resolution" in result_keys(settings, "dataset")
    assert result_keys(settings, "chop") == {}


def test_a_default_that_nothing_uses_changes_no_result(files: Files):
    own = "[recipe]\nunet_lr = 1e-3\ntext_encoder_lr = 1e-3\n"
    one, other = (result_keys(files.settings(f"{own}learning_rate = {rate}\n"), "recipe") for rate in (1, 2))
    assert one == other


def test_beside_a_source_a_data_set_may_have_no_images(files: Files):
    """A recipe for trainings may be extended, too; the keys that it has are checked all the same."""
    files.write("recipes/shared.toml", "[dataset]\nkeep_tokens = 1\n")
    source = 'extends = "shared"\n[project]\nbase = "tiny"\nsource = "a.safetensors"\n'
    assert files.settings(source)["dataset"]["subset"] == []
    files.write("recipes/shared.toml", "[dataset]\nkeep_tokns = 1\nmax_token_length = 80\nsubset = []\n")
    assert [one.message.partition(":")[0] for one in files.mistakes()] == [
        "dataset.keep_tokns",
        "dataset.max_token_length",
        "dataset.subset",
    ]
    files.write("recipes/shared.toml", "[dataset]\nkeep_tokens = 1\n")
    files.write("projects/ember/lora.toml", source.replace("source", "# source"))
    (said,) = files.mistakes()
    assert (said.file, said.line) == ("recipes/shared.toml", 1) and "dataset.subset: required" in said.message
