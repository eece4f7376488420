"""`lorabuild import` of commands and settings of sd-scripts: each word of them is a key, or a comment that says why not."""

from __future__ import annotations

import io
import tomllib
from importlib import import_module
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorabuild.errors import JobError
from lorabuild.importing.arguments import ARGUMENTS
from lorabuild.importing.read import imported
from lorabuild.importing.shell import read_script
from lorabuild.importing.told import typed
from lorabuild.manifest import load
from lorabuild.tomltext import comment, written

SAMPLES = Path(__file__).with_name("samples")
GUIDES = {"schnell": SAMPLES / "schnell-guide.sh", "pony": SAMPLES / "pony-guide.sh"}
PEERS = dict(
    line.split() for line in (SAMPLES / "sd-scripts-arguments.txt").read_text().splitlines() if not line.startswith("#")
)
TINY = {"tiny": {"builtin": "tiny-sdxl"}}
START = "accelerate launch sdxl_train_network.py "
# Where a value of its kind would be nonsense.
VALUES = {
    "network_module": "lycoris.kohya", "optimizer_type": "Lion", "lr_scheduler": "cosine", "mixed_precision": "bf16",
    "save_precision": "bf16", "loss_type": "l1", "huber_schedule": "constant", "log_with": "tensorboard",
    "resize_interpolation": "lanczos", "max_token_length": "150", "min_timestep": "7", "max_timestep": "7",
    "network_args": "conv_dim=7", "optimizer_args": "weight_decay=0.7", "lr_scheduler_args": "num_cycles=0.7",
    "resolution": "768,704", "bucket_reso_steps": "16", "min_bucket_reso": "128", "max_bucket_reso": "1536",
    "loss": "l2", "sample_sampler": "euler_a", "network_dim": "7", "lr_scheduler_type": "StepLR",
    "train_data_dir": "/some/where", "seed": "7",
}  # fmt: skip
OF_KIND = {
    "flag": "",
    "int": "7",
    "float": "0.7",
    "share": "7",
    "text": "word",
    "texts": "one two",
    "floats": "0.7 0.7",
}


def draft(text: str, *more: tuple[str, str], folder: Path = Path("/nowhere"), base: str | None = None, manifest=None):
    return imported([("train.sh", text), *more], folder, TINY, base, manifest)


def table(text: str, *more: tuple[str, str], **how) -> dict:
    return tomllib.loads(draft(text, *more, **how).text())


def run(*args: str, stdin: str = "", monkeypatch: pytest.MonkeyPatch) -> int:
    from lorabuild.cli import run_verb

    monkeypatch.setattr("sys.stdin", io.StringIO(stdin))
    return run_verb("import", list(args))


@pytest.mark.parametrize("name", PEERS)
def test_each_argument_of_sd_scripts_becomes_a_key_or_a_comment(name: str):
    value = VALUES.get(name, OF_KIND[PEERS[name]])
    made = draft(f"{START} --pretrained_model_name_or_path x.safetensors --{name} {value}")
    keys = {key for entries in made.tables.values() for key in entries}
    told = [note for note in made.notes if note.startswith((f"{name} ", f"{name}:", f"{ARGUMENTS[name].key or name} "))]
    assert ARGUMENTS[name].key in keys or told or (name == "network_args" and "conv_dim" in keys)
    argument = ARGUMENTS[name]
    if not told and name not in ("network_args", "text_encoder_lr"):
        assert made.value(argument.table, argument.key) == typed(argument.kind, value.split() or True)


def test_the_table_has_the_arguments_of_sd_scripts_and_no_other():
    assert set(ARGUMENTS) == set(PEERS)


