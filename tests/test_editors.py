"""The JSON Schemas for editors: what lorabuild takes is valid, what it refuses is not, as far as a schema can say."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
from manifest_world import GOOD, Files

from lorabuild.manifest.editors import FILES, SCHEMAS, SPELLINGS, taplo, text
from lorabuild.verbs.schema import KINDS, main

REPOSITORY = Path(__file__).resolve().parents[1]
SAMPLES = sorted((REPOSITORY / "tests/samples").glob("*.toml"))
FLAWED = [path for path in SAMPLES if "#! " in path.read_text()]
# What only lorabuild can tell
BEYOND = set(
    [
        "adaptive-without-offset",
        "argument-of-another-algorithm",
        "arguments-of-constant",
        "boft-too-small",
        "both-parts-only",
        "dylora-block",
        "extends-nothing",
        "glob-without-a-block",
        "matrix-name-taken",
        "matrix-of-a-source",
        "matrix-part-of-another",
        "matrix-rivals",
        "matrix-same",
        "matrix-same-of-two",
        "matrix-too-many",
        "matrix-two-names",
        "missing-threshold",
        "misspelled-argument",
        "misspelled-preset",
        "no-score",
        "no-timestep-left",
        "nothing-trained",
        "number-not-finite",
        "objective-of-another-base",
        "preset-without-text",
        "regularisation-alone",
        "resolution-above-buckets",
        "resolution-below-buckets",
        "resolution-without-buckets",
        "shared-base-of-no-kind",
        "step-after-the-last",
        "step-of-a-source",
        "two-dropouts",
        "unknown-base",
        "variant-lacks-a-threshold",
        "variant-named-as-a-file",
        "variant-saved-key",
        "vector-of-thirteen",
        "vector-of-two-readings",
        "vector-with-a-letter",
        "warm-up-of-constant",
        "weight-not-finite",
    ]
)
# Each way to write a value that the tables' own types do not show
SPELLED = """
[dataset] | resolution = 512
[dataset] | resolution = [512, 768]
[dataset] | resize_interpolation = "cubic"
[dataset] | caption_extension = "caption"
[dataset] | random_crop = false
[recipe] | lr_scheduler = "cosine" | lr_warmup_steps = "10%"
[recipe] | lr_scheduler = "cosine" | lr_warmup_steps = 0.1
[recipe] | lr_scheduler = "cosine" | lr_warmup_steps = 10
[recipe] | text_encoder_lr = [1e-4, 2e-4]
[recipe] | text_encoder_lr = 0
[recipe] | optimizer_type = "adamw" | optimizer_args = ["weight_decay=0.1"]
[recipe] | optimizer_type = "CLYBW"
[recipe] | optimizer_type = "torch.optim.SGD"
[recipe] | optimizer_type = "some.package.Optimizer" | optimizer_args = { a = [1, 2], b = "x" }
[recipe] | lr_scheduler = "linear"
[recipe] | network_args = ["algo=loha", "conv_dim=4"]
[recipe] | network_args = { algo = "lora" }
[recipe] | network_args = { block_dims = { INP07 = 16, "OUT*" = 4, TE = 0 } }
[recipe] | network_args = { block_dims = "0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,0" }
[recipe] | network_args = { block_dims = [0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,0] }
[recipe] | save_precision = "float"
[[recipe.phases]] | max_train_steps = 3 | [[recipe.phases]] | max_train_steps = 4
[resize] | sv_fro = 1
[resize] | thr = -3 | step = 2
[resize] | thr = -3 | step = "last"
[chop] | keep = ["TE", "OUT*", "!OUT08", "MID0[01]", "!IN?0*"]
[chop] | weights = { OUT01 = 0.5, TE = -1 }
[chop] | vector = "1,0,0,0,0,0,0,0,0,0,0,0,0,1,0,0,0,0,0,0,0"
[check] | levels = { LB051 = "off", lb054 = "error" }
[resize] | thr = -3 | [variants.mini.resize] | thr = -2 | [variants.mini.chop] | keep = ["TE"]
[variants.mini.recipe] | unet_lr = 3e-4
[matrix] | thr = [-3.2, -3.9] | keep = [["TE"], ["OUT01", "IN*"]] | recipe.unet_lr = [1e-4, 3e-4]
[matrix] | "recipe.seed" = [1, 2] | network_args.conv_dim = [2, 4] | optimizer_type = ["clybw"]
[matrix.recipe] | optimizer_args.weight_decay = [0.1, 0.2] | network_args.dropout = [0.1]
[matrix] | phases = [[{ max_train_steps = 5 }], [{ max_train_steps = 3 }, { max_train_steps = 2 }]]
[matrix] | optimizer_args = [["weight_decay=0.1"], { weight_decay = 0.2 }]
""".strip().splitlines()


@pytest.fixture(scope="module")
def validators() -> dict[str, Any]:
    jsonschema = pytest.importorskip("jsonschema")
    found = {name: jsonschema.Draft7Validator(make()) for name, make in SCHEMAS.items()}
    for one in found.values():
        one.check_schema(one.schema)
    return found


def problems(validator: Any, content: str) -> list[str]:
    try:
        table = tomllib.loads(content)
    except tomllib.TOMLDecodeError as error:
        return [str(error)]
    return [f"{'.'.join(map(str, one.absolute_path))}: {one.message}" for one in validator.iter_errors(table)]


@pytest.mark.parametrize("name", FILES)
def test_every_file_of_this_repository_is_valid(name: str, validators: dict[str, Any]):
    files = [path for pattern in FILES[name] for path in REPOSITORY.glob(pattern)]
    assert files
    for path in files:
        assert problems(validators[name], path.read_text()) == [], path


@pytest.mark.parametrize("sample", FLAWED, ids=lambda path: path.stem)
def test_a_flaw_that_a_schema_can_tell_is_told(sample: Path, validators: dict[str, Any]):
    name = "lorabuild" if sample.stem.startswith("shared-") else "lora"
    assert bool(problems(validators[name], sample.read_text())) is (sample.stem not in BEYOND)


@pytest.mark.parametrize("lines", SPELLED)
def test_every_spelling_that_lorabuild_takes_is_valid(lines: str, validators: dict[str, Any], tmp_path: Path):
    content = GOOD.partition("[[")[0] + lines.replace("|", "\n") + "\n[[dataset.subset]]\nimage_dir = 'images'\n"
    Files(tmp_path).project(content)
    assert problems(validators["lora"], content) == []


@pytest.mark.parametrize("remote", ["", "s3://bucket", "s3://bucket/a/b", "file:///mnt/x", "ssh://me@host:22/loras"])
def test_every_remote_that_lorabuild_takes_is_valid(remote: str, validators: dict[str, Any], tmp_path: Path):
    files = Files(tmp_path)
    files.write("lorabuild.toml", content := f'[store]\nremote = "{remote}"\n')
    files.project()
    assert problems(validators["lorabuild"], content) == []


def test_a_recipe_may_be_any_part_and_a_manifest_that_extends_none_is_whole(validators: dict[str, Any]):
    assert problems(validators["recipe"], "[recipe]\nseed = 3\n") == []
    assert problems(validators["lora"], "[recipe]\nseed = 3\n")
    assert problems(validators["lora"], "extends = 'x'\n[recipe]\nseed = 3\n") == []
    assert problems(validators["lora"], "[project]\nbase = 'tiny'\nsource = 'a.safetensors'\n") == []


def test_every_key_has_its_line_and_says_what_it_may_be():
    for make in SCHEMAS.values():
        schema = make()
        for name, table in {"": schema, **schema["definitions"]}.items():
            assert table["additionalProperties"] is False, name
            for key, one in table["properties"].items():
                assert one["description"] and set(one) - {"description", "default"}, f"{name}.{key}: nothing is said"


def test_spellings_are_of_keys_that_there_are():
    known = set()
    for make in SCHEMAS.values():
        schema = make()
        for name, table in schema["definitions"].items():
            known |= {f"{name}.{key}" for key in table["properties"]} | {f"*.{key}" for key in table["properties"]}
        known |= {f"{one}.{key}" for one in ("Manifest", "SharedFile") for key in schema["properties"]}
    assert set(SPELLINGS) <= known


def test_the_files_in_docs_are_the_schemas(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch):
    for name, make in SCHEMAS.items():
        said = "lorabuild schema -o docs/schema"
        assert (REPOSITORY / f"docs/schema/{name}.schema.json").read_text() == text(make()), said
    assert tuple(SCHEMAS) == KINDS
    (tmp_path / "lorabuild.toml").touch()
    (tmp_path / "projects").mkdir()
    monkeypatch.chdir(tmp_path / "projects")
    assert main(["-o", "../a/schema"]) == 0
    assert {path.name for path in (tmp_path / "a/schema").iterdir()} == {f"{name}.schema.json" for name in KINDS}
    rules = tomllib.loads((tmp_path / ".taplo.toml").read_text())["rule"]
    assert [rule["schema"]["path"] for rule in rules] == [f"a/schema/{name}.schema.json" for name in KINDS]
    (tmp_path / ".taplo.toml").write_text("# mine")
    assert main(["-o", "../a/schema"]) == 0
    assert (tmp_path / ".taplo.toml").read_text() == "# mine"
    assert tomllib.loads((REPOSITORY / ".taplo.toml").read_text()) == tomllib.loads(taplo("docs/schema"))
    capsys.readouterr()
    assert main(["lora"]) == 0 and capsys.readouterr().out == text(SCHEMAS["lora"]())
