"""Training: what it writes, that it learns, and that a killed one ends as an undisturbed one does, byte for byte."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load, load_file
from tiny_base import RECIPE, dataset, latents, outputs, tiny_base, tiny_folder, training
from torch.nn import GroupNorm, LayerNorm

from lorabuild.errors import Interrupted, JobError
from lorabuild.nn.adapter import Shape, adapted
from lorabuild.nn.batches import Data, held_out_batches, micro_batch
from lorabuild.nn.trainer import Training, _Loop
from lorabuild.nn.warm import forget
from lorabuild.stages.train import STAGE, _saved_state


def run(folder: Path, **kwargs: Any) -> dict[str, Any]:
    """Run the stage; its notes for the run log."""
    job, workspace = training(folder, **kwargs)
    STAGE.run(job, workspace, lambda done, total, text: None)
    return workspace.notes


def log_of(out: dict[str, bytes]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out["log"].splitlines()]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The outputs of a training of three updates, with snapshots after the second and the last, from a cold start."""
    forget()
    folder = tmp_path_factory.mktemp("undisturbed")
    saved: list[str] = []
    run(folder, snapshots=(2, 3), on_saved=lambda role, path: saved.append(role))
    assert saved == ["step/2", "step/3"]
    return outputs(folder)


def test_it_writes_its_outputs_and_nothing_else(undisturbed: dict[str, bytes]):
    assert set(undisturbed) == {"weights", "step/2", "step/3", "log", "facts.json"}
    assert undisturbed["step/3"] == undisturbed["weights"] != undisturbed["step/2"]


def test_the_loss_falls_on_samples_that_are_never_trained(undisturbed: dict[str, bytes]):
    facts = json.loads(undisturbed["facts.json"])
    assert facts["loss_after"] < 0.95 * facts["loss_before"]


def test_the_log_tells_every_step(undisturbed: dict[str, bytes]):
    first, *steps, last = log_of(undisturbed)
    assert (first["event"], last["event"]) == ("held_out", "held_out")
    assert (first["when"], last["when"]) == ("before", "after")
    assert [record["step"] for record in steps] == [1, 2, 3]
    assert {key for record in steps for key in record} == {"event", "step", "loss", "lr", "grad_norm", "images"}
    assert steps[0]["lr"] == {"unet": 5e-3, "textencoder": 1e-3}
    assert steps[2]["lr"]["unet"] < steps[1]["lr"]["unet"] < 5e-3


def test_facts_are_the_data_sets(undisturbed: dict[str, bytes]):
    facts = json.loads(undisturbed["facts.json"])
    tags = {"ember": 5, "red": 5, "sit": 5} | {str(number): 1 for number in range(5)}
    assert facts.pop("tag_frequency") == tags
    del facts["loss_before"], facts["loss_after"]
    assert facts == {
        "num_images": 5,
        "num_images_with_repeats": 6,
        "buckets": {"64x64": 3, "96x32": 3},
        "modules": {"unet": 788, "te": 264},
        "steps": 3,
        "epochs": 2,
    }


def test_every_layer_that_can_learn_has_learnt(undisturbed: dict[str, bytes], tmp_path: Path):
    """All but the last layer of the first text encoder, whose output SDXL does not use."""
    (tmp_path / "w").write_bytes(undisturbed["weights"])
    ups = {name: tensor for name, tensor in load_file(tmp_path / "w").items() if ".lora_up." in name}
    still = {name for name, tensor in ups.items() if not tensor.any()}
    assert still == {name for name in ups if name.startswith("lora_te1_text_model_encoder_layers_11_")}
    assert all(torch.isfinite(tensor).all() for tensor in ups.values())


def test_a_warm_process_and_other_options_change_no_byte(undisturbed: dict[str, bytes], tmp_path: Path):
    """The base is warm from the training before; snapshot 2 has a record and is not written again; it is watched."""
    watch = {"folder": str(tmp_path / "logs"), "validate_every_n_steps": 2}
    options = {"gradient_checkpointing": True, "have_steps": ["step/2"], "device": "cpu", "watch": watch}
    notes = run(tmp_path, snapshots=(2, 3), options=options)
    again = outputs(tmp_path)
    assert again == {role: data for role, data in undisturbed.items() if role != "step/2"}
    assert notes == {}