@pytest.mark.parametrize("guide", GUIDES)
def test_a_guides_commands_are_its_recipe(guide: str, tmp_path: Path):
    """What stands in recipes/<guide>.toml, key by key, is what the import of the guide's own text gives."""
    made = draft(GUIDES[guide].read_text(), base="tiny").text()
    for name, text in {"guide": made, "recipe": f'extends = "{guide}"\n[project]\nbase = "tiny"\n'}.items():
        folder = tmp_path / "projects" / name
        folder.mkdir(parents=True)
        data = '[dataset]\ntrain_data_dir = "/training_dir"\n' if name == "recipe" else ""
        (folder / "lora.toml").write_text(text + data)
    (tmp_path / "recipes").mkdir()
    (tmp_path / f"recipes/{guide}.toml").write_text((Path(__file__).parents[1] / f"recipes/{guide}.toml").read_text())
    (tmp_path / "lorabuild.toml").write_text("")
    found = {name: one.settings for name, one in load(tmp_path).projects.items()}
    mine, theirs = found["guide"], found["recipe"]
    # What does not shape the result; the recipe also leaves the first tag in front, which the first guide does not.
    unlike = {"save_every_n_steps", "learning_rate", "log_with", "gradient_checkpointing"}
    assert {k: v for k, v in mine["recipe"].items() if k not in unlike} == {
        k: v for k, v in theirs["recipe"].items() if k not in unlike
    }
    assert mine["dataset"] | {"keep_tokens": 1} == theirs["dataset"]
    assert mine["resize"]["thr"] == -3.55 and mine["samples"]["sample_sampler"] == "euler_a"


def test_what_lycoris_never_read_is_told_and_trains_nothing():
    made = draft(GUIDES["pony"].read_text())
    assert "block_dims" not in made.text().split("# What was told")[0]
    assert any(note.startswith("network_args.block_dims = [8, 8") and "does not read" in note for note in made.notes)
    assert any("block_dims" in line for line in made.warnings)


def test_the_lines_after_the_training_are_resize_and_chop():
    made = table(GUIDES["schnell"].read_text())
    assert made["resize"] == {"fro_ckpt": 1.0, "thr": -3.55}
    assert made["chop"] == {"vector": "1,0,0,0,0,0,0,0,0,0,0,0,0,1,0,0,0,0,0,0,0"}


def test_sd_scripts_own_resize_is_read_too():
    resize = "python networks/resize_lora.py --model a.safetensors --save_to b.safetensors --new_rank 8"
    assert table(f"{START} --seed 1\n{resize} --dynamic_method sv_fro --dynamic_param 0.9")["resize"] == {
        "max_rank": 8,
        "sv_fro": 0.9,
    }


@pytest.mark.parametrize("sign", ["\\", "^", "`", "\\  ", "\\ # the rank"])
def test_a_line_goes_on_by_any_shells_sign(sign: str):
    made = table(f"accelerate launch sdxl_train_network.py {sign}\n  --network_dim=16 {sign}\n  --seed 3\n")
    assert (made["recipe"]["network_dim"], made["recipe"]["seed"]) == (16, 3)


def test_variables_comments_and_caching_commands():
    text = """
        # first
        export MODEL="/models/my base.safetensors"
        DIM=12
        python tools/cache_latents.py --pretrained_model_name_or_path "$MODEL"
        accelerate launch --num_processes 2 sdxl_train_network.py \\
          --pretrained_model_name_or_path "$MODEL" \\
          # --network_dim 99 \\
          --network_dim ${DIM} --train_data_dir "$DATA/x"
    """
    made = draft(text)
    assert made.value("project", "base") == "my-base"
    assert 'file = "/models/my base.safetensors"' in made.base_lines
    assert made.value("recipe", "network_dim") == 12
    assert any("cache_latents.py" in note for note in made.notes)
    assert any("$DATA" in line for line in made.warnings) and any("num_processes" in line for line in made.warnings)


def test_a_list_in_brackets_is_arguments_too():
    text = 'ARGS=(\n  --network_dim=4\n  --network_args "algo=loha" "conv_dim=2"\n)\npython sdxl_train_network.py "${ARGS[@]}"\n'
    made = table(text)
    assert made["recipe"]["network_dim"] == 4
    assert made["recipe"]["network_args"] == {"algo": "loha", "conv_dim": 2}


def test_a_quote_that_never_ends_is_one_line():
    from lorabuild.errors import JobError

    with pytest.raises(JobError, match=r"train.sh:2: a quote"):
        draft('accelerate launch sdxl_train_network.py \\\n --output_name "oh')


def test_an_unknown_argument_is_a_comment_and_a_warning_with_a_near_miss():
    made = draft(f"{START} --netwrok_dim 8 --save_every_n_epoch 2")
    assert made.notes[0].startswith('netwrok_dim = ["8"]: no argument')
    assert any('did you mean "network_dim"?' in line and "train.sh:1" in line for line in made.warnings)
    assert made.value("recipe", "save_every_n_epochs") == 2  # argparse takes a beginning for the whole


