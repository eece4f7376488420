"""Bases that are a user's files: found on this machine, digested by content and once, named where they are wrong."""

from __future__ import annotations

import hashlib
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from manifest_world import Files
from safetensors.torch import save_file
from tiny_base import tiny_digests, tiny_folder
from world import World

from lorabuild import assess, components
from lorabuild.components import FOLDERS, PREFIXES, component_digests, component_files
from lorabuild.errors import JobError
from lorabuild.header import read_header
from lorabuild.inputs import Resolved
from lorabuild.manifest import load
from lorabuild.session import opened
from lorabuild.signature import GRAIN_NS
from lorabuild.stage import Artifact, Component, Job, dependencies
from lorabuild.state import State

# Some tensors of each component, by the names and dtypes that sd_xl_base_1.0.safetensors has.
NAMES = {
    "vae": ("encoder.conv_in.weight", "quant_conv.bias"),
    "unet": ("input_blocks.4.1.transformer_blocks.0.attn1.to_q.weight", "label_emb.0.0.weight", "out.2.bias"),
    "te1": ("text_model.embeddings.token_embedding.weight", "text_model.final_layer_norm.bias"),
    "te2": ("transformer.resblocks.0.attn.in_proj_weight", "text_projection", "logit_scale"),
}
POSITION_IDS = PREFIXES["te1"] + "text_model.embeddings.position_ids"
ADAPTABLE = ("unet", "te1", "te2")


def checkpoint(path: Path, more: dict[str, torch.Tensor] | None = None, **seeds: int) -> Path:
    """A single file in SGM's layout; `unet=2` gives its U-Net other weights, `unet=0` leaves it out."""
    tensors = {POSITION_IDS: torch.arange(77).reshape(1, 77), "denoiser.sigmas": torch.zeros(4)}
    for part, names in NAMES.items():
        if seed := seeds.get(part, 1):
            chance = torch.Generator().manual_seed(seed)
            tensors |= {PREFIXES[part] + name: torch.randn(8, 4, generator=chance).half() for name in names}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors | (more or {}), path, {"format": "pt"})
    return aged(path)


def aged(path: Path) -> Path:
    """Written a minute ago: a file younger than the clock's grain is not trusted."""
    then = time.time() - 60
    os.utime(path, (then, then))
    return path


# digests by content


def test_two_checkpoints_with_one_vae_share_its_digest(tmp_path: Path):
    one, two = (checkpoint(tmp_path / f"{seed}.safetensors", unet=seed) for seed in (1, 2))
    first, second = component_digests(one, FOLDERS), component_digests(two, FOLDERS)
    assert {name for name in FOLDERS if first[name] != second[name]} == {"unet"}
    assert len({first[name] for name in PREFIXES}) == 4
    assert first["tokenizer1"] == first["tokenizer2"] == "clip"


def test_the_second_set_of_weights_positions_and_metadata_do_not_count(tmp_path: Path):
    plain = checkpoint(tmp_path / "plain.safetensors")
    more = {"model_ema.diffusion_modelout2bias": torch.ones(3), POSITION_IDS: torch.zeros(1, 77)}
    other = checkpoint(tmp_path / "other.safetensors", more | {"model_ema.decay": torch.ones(())})
    assert component_digests(plain, FOLDERS) == component_digests(other, FOLDERS)


def test_only_what_is_asked_for_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    read = []
    digest = components._digest
    monkeypatch.setattr(
        components, "_digest", lambda path, part, told: read.append(set(part)) or digest(path, part, told)
    )
    found = component_digests(checkpoint(tmp_path / "pony.safetensors", vae=0), (name for name in ("te1", "te2")))
    assert set(found) == {"te1", "te2"}
    assert read == [set(NAMES["te1"]), set(NAMES["te2"])]


def test_a_checkpoint_of_something_else_is_refused_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(components, "_digest", lambda *args: pytest.fail("read"))
    for missing, prefix in PREFIXES.items():
        other = checkpoint(tmp_path / "other.safetensors", **{missing: 0})
        with pytest.raises(JobError, match=r"not an SDXL checkpoint: no tensors") as caught:
            component_digests(other, PREFIXES)
        assert str(caught.value).endswith(f"{prefix}*")


