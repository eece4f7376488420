"""Train a LoRA: the adapter's weights, its snapshots on the way, and a log of the loss."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorabuild.bases.family import prediction_warning
from lorabuild.errors import JobError
from lorabuild.hashing import canonical_json, digest_json
from lorabuild.loaded import device_of, load_base
from lorabuild.lora.presets import TEXT_PARTS
from lorabuild.manifest.bases import base_params, clip_skip_of
from lorabuild.manifest.continued import init_path, init_project
from lorabuild.manifest.keys import keys_of_class, result_keys
from lorabuild.manifest.targets import makers
from lorabuild.sampling.samples import sample_steps, sampling
from lorabuild.stage import INIT, Artifact, Component, File, Job, Stage
from lorabuild.training.compiling import to_compile
from lorabuild.training.facts import facts_of
from lorabuild.training.order import batches_per_epoch
from lorabuild.training.updates import counted, hangs_on_data, surely_wanted_steps, update_count, wanted_steps
from lorabuild.training.validation import split

if TYPE_CHECKING:
    from lorabuild.manifest import Project, Repository
    from lorabuild.nn.adapter import Adapter
    from lorabuild.nn.base import Base
    from lorabuild.nn.resume import State, StateFile
    from lorabuild.nn.room import Room
    from lorabuild.sampling.live import Live
    from lorabuild.watching import Watch
    from lorabuild.workspace import Progress, Workspace

BYTES = {"fp32": 4, "fp16": 2, "bf16": 2}  # of a number, by save_precision
WATCHED = ("log_with", "validate_every_n_steps")  # of the keys that show alone
READ_COMPONENTS = ("unet", "te1", "te2", "tokenizer1", "tokenizer2")


def jobs(repository: Repository) -> Iterable[Job]:
    for name, project in repository.projects.items():
        settings = project.settings
        if not settings["dataset"] or settings["project"]["source"]:
            continue
        base = settings["project"]["base"]
        for trainer, users in makers(project, "train").items():
            settings = next(iter(users.values()))
            recipe = result_keys(settings, "recipe")
            recipe.pop("init", None)  # it counts by its content
            yield Job(
                name=f"train:{trainer}",
                params={"recipe": recipe, "base": base_params(repository, base)},
                inputs={
                    "dataset": Artifact(f"dataset:{name}", "dataset.json"),
                    "latents": Artifact(f"latents:{name}", "latents"),
                    **{component: Component(base, component) for component in READ_COMPONENTS},
                    **_init(project),
                },
                outputs=["weights", "log", "facts.json"],
                snapshots=_roles(_known_steps(users.values())),
                options={
                    **keys_of_class(settings, "recipe", "execution"),
                    "saved": _saved_set(users.values()),
                    "watch": _watching(repository, name, settings),
                    **_samples(repository, project, trainer),
                },
            )


def snapshots(job: Job, read: Callable[[str], bytes]) -> Sequence[str]:
    """All snapshots that are wanted: by epochs, too, which only the data set turns into steps.

    Raises JobError for a step that is resized and that the training does not come to.
    """
    recipe, saved = job.params["recipe"], job.options["saved"]
    if not hangs_on_data(recipe, saved):
        return job.snapshots
    images, _ = split(json.loads(read("dataset"))["images"], recipe)
    batches = batches_per_epoch(images, recipe["train_batch_size"])
    last = update_count(recipe, batches)
    if beyond := [step for step in saved["resized"] if step > last]:
        epochs = recipe["max_train_epochs"]
        raise JobError(
            f"resize.step: {beyond[0]}: the training ends at step {last} (recipe.max_train_epochs: {epochs}, of {batches} "
            f"batches each, {recipe['gradient_accumulation_steps']} an update)"
        )
    return _roles(wanted_steps(recipe, saved, batches))


def run(job: Job, workspace: Workspace, progress: Progress) -> None:
    """Train, from the last saved state if a run was killed; write `weights`, wanted snapshots, `log` and `facts.json`.

    `options`: `have_steps` names snapshots that need not be written, `have_rest` says the same of all else, so that the
    training ends with the last snapshot; `device` is "cpu" or "cuda", `gradient_checkpointing` saves memory; `torch_compile`
    compiles, into the folder `compiled`; `processes` work on it, of which this is number `rank`; `watch` says what is shown
    of it, and where; `samples` which prompts are drawn on the way, and when.
    """
    from lorabuild.lora.adapter_shape import Shape, trained_parts
    from lorabuild.nn.adapter import adapted
    from lorabuild.nn.base import checkpointing
    from lorabuild.nn.export import write_adapter
    from lorabuild.nn.optimizers import try_out
    from lorabuild.nn.trainer import Observer, Training, train
    from lorabuild.team import team
    from lorabuild.training.optimizers import warnings

    options, recipe = job.options, job.params["recipe"]
    dataset, held_back = _split(json.loads(workspace.path("dataset").read_bytes()), recipe)
    recipe = counted(recipe, batches_per_epoch(dataset["images"], recipe["train_batch_size"]))
    steps = _wanted_steps(job)
    last = max(steps, default=0) if options.get("have_rest") else recipe["max_train_steps"]
    device = device_of(options, recipe, workspace)
    try_out(recipe, device)  # before the base, which takes long
    for line in warnings(recipe):
        workspace.warn(line)
    if line := prediction_warning(workspace.path("unet"), job.params["base"]["prediction_type"]):
        workspace.warn(line)
    room = _room(recipe, options, dataset, workspace, device)
    if room.line:
        progress(0, recipe["max_train_steps"], room.line)
        print(room.line)  # to the job's log
    if room.short:
        workspace.warn(room.short)
    learns_text = any(part in TEXT_PARTS for part in trained_parts(recipe))
    with room.watched():
        base = load_base(workspace, recipe["mixed_precision"], device, clip_skip_of(job.params["base"]), learns_text)
    state_file, state = _saved_state(job, workspace, steps)

    shape = Shape.of(recipe)
    with (
        room.watched(),
        team(job, workspace, _processes(options, recipe, device), device) as ranks,
        checkpointing(base, bool(options.get("gradient_checkpointing"))),
        adapted(base, shape, recipe["seed"], trained_parts(recipe), device, **_adapting(workspace, device)) as adapter,
        _compiled(base, options, recipe, device, workspace),
    ):
        _check_room(adapter, recipe, len(steps), state, workspace)

        def write(role: str) -> None:
            write_adapter(workspace.output(role), adapter, shape.alpha, recipe["save_precision"])

        saved: dict[int, Path] = {}

        def snapshot(step: int) -> None:
            write(f"step/{step}")
            saved[step] = workspace.saved(f"step/{step}")

        def draw(step: int) -> None:
            if live:
                live.draw(step, adapter, saved.get(step))

        live = _live(job, workspace, recipe, dataset, base, device) if ranks.leads else None
        if live:
            live.begin(anew=state is None)
        watch, every = _watch(job, workspace, progress, dataset, ranks.leads)
        drawn = live.steps if live else ()
        observer = Observer(steps, snapshot, watch.progress, workspace.stopping, last, watch.logged, every, drawn, draw)
        predicts = job.params["base"]["prediction_type"]
        data = _data(dataset, workspace, device)
        unseen = replace(data, dataset=held_back) if held_back["images"] else None
        training = Training(base, adapter, data, recipe, device, predicts, ranks, unseen)
        log = train(training, observer, state_file, state)
        if options.get("have_rest") or not ranks.leads:
            return
        write("weights")
        facts = facts_of(dataset, recipe, log, adapter.counts())
        if held_back["images"]:
            facts["num_validation_images"] = len(held_back["images"])
    workspace.output("log").write_bytes(b"".join(canonical_json(record) + b"\n" for record in log))
    workspace.output("facts.json").write_bytes(canonical_json(facts) + b"\n")


def _samples(repository: Repository, project: Project, trainer: str) -> dict[str, Any]:
    found = sampling(repository, project)
    if not found:
        return {}
    variant = trainer.partition("@")[2]  # two that train at once draw into folders of their own
    return {"samples": found | ({"live": str(Path(found["live"], variant))} if variant else {})}


def _live(
    job: Job, workspace: Workspace, recipe: Mapping[str, Any], dataset: Mapping[str, Any], base: Base, device: str
) -> Live | None:
    """Who draws the prompts while it trains, if any are asked for."""
    if not (samples := job.options.get("samples")):
        return None
    from lorabuild.sampling.live import Live

    batches = batches_per_epoch(dataset["images"], recipe["train_batch_size"])
    saved = [int(role.partition("/")[2]) for role in job.snapshots]
    steps = sample_steps(samples, saved, recipe["max_train_steps"], batches, recipe["gradient_accumulation_steps"])
    return Live(workspace, samples, recipe, job.params["base"]["prediction_type"], base, device, steps)


def known_steps(project: Project) -> list[int]:
    """The steps of the snapshots of the project's own training that are known to be wanted without a look at the data set."""
    return _known_steps(makers(project, "train")[project.name].values())