def test_a_value_of_another_type_is_told():
    made = draft(f"{START} --network_dim eight")
    assert made.value("recipe", "network_dim") == 4
    assert any("expected a whole number" in line for line in made.warnings)


def test_sd_scripts_defaults_are_written_out():
    made = table(f"{START} --seed 1")
    assert {
        key: made["recipe"][key] for key in ("network_dim", "network_alpha", "learning_rate", "max_train_steps")
    } == {
        "network_dim": 4,
        "network_alpha": 1.0,
        "learning_rate": 2e-6,
        "max_train_steps": 1600,
    }
    assert made["recipe"]["save_precision"] == "fp32"
    assert made["dataset"]["enable_bucket"] is False
    assert made["dataset"]["caption_extension"] == ".caption"
    assert (made["dataset"]["max_bucket_reso"], made["dataset"]["bucket_reso_steps"]) == (1024, 64)


def test_sd_scripts_own_lora_has_the_same_layers_by_lycoris():
    alone = table(f"{START} --network_module networks.lora --network_dim 8")["recipe"]
    assert alone["network_module"] == "lycoris.kohya"
    assert alone["network_args"] == {"algo": "locon", "preset": "attn-mlp"}
    args = table(f"{START} --network_module networks.lora --network_args conv_dim=4 block_dims=" + ",".join("8" * 23))
    assert args["recipe"]["network_args"]["preset"] == "full"
    assert args["recipe"]["network_args"]["conv_alpha"] == 1.0
    assert len(args["recipe"]["network_args"]["block_dims"]) == 23  # networks.lora does read it


def test_what_the_manifest_refuses_is_a_comment_in_its_words():
    made = draft(f"{START} --lr_scheduler cosine --lr_scheduler_num_cycles 3 --random_crop --log_with wandb")
    text = made.text()
    assert "num_cycles" not in text.split("# What was told")[0]
    assert any(note.startswith("lr_scheduler_num_cycles = 3: ") and "does not read it" in note for note in made.notes)
    assert any(note.startswith("random_crop = true: ") for note in made.notes)
    assert any(note.startswith('log_with = "wandb": ') for note in made.notes)


def test_what_decides_most_stays_even_if_it_is_wrong():
    made = draft(f"{START} --network_module networks.oft --optimizer_type AdamWW")
    assert made.value("recipe", "network_module") == "networks.oft"
    assert made.value("recipe", "optimizer_type") == "AdamWW"
    assert any("check" in line and "AdamWW" in line for line in made.warnings)


def test_a_secret_is_not_repeated():
    text = draft(f"{START} --wandb_api_key abc123 --huggingface_token hf_x1").text()
    assert "abc123" not in text and "hf_x1" not in text


def test_folders_with_numbers_become_subsets(tmp_path: Path):
    for name in ("10_ember fox", "2_tree", "notes", "0_off"):
        (tmp_path / "train" / name).mkdir(parents=True)
    made = draft(f"{START} --train_data_dir train", folder=tmp_path, manifest=tmp_path / "projects" / "ember")
    subsets = tomllib.loads(made.text())["dataset"]["subset"]
    assert subsets == [
        {"image_dir": "../../train/10_ember fox", "num_repeats": 10, "class_tokens": "ember fox"},
        {"image_dir": "../../train/2_tree", "num_repeats": 2, "class_tokens": "tree"},
    ]
    assert sum("leaves a folder out" in note for note in made.notes) == 2


DATASET = """
[general]
enable_bucket = true
shuffle_caption = true
caption_extension = ".txt"
keep_tokens = 1
[[datasets]]
resolution = 768
batch_size = 4
keep_tokens = 2
  [[datasets.subsets]]
  image_dir = "one"
  num_repeats = 3
  [[datasets.subsets]]
  image_dir = "two"
  keep_tokens = 5
  flip_aug = true
  custom_attributes = { a = 1 }
"""