def test_a_missing_snapshot_is_trained_for_and_no_more(undisturbed: dict[str, bytes], tmp_path: Path):
    """The weights and snapshot 3 are on record: after update 2 nothing is wanted any more."""
    done: list[int] = []
    options = {"have_steps": ["step/3"], "have_rest": True}
    job, workspace = training(tmp_path, snapshots=(2, 3), options=options)
    STAGE.run(job, workspace, lambda number, total, text: done.append(number))
    assert outputs(tmp_path) == {"step/2": undisturbed["step/2"]}
    assert done[-1] == 2


def test_epochs_are_turned_into_updates_by_the_data_set(undisturbed: dict[str, bytes], tmp_path: Path):
    """Two batches an epoch. The first update is that of the training of three steps."""
    by_steps = log_of(undisturbed)
    recipe = {"max_train_steps": None, "max_train_epochs": 1, "gradient_accumulation_steps": 1}
    run(tmp_path, recipe=recipe | {"lr_scheduler": "constant", "lr_scheduler_args": {}})
    records = log_of(outputs(tmp_path))
    assert [record["step"] for record in records if record["event"] == "step"] == [1, 2]
    assert records[1]["loss"] == by_steps[1]["loss"]
    facts = json.loads(outputs(tmp_path)["facts.json"])
    assert (facts["steps"], facts["epochs"]) == (2, 1)


def test_a_training_continues_a_file_with_its_ranks(undisturbed: dict[str, bytes], tmp_path: Path):
    """It begins where the other ended, but for the rounding to half precision; network_dim does not count."""
    (tmp_path / "old").write_bytes(undisturbed["weights"])
    job, workspace = training(tmp_path, recipe={"max_train_steps": 1, "network_dim": 2})
    workspace.paths = {**workspace.paths, "init": tmp_path / "old"}
    STAGE.run(job, workspace, lambda done, total, text: None)
    facts, before = (json.loads(out["facts.json"]) for out in (outputs(tmp_path), undisturbed))
    assert facts["loss_before"] == pytest.approx(before["loss_after"], rel=1e-3)
    assert facts["loss_before"] < 0.95 * before["loss_before"]
    old, new = load_file(tmp_path / "old"), load(outputs(tmp_path)["weights"])
    assert {name: one.shape for name, one in old.items()} == {name: one.shape for name, one in new.items()}