def _known_steps(users: Collection[Mapping[str, Any]]) -> list[int]:
    return surely_wanted_steps(result_keys(next(iter(users)), "recipe"), _saved_set(users))


def _saved_set(users: Collection[Mapping[str, Any]]) -> dict[str, Any]:
    """Which snapshots of a training are wanted: the keys that say so, and the steps that its `users` resize."""
    steps = {(one["resize"] or {}).get("step", "last") for one in users}
    return keys_of_class(next(iter(users)), "recipe", "saved") | {"resized": sorted(steps - {"last"})}


def steps_by_data(project: Project) -> bool:
    """Do snapshots hang on how many batches the data set has?"""
    recipe = project.settings["recipe"]
    return bool(recipe.get("save_every_n_epochs") or recipe.get("max_train_epochs"))


def _roles(steps: Iterable[int]) -> list[str]:
    return [f"step/{step}" for step in steps]


def _init(project: Project) -> dict[str, Artifact | File]:
    """What the training continues: another project's weights, a file, or nothing."""
    if path := init_path(project):
        return {"init": File(path, project.settings["recipe"]["init"], INIT)}
    if other := init_project(project.settings):
        return {"init": Artifact(f"train:{other}", "weights")}
    return {}


def _adapting(workspace: Workspace, device: str) -> dict[str, Any]:
    """For the adapter: the tensors of the LoRA that the training continues, whose ranks and alphas are the file's.

    On a GPU q, k and v are computed in one: it is faster there, and not here, where it would change the last bits.
    """
    how: dict[str, Any] = {"fuse": device != "cpu"}
    if "init" not in workspace.paths:
        return how
    from safetensors.torch import load_file

    return how | {"init": load_file(workspace.path("init"))}