def test_a_data_set_file_has_its_levels():
    made = draft(f"{START} --train_data_dir /ignored --flip_aug", ("data.toml", DATASET))
    found = tomllib.loads(made.text())
    assert found["recipe"]["train_batch_size"] == 4
    data = found["dataset"]
    assert (data["resolution"], data["keep_tokens"], data["enable_bucket"], data["flip_aug"]) == (768, 2, True, True)
    assert data["subset"] == [{"image_dir": "one", "num_repeats": 3}, {"image_dir": "two", "keep_tokens": 5}]
    assert any(note.startswith("train_data_dir") for note in made.notes)
    assert any(note.startswith("datasets.subsets.custom_attributes") for note in made.notes)


def test_what_kohyas_interface_adds_to_a_config_is_a_comment_without_alarm():
    made = imported(
        [("config.toml", 'epoch = 1\nnoise_offset_type = "Original"\nseed = 3\n')], Path("/"), TINY, "tiny", None
    )
    assert sum("interface writes it" in note for note in made.notes) == 2
    assert not made.warnings


def test_what_the_data_set_file_goes_before_is_told():
    made = draft(f"{START} --resolution 512 --train_batch_size 2 --dataset_repeats 7", ("data.toml", DATASET))
    assert {
        "resolution = 512: the data set file goes before it",
        "train_batch_size = 2: the data set file goes before it",
    } < set(made.notes)
    assert made.lists["dataset.subset"][1]["num_repeats"].value == 7  # of the folder that has no number of its own


def test_a_file_of_something_else_is_nothing_to_import():
    from lorabuild.errors import JobError

    for name, text in (("x.toml", ""), ("x.toml", "[tool.ruff]\nline = 3\n"), ("x.sh", "ls -la\n")):
        with pytest.raises(JobError, match="nothing to import"):
            imported([(name, text)], Path("/"), TINY, None, None)


def test_images_outside_of_the_repository_keep_their_path(tmp_path: Path):
    (tmp_path / "train/3_fox").mkdir(parents=True)
    made = draft(f"{START} --train_data_dir train", folder=tmp_path, manifest=tmp_path / "repository/projects/ember")
    assert made.lists["dataset.subset"][0]["image_dir"].value == str(tmp_path / "train/3_fox")


def test_a_second_data_set_of_another_resolution_is_told():
    other = DATASET + '[[datasets]]\nresolution = 512\n[[datasets.subsets]]\nimage_dir = "three"\n'
    made = draft(f"{START} --seed 1", ("data.toml", other))
    assert len(made.lists["dataset.subset"]) == 3
    assert any("resolution" in line for line in made.warnings)


def test_a_config_with_sections_and_its_data_set_together(tmp_path: Path):
    config = '[model]\npretrained_model_name_or_path = "x.safetensors"\n[train]\nnetwork_dim = 32\nnetwork_args = ["algo=lokr"]\nnope = 1\n'
    made = imported([("config.toml", config), ("data.toml", DATASET)], tmp_path, TINY, None, None)
    assert made.value("recipe", "network_dim") == 32
    assert made.value("recipe.network_args", "algo") == "lokr"
    assert made.value("dataset", "resolution") == 768
    assert any(line.startswith("config.toml: nope") for line in made.warnings)


def test_files_that_a_command_names_are_read_and_it_goes_before_its_config(tmp_path: Path):
    (tmp_path / "config.toml").write_text("network_dim = 32\nseed = 5\n")
    (tmp_path / "data.toml").write_text(DATASET)
    made = draft(f"{START} --config_file config --dataset_config data.toml --seed 6", folder=tmp_path)
    assert (made.value("recipe", "network_dim"), made.value("recipe", "seed")) == (32, 6)
    assert len(made.lists["dataset.subset"]) == 2
    missing = draft(f"{START} --dataset_config data.toml", folder=tmp_path / "else")
    assert any("data.toml is not here" in line for line in missing.warnings)


def test_the_base_is_the_repositorys_where_it_has_that_file():
    known = {"pony": {"file": "models/x.safetensors"}}
    made = imported(
        [("a.sh", f"{START} --pretrained_model_name_or_path D:\\models\\x.safetensors")], Path("/"), known, None, None
    )
    assert made.value("project", "base") == "pony" and not made.base_lines
    unknown = draft(f"{START} --pretrained_model_name_or_path x.safetensors --v_parameterization --vae v.safetensors")
    assert unknown.base_lines[1:] == [
        'file = "x.safetensors"',
        'prediction_type = "v_prediction"',
        'vae = "v.safetensors"',
    ]