def test_a_disk_without_room_is_told_before_the_first_update(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("lorabuild.stages.train.shutil.disk_usage", lambda path: SimpleNamespace(free=20 * 10**6))
    with pytest.raises(
        JobError, match=r"^the disk has 0.0 GB free, and the training needs about \d+\.\d GB: 3 snapshots"
    ):
        run(tmp_path, snapshots=(1, 2, 3))
    assert outputs(tmp_path) == {}


TWO = {"gradient_accumulation_steps": 2, "max_train_steps": 2, "max_validation_steps": 1}


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The outputs of a training of two updates that nobody stops."""
    folder = tmp_path_factory.mktemp("two")
    run(folder, recipe=TWO)
    return outputs(folder)


@pytest.mark.parametrize("answers", [0, 1, 3], ids=["at once", "within the first update", "within the second"])
def test_a_training_that_is_stopped_keeps_its_last_update(two: dict[str, bytes], tmp_path: Path, answers: int):
    """It asks before each micro-batch; what was done of the update is done again."""
    job, workspace = training(tmp_path, recipe=TWO)
    said = iter([False] * answers)
    workspace.stopping = lambda: next(said, True)
    with pytest.raises(Interrupted) as stop:
        STAGE.run(job, workspace, lambda done, total, text: None)
    done = answers // 2
    assert stop.value.kept == ("step 1 of 2" if done else "")
    assert (workspace.scratch / "state").exists() == bool(done)
    assert run(tmp_path, recipe=TWO) == ({"resumed_at": done} if done else {})
    assert outputs(tmp_path) == two


KILLED = """
import sys
sys.path[:0] = {path!r}
from pathlib import Path
import torch
torch.set_num_threads(1)
import tiny_base
tiny_base.tiny_folder = lambda: Path({base!r})
from lorabuild.stages.train import STAGE
saved = lambda role, path: print(role, flush=True)
job, workspace = tiny_base.training(Path({folder!r}), snapshots=(2, 3), on_saved=saved)
STAGE.run(job, workspace, lambda done, total, text: print("step", done, flush=True))
"""


def test_killed_at_any_moment_it_goes_on_and_ends_with_the_same_bytes(undisturbed: dict[str, bytes], tmp_path: Path):
    update, delay = 1, 0.3  # in the middle of the second update, and of its snapshot on a slow machine
    path = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
    code = KILLED.format(path=path, base=str(tiny_folder()), folder=str(tmp_path))
    killed = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert killed.stdout is not None
    said = []
    for line in killed.stdout:
        said.append(line.split())
        if said[-1] == ["step", str(update)]:
            break
    assert said, "the training did not begin"
    time.sleep(delay)
    os.killpg(killed.pid, signal.SIGKILL)
    said += [line.split() for line in killed.stdout]
    killed.wait()
    recorded = [role for role, *_ in said if role.startswith("step/")]
    notes = run(tmp_path, snapshots=(2, 3), options={"have_steps": recorded})
    assert notes["resumed_at"] >= 1
    expected = {role: data for role, data in undisturbed.items() if role not in recorded}
    again = outputs(tmp_path)
    assert {role: data for role, data in again.items() if role in expected} == expected


@pytest.fixture(scope="module")
def frozen_text(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """One update of the U-Net alone, with a damaged state in the way: what it left, warned of and noted."""
    folder = tmp_path_factory.mktemp("frozen")
    job, workspace = training(folder, recipe={"text_encoder_lr": 0.0, "max_train_steps": 1})
    warnings: list[str] = []
    workspace.warn = warnings.append
    (folder / "scratch/state").write_bytes(b"rubbish")
    STAGE.run(job, workspace, lambda done, total, text: None)
    return SimpleNamespace(folder=folder, outputs=outputs(folder), warnings=warnings, notes=workspace.notes)


def test_a_damaged_state_is_left_with_a_warning(frozen_text: SimpleNamespace):
    assert frozen_text.warnings == ["the saved state is damaged: training starts at the beginning"]
    assert "resumed_at" not in frozen_text.notes
    assert (frozen_text.folder / "scratch/state").stat().st_size > 1000, "the next state took its place"


def test_a_state_past_a_wanted_snapshot_is_left_with_a_warning(frozen_text: SimpleNamespace):
    job, workspace = training(frozen_text.folder, recipe={"text_encoder_lr": 0.0, "max_train_steps": 1})
    warnings: list[str] = []
    workspace.warn = warnings.append
    assert _saved_state(job, workspace, [1])[1].facts["step"] == 1
    assert (warnings, workspace.notes) == ([], {"resumed_at": 1})
    assert _saved_state(job, workspace, [0])[1] is None
    assert warnings == ["the saved state is past step 0, which is wanted: training starts at the beginning"]


@pytest.mark.parametrize("frozen", ["te", "unet"])
def test_a_part_with_rate_0_is_neither_trained_nor_in_the_file(
    tmp_path: Path, frozen: str, frozen_text: SimpleNamespace
):
    if frozen == "unet":
        run(tmp_path, recipe={"unet_lr": 0.0, "max_train_steps": 1})
    out = outputs(tmp_path) if frozen == "unet" else frozen_text.outputs
    (tmp_path / "w").write_bytes(out["weights"])
    names = load_file(tmp_path / "w")
    assert names and not any(name.startswith(f"lora_{frozen}") for name in names)
    assert json.loads(out["facts.json"])["modules"] == {"unet": 788, "te": 264} | {frozen: 0}
    assert log_of(out)[1]["lr"][{"te": "textencoder", "unet": "unet"}[frozen]] == 0


def test_a_loss_that_is_not_finite_names_the_step(tmp_path: Path):
    with pytest.raises(JobError, match=r"^step 2: the loss is not finite \(nan\)"):
        run(tmp_path, recipe={"unet_lr": 1e30, "max_train_steps": 3, "text_encoder_lr": 0.0})


def test_fp16_needs_a_gpu(tmp_path: Path):
    with pytest.raises(JobError, match='"fp16" needs a GPU'):
        run(tmp_path, recipe={"mixed_precision": "fp16"})


# one update


def loop_on(adapter: Any, recipe: dict[str, Any]) -> _Loop:
    return _Loop(Training(tiny_base(), adapter, Data(dataset(), latents().__getitem__), recipe))


def test_an_update_does_not_depend_on_how_its_images_are_batched():
    """Without pyramid noise, whose ratios are one for a batch: two batches of one are one batch of two."""
    recipe = RECIPE | {"multires_noise_iterations": 0}
    samples = [(0, 0), (2, 0)]
    records = []
    for dealt in ([(0, samples)], [(0, samples[:1]), (0, samples[1:])]):
        with adapted(tiny_base(), Shape.of(recipe), recipe["seed"], ("te", "unet")) as adapter:
            loop = loop_on(adapter, recipe)
            loop.update(dealt)
            records += loop.log
    one, two = records
    assert one["images"] == two["images"] == 2
    assert two["loss"] == pytest.approx(one["loss"], rel=1e-5)
    assert two["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-4)


def test_the_images_of_a_short_batch_weigh_as_much_as_others():
    recipe = RECIPE | {"multires_noise_iterations": 0}
    with adapted(tiny_base(), Shape.of(recipe), recipe["seed"], ("unet",)) as adapter:
        loop = loop_on(adapter, recipe)
        data = loop.training.data
        with torch.no_grad():
            full = loop._losses(micro_batch(data, recipe, 7, 0, [(0, 0), (2, 0)], 0, 0), loop.objective)
            short = loop._losses(micro_batch(data, recipe, 7, 0, [(3, 0)], 0, 1), loop.objective)
        loss = loop.update([(0, [(0, 0), (2, 0)]), (0, [(3, 0)])])
        assert loss == pytest.approx((full.sum() + short.sum()).item() / 3, rel=1e-5)


EVERYTHING = {
    "noise_offset": 0.1,
    "noise_offset_random_strength": True,
    "adaptive_noise_scale": 0.01,
    "pyramid_std": "sample",
    "ip_noise_gamma": 0.1,
    "ip_noise_gamma_random_strength": True,
    "min_timestep": 200,
    "max_timestep": 900,
    "zero_terminal_snr": True,
    "loss_type": "huber",
    "min_snr_gamma": 5.0,
    "debiased_estimation_loss": True,
    "scale_v_pred_loss_like_noise_pred": True,
}


def test_the_held_out_loss_is_the_same_measure_for_every_recipe():
    """Before the first update all recipes are the base; what they train on differs."""
    held_out, trained = [], []
    for recipe in (RECIPE | {"multires_noise_iterations": 0}, RECIPE | EVERYTHING):
        with adapted(tiny_base(), Shape.of(recipe), recipe["seed"], ("unet",)) as adapter:
            loop = _Loop(replace(loop_on(adapter, recipe).training, prediction_type="v_prediction"))
            loop.measure("before")
            trained.append(loop.update([(0, [(0, 0)])]))
            held_out.append(loop.log[0]["loss"])
    assert held_out[0] == held_out[1]
    assert trained[1] != pytest.approx(trained[0], rel=0.1)


def test_on_a_v_base_the_network_is_asked_for_the_velocity():
    batch = micro_batch(Data(dataset(), latents().__getitem__), RECIPE, 7, 0, [(0, 0)], 0, 0)
    answers: list[torch.Tensor] = []
    with adapted(tiny_base(), Shape.of(RECIPE), 7, ("unet",)) as adapter, torch.no_grad():
        loop = _Loop(replace(loop_on(adapter, RECIPE).training, prediction_type="v_prediction"))
        hook = loop.training.base.unet.register_forward_hook(lambda unet, given, out: answers.append(out.sample))
        loss = loop._losses(batch, loop.objective).item()
        hook.remove()
    kept = loop.objective.kept[batch.timesteps].item()
    velocity = kept**0.5 * batch.noise - (1 - kept) ** 0.5 * batch.latents
    assert loss == pytest.approx((answers[0] - velocity).square().mean().item(), rel=1e-5)
    assert loss != pytest.approx((answers[0] - batch.noise).square().mean().item(), rel=1e-2)


def test_a_training_on_a_v_base_learns(tmp_path: Path):
    objective = {"zero_terminal_snr": True, "min_snr_gamma": 5.0, "multires_noise_iterations": 0}
    job, workspace = training(tmp_path, recipe=objective)
    job = replace(job, params=job.params | {"base": {"prediction_type": "v_prediction"}})
    STAGE.run(job, workspace, lambda done, total, text: None)
    facts = json.loads(outputs(tmp_path)["facts.json"])
    assert facts["loss_after"] < 0.9 * facts["loss_before"]


def test_gradients_are_clipped_over_all_parameters_at_once():
    recipe = RECIPE | {"max_grad_norm": 1e-3}
    with adapted(tiny_base(), Shape.of(recipe), recipe["seed"], ("te", "unet")) as adapter:
        loop = loop_on(adapter, recipe)
        seen: list[float] = []
        loop.optimizer.step = lambda: seen.append(
            torch.stack([p.grad.norm() for p in loop.parameters.values() if p.grad is not None]).norm().item()
        )
        loop.update([(0, [(0, 0)])])
        assert loop.log[0]["grad_norm"] > 1e-3
        assert seen == [pytest.approx(1e-3, rel=1e-2)]


def test_bf16_trains_in_bf16_and_keeps_the_adapter_in_float32():
    losses = {}
    for precision, dtype in (("no", torch.float32), ("bf16", torch.bfloat16)):
        recipe = RECIPE | {"mixed_precision": precision}
        base = tiny_base(dtype)
        norms = {
            id(p)
            for module in base.unet.modules()
            if isinstance(module, (GroupNorm, LayerNorm))
            for p in module.parameters()
        }
        assert {p.dtype for p in base.unet.parameters() if id(p) not in norms} == {dtype}
        with adapted(base, Shape.of(recipe), recipe["seed"], ("unet",)) as adapter:
            loop = _Loop(Training(base, adapter, Data(dataset(), latents().__getitem__), recipe))
            losses[precision] = loop.update([(0, [(0, 0)])])
            assert {p.dtype for p in loop.parameters.values()} == {torch.float32}
            assert not loop.flat.gradients.any()
    forget()
    assert losses["bf16"] == pytest.approx(losses["no"], rel=0.02)
    assert losses["bf16"] != losses["no"]


# what a sample sees


def test_a_sample_does_not_depend_on_its_company():
    recipe = RECIPE | {"multires_noise_iterations": 0}
    data = Data(dataset(), latents().__getitem__)
    together = micro_batch(data, recipe, 7, 3, [(0, 0), (2, 0)], 5, 1)
    alone = micro_batch(data, recipe, 7, 3, [(2, 0)], 6, 0)
    for name in ("latents", "noise", "timesteps", "sizes"):
        assert torch.equal(getattr(together, name)[1:], getattr(alone, name))
    assert together.captions[1:] == alone.captions


def test_two_entries_of_one_picture_draw_different_numbers():
    data = Data(dataset(), latents().__getitem__)
    draws = [micro_batch(data, RECIPE, 7, 0, [sample], 0, 0) for sample in ((0, 0), (1, 0))]
    assert len({draw.noise[0, 0, 0, 0].item() for draw in draws}) == 2


def test_flips_take_the_flipped_latents_and_mirror_the_crop():
    """resized is 4 wider than the bucket and cropped at 1 from the left, so at 3 from the left of the mirror image."""
    data, found = Data(dataset(), latents().__getitem__), latents()
    seen = set()
    for epoch in range(12):
        batch = micro_batch(data, RECIPE, 7, epoch, [(2, 0)], 0, 0)
        flip = batch.sizes[0, 3].item() == 3
        expected = found[f"{'b' * 32}.64x64" + (".flip" if flip else "")] * 0.13025
        assert torch.equal(batch.latents[0], expected)
        assert batch.sizes[0].tolist() == [216, 192, 0, 3 if flip else 1, 64, 64]
        seen.add(flip)
    assert seen == {True, False}


def test_captions_and_timesteps_are_drawn_anew_each_epoch():
    data = Data(dataset(), latents().__getitem__)
    batches = [micro_batch(data, RECIPE, 7, epoch, [(0, 0)], 0, 0) for epoch in range(8)]
    assert len({batch.captions[0] for batch in batches}) > 2
    assert all(batch.captions[0].startswith("ember, ") for batch in batches)
    assert len({batch.timesteps[0].item() for batch in batches}) == 8


def test_held_out_samples_are_fixed_spread_over_time_and_never_trained():
    data = Data(dataset(), latents().__getitem__)
    held = held_out_batches(data, RECIPE, 7)
    again = held_out_batches(data, RECIPE, 7)
    assert all(torch.equal(a.noise, b.noise) and a.captions == b.captions for a, b in zip(held, again, strict=True))
    timesteps = torch.cat([batch.timesteps for batch in held])
    count = len(timesteps)
    assert sorted((timesteps * count // 1000).tolist()) == list(range(count))
    trained = [micro_batch(data, RECIPE, 7, 0, [(index, 0)], 0, 0).noise[0, 0, 0, 0].item() for index in range(5)]
    assert not {batch.noise[0, 0, 0, 0].item() for batch in held} & set(trained)