def test_stray_files_in_a_folder_do_not_count(tmp_path: Path):
    base = shutil.copytree(tiny_folder(), tmp_path / "base")
    for name in ("README.md", "unet/notes.safetensors", "vae/diffusion_pytorch_model.fp16.safetensors"):
        (base / name).write_text("mine")
    assert component_digests(base, FOLDERS) == tiny_digests()
    assert component_digests(base, ["vae"]) == {"vae": tiny_digests()["vae"]}
    files = [str(path.relative_to(base)) for name in ("te1", "tokenizer2") for path in component_files(base, name)]
    assert files == ["text_encoder/model.safetensors", "tokenizer_2/vocab.json", "tokenizer_2/merges.txt"]


# hashed once


class Bench:
    """A repository with one base that is a file or folder in models/, and how often it was read."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch):
        self.files = Files(root / "repository")
        self.models = root / "models"
        self.base("pony.safetensors")
        self.reads: list[str] = []
        monkeypatch.setattr(assess, "component_digests", self._counted)

    def base(self, file: str) -> None:
        self.files.write(
            "lorabuild.toml", f'[bases.pony]\nfile = "{file}"\n[models]\ndirs = ["../models", "../more"]\n'
        )

    def _counted(self, path: Path, names: list[str], told: components.Told) -> dict[str, str]:
        self.reads += names
        return component_digests(path, names, told)

    @contextmanager
    def run(self) -> Iterator[Callable[..., dict[str, Resolved]]]:
        """A command: what looks up components of the base, as a job's inputs."""
        with opened(self.files.root, writing=False, building=False) as one:
            yield lambda *names: one._resolver.resolve(
                Job("norms:pony", {}, {name: Component("pony", name) for name in names}, [])
            )

    def digests(self, *names: str) -> dict[str, str]:
        with self.run() as look_up:
            return {name: found.digest for name, found in look_up(*names).items()}


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(tmp_path, monkeypatch)


def test_a_checkpoint_is_hashed_once_and_not_once_a_job_or_a_run(bench: Bench):
    path = checkpoint(bench.models / "pony.safetensors")
    with bench.run() as look_up:
        found = [look_up(*ADAPTABLE), look_up("unet", "tokenizer1")]
    assert {name: one.digest for name, one in found[0].items()} == component_digests(path, ADAPTABLE)
    assert {os.path.realpath(one.path) for one in found[1].values()} == {str(path)}
    assert bench.reads == ["unet", "te1", "te2", "tokenizer1"]  # and no VAE
    assert bench.digests(*ADAPTABLE)["unet"] == found[0]["unet"].digest
    assert len(bench.reads) == 4


def test_touched_copied_and_moved_it_is_read_once_more_and_is_the_same(bench: Bench):
    path = checkpoint(bench.models / "pony.safetensors")
    first = bench.digests(*ADAPTABLE)
    copy = bench.models.parent / "more/pony.safetensors"
    copy.parent.mkdir()

    def move() -> None:
        os.replace(shutil.move(path, copy.with_name("moved")), copy)

    for change in (lambda: os.utime(path, (1, 1)), lambda: shutil.copy2(path, copy), move):
        before = len(bench.reads)
        change()
        assert bench.digests(*ADAPTABLE) == bench.digests(*ADAPTABLE) == first
        assert len(bench.reads) - before in (0, 3)  # none for the copy: the first folder's file is the one
    assert len(bench.reads) == 9


def test_a_folder_is_read_file_by_file(bench: Bench):
    bench.base("pony")
    folder = shutil.copytree(tiny_folder(), bench.models / "pony")
    for path in folder.rglob("*"):
        aged(path)
    assert bench.digests(*FOLDERS) == tiny_digests()
    assert bench.digests(*FOLDERS) == tiny_digests()
    assert bench.reads == list(FOLDERS)
    (folder / "unet/config.json").touch()
    (folder / "notes.txt").touch()
    aged(folder / "tokenizer/merges.txt")
    assert bench.digests(*FOLDERS) == tiny_digests()
    assert bench.reads == [*FOLDERS, "tokenizer1"]