def _compiled(
    base: Base, options: Mapping[str, Any], recipe: Mapping[str, Any], device: str, workspace: Workspace
) -> AbstractContextManager[None]:
    """The U-Net compiled, within a with block, if that is to be."""
    if not to_compile(options.get("torch_compile"), recipe, device):
        return nullcontext()
    from lorabuild.nn.compiled import compiled

    cache = Path(options["compiled"]) if "compiled" in options else None
    return compiled(base.unet, workspace.warn, cache)


def _watching(repository: Repository, project: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What is shown of a training while it runs, which is in no key."""
    shown = {key: value for key in WATCHED if (value := settings["recipe"].get(key))}
    return {"folder": str(repository.root / "build" / project / "logs"), **shown}


def _watch(
    job: Job, workspace: Workspace, progress: Progress, dataset: Mapping[str, Any], leads: bool
) -> tuple[Watch, int]:
    """Who is told of the training, and every how many updates the held-out loss is to be told of.

    Each training has its folder for TensorBoard: there it is a run by itself, to be laid over others.
    """
    from fractions import Fraction

    from lorabuild.events import Events
    from lorabuild.watching import Watch

    options, recipe = job.options.get("watch", {}), job.params["recipe"]
    folder = Path(options["folder"]) / _identity(job, workspace)[:8] if "folder" in options and leads else None
    batches = batches_per_epoch(dataset["images"], recipe["train_batch_size"])
    epoch = Fraction(batches, recipe["gradient_accumulation_steps"])
    watch = Watch(progress, Events(folder, "log_with" in options, workspace.warn), epoch)
    return watch, options.get("validate_every_n_steps", 0)


def _split(dataset: dict[str, Any], recipe: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The data set to train on, and that of the images that are held back from it."""
    trained, held_back = split(dataset["images"], recipe)
    if recipe.get("validation_split") and not held_back:
        raise JobError("recipe.validation_split: with one image there is none to hold back")
    return {**dataset, "images": trained}, {**dataset, "images": held_back}


def _wanted_steps(job: Job) -> list[int]:
    """The snapshots to write: those that are wanted and not yet there."""
    wanted = [role for role in job.snapshots if role not in job.options.get("have_steps", ())]
    return [int(role.partition("/")[2]) for role in wanted]


def _processes(options: Mapping[str, Any], recipe: Mapping[str, Any], device: str) -> int:
    """How many processes work on it: on a CPU no more than there are micro-batches in an update, which stay whole there."""
    wanted = options.get("processes", 1)
    return wanted if device == "cuda" else min(wanted, recipe["gradient_accumulation_steps"])


def _room(
    recipe: Mapping[str, Any], options: Mapping[str, Any], dataset: Mapping[str, Any], workspace: Workspace, device: str
) -> Room:
    """What memory it will take, and what there is."""
    from lorabuild.nn.room import room_of

    settings = {**recipe, "gradient_checkpointing": options.get("gradient_checkpointing", False)}
    pixels = max(width * height for width, height in (image["bucket"] for image in dataset["images"]))
    return room_of(settings, workspace.path("unet"), pixels, device)


def _saved_state(job: Job, workspace: Workspace, steps: Sequence[int]) -> tuple[StateFile, State | None]:
    """Where this training keeps its state, and the state if it is of use; what is of no use is left with a warning."""
    from lorabuild.nn.resume import StateFile, Unusable

    state_file = StateFile(workspace.scratch / "state", _identity(job, workspace))
    try:
        state = state_file.load()
    except Unusable as why:
        workspace.warn(f"{why}: training starts at the beginning")
        return state_file, None
    if state is None:
        return state_file, None
    passed = [step for step in steps if step < state.facts["step"]]
    if passed:
        workspace.warn(f"the saved state is past step {passed[0]}, which is wanted: training starts at the beginning")
        return state_file, None
    workspace.note(resumed_at=state.facts["step"])
    return state_file, state


def _identity(job: Job, workspace: Workspace) -> str:
    """Says all that shapes the training."""
    return digest_json([STAGE.name, STAGE.version, job.params, dict(workspace.digests)])


def _check_room(
    adapter: Adapter, recipe: Mapping[str, Any], snapshots: int, state: State | None, workspace: Workspace
) -> None:
    """Raise JobError where the disk has no room for what the training will write: better now than after hours."""
    numbers = [parameter for part in adapter.parts for parameter in adapter.parameters(part).values()]
    weights = sum(one.numel() for one in numbers) * BYTES[recipe["save_precision"]]
    # Each file in the store and in build/. The state: float32 with two moments, old and new at once while it is replaced.
    files, states = 2 * (snapshots + 1) * weights, (1 if state else 2) * 3 * sum(4 * one.numel() for one in numbers)
    free = shutil.disk_usage(workspace.scratch).free
    if files + states > free:
        raise JobError(
            f"the disk has {free / 1e9:.1f} GB free, and the training needs about {(files + states) / 1e9:.1f} GB: "
            f"{snapshots} snapshots and the weights of {weights / 1e6:.1f} MB, in the store and in build/, and its state; "
            "recipe.keep says which snapshots stay"
        )


def _data(dataset: Mapping[str, Any], workspace: Workspace, device: str) -> Any:
    from lorabuild.nn.batches import Data
    from lorabuild.nn.latents import open_latents

    return Data(dataset, open_latents(workspace.path("latents"), device))


STAGE = Stage("train", 4, jobs, run, slot="gpu", snapshots=snapshots)