def test_a_manifest_is_written_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lorabuild.toml").write_text("")
    text = f"{START} --pretrained_model_name_or_path x.safetensors"
    assert run("-", "--name", "ember", stdin=text, monkeypatch=monkeypatch) == 0
    out = tmp_path / "projects/ember/lora.toml"
    assert tomllib.loads(out.read_text())["project"]["base"] == "x"
    assert "[bases.x]" in capsys.readouterr().err
    assert run("-", "--name", "ember", stdin=text, monkeypatch=monkeypatch) == 2
    assert "--force" in capsys.readouterr().err
    assert run("-", "--name", "ember", "--force", "--base", "tiny", stdin=text, monkeypatch=monkeypatch) == 0
    assert tomllib.loads(out.read_text())["project"]["base"] == "tiny"
    (tmp_path / "schema").mkdir()
    (tmp_path / "schema/lora.schema.json").write_text("{}")
    monkeypatch.chdir(tmp_path / "schema")
    assert run("-", "--name", "ember", "--force", stdin="--seed 1", monkeypatch=monkeypatch) == 0
    assert out.read_text().startswith("#:schema ../../schema/lora.schema.json\n[project]\n")
    assert run("-", "--name", "check", stdin=text, monkeypatch=monkeypatch) == 2
    capsys.readouterr()
    assert run("-", stdin=text, monkeypatch=monkeypatch) == 0
    assert tomllib.loads(capsys.readouterr().out)["recipe"]["max_train_steps"] == 1600
    assert run("-", stdin="echo hello", monkeypatch=monkeypatch) == 1
    assert "nothing to import" in capsys.readouterr().err


def test_the_module_of_the_verb_is_named_by_a_keyword():
    assert import_module("lorabuild.verbs.import").main


@given(st.text(max_size=300))
@settings(max_examples=150, deadline=None)
def test_any_text_is_read_or_refused_in_one_line(text: str):
    from lorabuild.errors import UserError

    try:
        made = draft(f"{START} --seed 1\n{text}")
    except UserError as error:
        assert len(str(error).splitlines()) == 1
    else:
        tomllib.loads(made.text())


@given(st.recursive(st.one_of(st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False), st.text()),
                    lambda inner: st.one_of(st.lists(inner), st.dictionaries(st.text(), inner)), max_leaves=8))  # fmt: skip
def test_values_are_toml(value):
    assert tomllib.loads(f"x = {written(value)}")["x"] == value


@given(st.text())
def test_comments_are_toml(text: str):
    tomllib.loads(f"x = 1  # {comment(text)}\n# {comment(text)}\n")


def test_windows_paths_stay_whole():
    words = (
        read_script('python sdxl_train_network.py --output_dir C:\\loras\\new --logging_dir "D:\\my logs"', "x")
        .commands[0]
        .words
    )
    assert words[-3:] == ("C:\\loras\\new", "--logging_dir", "D:\\my logs")


def test_quotes_and_dashes_of_a_web_page_are_plain_ones():
    text = "accelerate launch sdxl_train_network.py\n  —network_dim=8 –-train_data_dir ‘img dir’ \u200b--seed=“7”\n"
    made = draft(f'{text}  ––metadata_title=it’s --metadata_description "it’s “a” – fox"')
    assert made.value("recipe", "network_dim") == 8 and made.value("recipe", "seed") == 7
    assert made.value("dataset", "train_data_dir").endswith("img dir")
    assert made.value("project", "title") == "it’s" and made.value("project", "description") == "it’s “a” – fox"
    assert sum("typographic" in one for one in made.warnings) == 1
    assert not any("typographic" in one for one in draft(f'{START} --metadata_title "it’s — “a”"').warnings)


def test_what_was_told_and_not_understood_is_not_called_untold():
    made = draft(f"{START} stray --max_train_steps $((9*9)) --network_dim --seed x")
    for key in ("max_train_steps", "network_dim", "seed"):
        line = next(line for line in made.text().splitlines() if line.startswith(f"{key} = "))
        assert line.endswith("what was told was not understood")
    assert any("stray: an argument without a name" in one for one in made.warnings)


def test_json_of_an_interface_says_what_to_import_instead():
    with pytest.raises(JobError, match="Print training command"):
        draft('{"LoRA_type": "Standard", "max_train_steps": 10}')