def test_jobs_that_ask_at_the_same_time_read_it_once(bench: Bench, monkeypatch: pytest.MonkeyPatch):
    checkpoint(bench.models / "pony.safetensors")
    slow = assess.component_digests
    monkeypatch.setattr(assess, "component_digests", lambda *args: time.sleep(0.1) or slow(*args))
    found = []
    with bench.run() as look_up:
        threads = [threading.Thread(target=lambda: found.append(look_up("unet")["unet"].digest)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert bench.reads == ["unet"]
    assert len(found) == 4 and len(set(found)) == 1


def test_a_file_that_changes_while_it_is_read_is_read_again(tmp_path: Path):
    state, path = State(tmp_path / "state.sqlite"), tmp_path / "pony.safetensors"
    path.write_bytes(b"one")
    aged(path)
    answers = iter(["torn", "whole"])

    def make() -> str:
        answer = next(answers)
        if answer == "torn":
            path.write_bytes(b"other")
            aged(path)
        return answer

    assert state.digest_of([path], "unet", make) == "whole"
    assert state.digest_of([path], "unet", lambda: pytest.fail("read again")) == "whole"
    assert state.digest_of([path], "vae", lambda: "another part") == "another part"


def test_a_file_younger_than_the_clocks_grain_is_not_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    state, path = State(tmp_path / "state.sqlite"), tmp_path / "pony.safetensors"
    path.write_bytes(b"one")
    now = path.stat().st_mtime_ns
    monkeypatch.setattr("lorabuild.signature.time.time_ns", lambda: now + GRAIN_NS // 2)
    assert [state.digest_of([path], "unet", lambda number=number: number) for number in "12"] == ["1", "2"]


# where a base is


@pytest.mark.parametrize("place", ["pony.safetensors", "../models/pony.safetensors", "../more/pony.safetensors"])
def test_a_base_is_looked_for_in_the_repository_and_in_the_folders_of_models(bench: Bench, place: str):
    path = checkpoint(bench.files.root / place)
    with bench.run() as look_up:
        assert os.path.realpath(look_up("vae")["vae"].path) == os.path.realpath(path)


def test_a_tilde_is_the_home_folder_and_a_whole_path_is_taken_as_it_is(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    path = checkpoint(tmp_path / "home/sdxl/pony.safetensors")
    for file in ("~/sdxl/pony.safetensors", path):
        bench.base(str(file))
        assert bench.digests("vae") == component_digests(path, ["vae"])
    bench.base("pony.safetensors")
    bench.files.write("lorabuild.local.toml", '[models]\ndirs = ["~/sdxl"]\n')
    assert bench.digests("vae") == component_digests(path, ["vae"])


def test_a_missing_file_is_one_line_with_its_key_the_places_and_a_near_miss(bench: Bench):
    checkpoint(bench.models / "pony-v6.safetensors")
    shutil.copytree(tiny_folder() / "unet", bench.models / "ember/unet")
    said = {
        "ponyv6.safetensors": '(did you mean "pony-v6.safetensors"?)',
        "pony-v6": '(did you mean "pony-v6.safetensors"?)',
        "Ember": '(did you mean "ember"?)',
        "whatever.safetensors": '"../models", "../more"',
    }
    for file, end in said.items():
        bench.base(file)
        with pytest.raises(JobError) as caught:
            bench.digests("vae")
        start = f'lorabuild.toml:2: bases.pony.file: "{file}": no such file or folder in the repository and in "../m'
        assert str(caught.value).startswith(start) and str(caught.value).endswith(end)
        assert "\n" not in str(caught.value)


def test_the_local_file_is_named_where_it_gives_the_base(bench: Bench):
    bench.files.write("lorabuild.local.toml", '\n[bases.pony]\n\nfile = "nowhere.safetensors"\n')
    bench.files.write("lorabuild.toml", '[bases.pony]\nfile = "pony.safetensors"\n')
    with pytest.raises(JobError, match=r"^lorabuild\.local\.toml:4: .* \(\[models\] dirs in lorabuild\.local\.toml"):
        bench.digests("vae")


@pytest.mark.parametrize("name", ["pony.ckpt", "pony.PT", "pony.bin"])
def test_a_pickle_is_refused_by_its_name_wherever_it_is(bench: Bench, name: str):
    checkpoint(bench.models / "pony.safetensors")
    (bench.models / name).write_bytes(b"PK\x03\x04")
    bench.base(name)
    with pytest.raises(JobError, match=r"safetensors only: a \.\w+ can run code when it is loaded \(did you mean"):
        bench.digests("vae")
    bench.base(f"nowhere/{name}")
    with pytest.raises(JobError, match="safetensors only"):
        bench.digests("vae")


def test_a_pickle_under_a_false_name_and_a_file_of_another_kind_are_refused(bench: Bench):
    bench.models.mkdir()
    (bench.models / "pony.safetensors").write_bytes(b"PK\x03\x04" + bytes(100))
    with pytest.raises(JobError, match="a pickle, which can run code"):
        bench.digests("vae")
    (bench.models / "pony.gguf").write_bytes(b"GGUF")
    bench.base("pony.gguf")
    with pytest.raises(JobError, match=r"neither a \.safetensors file nor a diffusers folder"):
        bench.digests("vae")


# an external VAE, and a pin


def test_a_vae_of_its_own_takes_the_place_of_the_files(bench: Bench):
    path = checkpoint(bench.models / "pony.safetensors")
    vae = bench.models / "vae.safetensors"
    save_file({"encoder.conv_in.weight": torch.ones(8, 3), "loss.logvar": torch.ones(1)}, vae)
    inside = bench.digests("vae", "unet")
    text = (bench.files.root / "lorabuild.toml").read_text()
    bench.files.write("lorabuild.toml", text.replace("[models]", 'vae = "vae.safetensors"\n[models]'))
    with bench.run() as look_up:
        found = look_up("vae", "unet")
    assert os.path.realpath(found["vae"].path) == str(aged(vae)) and os.path.realpath(found["unet"].path) == str(path)
    assert found["unet"].digest == inside["unet"] and found["vae"].digest == component_digests(vae, ["vae"])["vae"]
    vae.unlink()
    bench.digests("unet")
    with pytest.raises(JobError, match=r'^lorabuild\.toml:3: bases\.pony\.vae: "vae\.safetensors": no such file'):
        bench.digests("vae")
    save_file({"encoder.layer.0.weight": torch.ones(1), "x": torch.ones(1)}, vae)
    save_file({"lora_unet_mid_block_1_proj_in.lora_up.weight": torch.ones(1)}, vae)
    with pytest.raises(
        JobError, match=r"^lorabuild\.toml:3: bases\.pony\.vae: .*vae\.safetensors: not an SDXL base but a LoRA"
    ):
        bench.digests("vae")


def test_a_base_that_is_not_the_pinned_one_is_an_error_at_the_pin(bench: Bench):
    path = checkpoint(bench.models / "pony.safetensors")
    right = hashlib.sha256(path.read_bytes()).hexdigest()
    text = (bench.files.root / "lorabuild.toml").read_text()

    def pinned(digits: str) -> None:
        bench.files.write("lorabuild.toml", text.replace("[models]", f'digest = "{digits}"\n[models]'))

    for digits in (right, right[:10].upper()):
        pinned(digits)
        assert set(bench.digests("unet", "tokenizer1")) == {"unet", "tokenizer1"}
    pinned("0123456789ab")
    with pytest.raises(JobError) as caught:
        bench.digests("unet")
    assert str(caught.value).startswith("lorabuild.toml:3: bases.pony.digest: ") and f"is {right}, not 0123" in str(
        caught.value
    )


def test_a_base_of_another_kind_is_told_at_its_line(bench: Bench):
    checkpoint(bench.models / "pony.safetensors", {"control_model.zero_convs.0.0.bias": torch.zeros(4)})
    with pytest.raises(
        JobError, match=r"^lorabuild\.toml:2: bases\.pony\.file: .*not an SDXL checkpoint but a ControlNet"
    ):
        bench.digests("unet")


# manifests


def test_a_file_is_kept_as_it_was_written_and_other_bases_stay(tmp_path: Path):
    files = Files(tmp_path)
    files.write("lorabuild.toml", '[bases.pony]\nfile = "~/pony.safetensors"\n[models]\ndirs = ["a"]\n')
    files.write("lorabuild.local.toml", '[models]\ndirs = ["~/b", "../c"]\n')
    repository = load(tmp_path)
    assert repository.bases == {"tiny": {"builtin": "tiny-sdxl"}, "pony": {"file": "~/pony.safetensors"}}
    assert repository.model_dirs == ["~/b", "../c"]


def test_a_base_has_a_vae_a_clip_skip_and_a_pin(tmp_path: Path):
    files = Files(tmp_path)
    digest = "67AB2FD8EC439A89B3FEDB15CC65F54336AF163C7EB5E4F2ACC98F090A29B0B3"
    pony = 'file = "pony.safetensors"\nvae = "sdxl.vae.safetensors"\n'
    files.write(
        "lorabuild.toml", f'[bases.pony]\n{pony}clip_skip = 1\ndigest = "{digest}"\n[bases.two]\n{pony}clip_skip = 2\n'
    )
    bases = load(tmp_path).bases
    assert bases["pony"] == {
        "file": "pony.safetensors",
        "vae": "sdxl.vae.safetensors",
        "clip_skip": 1,
        "digest": digest.lower(),
    }
    assert bases["two"] == {"file": "pony.safetensors", "vae": "sdxl.vae.safetensors"}  # 2 is SDXL's own
    for wrong, said in {
        'digest = "67ab"': "lorabuild.toml:3: bases.pony.digest: expected a sha256",
        "clip_skip = 0": "lorabuild.toml:3: bases.pony.clip_skip: ",
        'vea = "x"': 'lorabuild.toml:3: bases.pony.vea: unknown key (did you mean "vae"?)',
    }.items():
        files.write("lorabuild.toml", f'[bases.pony]\nfile = "pony.safetensors"\n{wrong}\n')
        assert [str(one)[: len(said)] for one in files.mistakes()] == [said]
    files.write("lorabuild.toml", f'[bases.own]\nbuiltin = "tiny-sdxl"\ndigest = "{digest}"\n')
    assert "bases.own.digest: pins a file" in str(files.mistakes()[0])


# whole builds


def with_base(world: World, file: str) -> None:
    """Let the project train on the base `pony`, which is this file or folder."""
    world.write("lorabuild.toml", f'[bases.pony]\nfile = "{file}"\n[models]\ndirs = ["../models"]\n')
    manifest = world.root / "projects/ember/lora.toml"
    manifest.write_text(manifest.read_text().replace('base = "tiny"', 'base = "pony"'))


def test_a_folder_with_the_same_weights_trains_nothing_again(built: World):
    folder = shutil.copytree(built.root / ".lorabuild/base/tiny", built.root.parent / "models/pony")
    (folder / "components.json").unlink()
    with_base(built, "pony")
    result = built.doit()
    assert result.code == 0, result.out + result.err
    assert set(result.ran.values()) == {"published"}  # the headers tell what the base is called
    assert built.doit().events == []
    for path in folder.rglob("*"):
        os.utime(path)
    assert built.doit().events == []


def test_a_missing_base_fails_its_own_jobs_and_is_still_listed(built: World):
    built.project("other", seed=7)
    (built.root.parent / "models/ponny/unet").mkdir(parents=True)
    with_base(built, "pony")
    listed = built.doit("list", "--all")
    assert listed.code == 0
    assert "norms:pony" in listed.out and "base:tiny" in listed.out and "base:pony" not in listed.out

    result = built.doit("--continue")
    assert result.code == 1
    assert "Traceback" not in result.out + result.err
    line = 'FAILED: lorabuild.toml:2: bases.pony.file: "pony": no such file or folder in the repository and in '
    assert line + '"../models" (did you mean "ponny"?)' in result.out
    failed = {job for job, event in result.ran.items() if event == "failed"}
    assert failed == {"norms:pony", "latents:ember"}
    assert result.ran["chop:other"] == "restored"


def test_a_single_file_that_is_no_sdxl_fails_in_one_line(empty: World):
    checkpoint(empty.root / "pony.safetensors", te2=0)
    empty.write("lorabuild.toml", '[bases.pony]\nfile = "pony.safetensors"\n')
    empty.write(
        "projects/ember/lora.toml", '[project]\nbase = "pony"\nsource = "ember.safetensors"\n[resize]\nthr = -3\n'
    )
    assert empty.doit("list", "--all").code == 0
    result = empty.doit("norms:pony")
    assert (result.code, result.ran) == (1, {"norms:pony": "failed"})
    (said,) = [line for line in result.out.splitlines() if "FAILED" in line]
    assert "lorabuild.toml:2: bases.pony.file: " in said
    assert said.endswith("pony.safetensors: not an SDXL checkpoint: no tensors conditioner.embedders.1.model.*")
    assert "Traceback" not in result.out + result.err


def test_a_job_depends_on_a_base_only_if_a_job_makes_it():
    job = Job("norms:x", {}, {"unet": Component("x", "unet"), "weights": Artifact("train:x", "weights")}, [])
    assert dependencies(job, {"norms:x": job}) == ["train:x"]
    assert dependencies(job, {"norms:x": job, "base:x": job}) == ["base:x", "train:x"]


SAMPLES = """
[samples]
prompts = "prompts.txt"
sample_sampler = "euler"
"""


@pytest.mark.slow
def test_a_project_on_a_single_file_trains_resizes_chops_and_draws(empty: World):
    """A checkpoint in half precision, with what files hold beside weights, and a VAE apart; the second has the same VAE inside."""
    from sgm_base import LEFTOVERS, PREFIXES, write_sgm, write_vae

    first = write_sgm(empty.root.parent / "models/pony.safetensors", torch.float16, LEFTOVERS, vae=False)
    write_vae(empty.root.parent / "models/sdxl.vae.safetensors", "", torch.float16)
    bias = PREFIXES["unet"] + "out.2.bias"
    second = write_sgm(
        empty.root.parent / "models/noob.safetensors",
        torch.float16,
        {bias: torch.ones(4).half(), "v_pred": torch.zeros(0)},
    )
    shutil.copytree(tiny_folder() / "tokenizer", first.parent / "tokenizer")
    empty.write(
        "lorabuild.toml",
        '[models]\ndirs = ["../models"]\n[bases.pony]\nfile = "pony.safetensors"\nvae = "sdxl.vae.safetensors"\n'
        '[bases.noob]\nfile = "noob.safetensors"\nclip_skip = 3\n',
    )
    empty.project(steps=2)
    manifest = empty.root / "projects/ember/lora.toml"
    manifest.write_text(manifest.read_text().replace('base = "tiny"', 'base = "pony"') + SAMPLES)
    empty.write("projects/ember/prompts.txt", "ember --w 64 --h 64 --s 2 --d 1\n")
    result = empty.doit()
    assert result.code == 0, result.out + result.err
    assert {"latents:ember", "train:ember", "resize:ember", "chop:ember", "norms:pony"} <= result.built
    assert not {job for job in result.ran if job.startswith("base:")}
    assert sorted(path.name for path in (empty.root / "build/ember/live").glob("*.png")) == ["step00000002-00.png"]
    drawn = empty.doit("samples:ember")
    assert drawn.code == 0, drawn.out + drawn.err
    assert (empty.root / "build/ember/samples/sheet.png").is_file()
    assert empty.doit().events == []

    shutil.copytree(empty.root / "projects/ember", empty.root / "projects/frost")
    frost = empty.root / "projects/frost/lora.toml"
    frost.write_text(manifest.read_text().replace('base = "pony"', 'base = "noob"'))
    result = empty.doit()
    assert result.code == 0, result.out + result.err
    assert result.ran["train:frost"] == "built" and "latents:frost" not in result.ran  # they are there already
    assert "noob.safetensors says that it predicts v (its tensor v_pred)" in result.out + result.err
    metadata = read_header(empty.root / "build/frost/frost.safetensors").metadata
    assert (
        metadata["ss_clip_skip"] == "3"
        and "ss_clip_skip" not in read_header(empty.root / "build/ember/ember.safetensors").metadata
    )
    checked = empty.lorabuild("check")
    assert "LB024" in checked.out and "lorabuild.toml:7: warn: bases.noob: noob.safetensors says" in checked.out
    assert second.is_file()
