"""Draw the prompts of a project with the base, what was trained, and each file made of it, side by side."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorabuild.data.prompts import Prompt, parse_prompts
from lorabuild.errors import Interrupted, Problem
from lorabuild.hashing import canonical_json, digest_bytes
from lorabuild.header import read_header
from lorabuild.loaded import device_of, load_base
from lorabuild.lora.chopping import Blocks
from lorabuild.manifest.bases import base_params, clip_skip_of
from lorabuild.manifest.sources import source_path
from lorabuild.manifest.targets import maker, makers
from lorabuild.sampling.differences import differences, pairs
from lorabuild.sampling.held_out import Meter
from lorabuild.sampling.measuring import INPUTS, RECIPE, data_inputs, measuring
from lorabuild.sampling.pictures import COMPONENTS, Painter, settings_of, sheet
from lorabuild.sampling.samples import prompt_file, sampling, too_long
from lorabuild.stage import Artifact, Component, File, Input, Job, Stage
from lorabuild.stages.train import known_steps, steps_by_data

if TYPE_CHECKING:
    from lorabuild.manifest import Project, Repository
    from lorabuild.nn.base import Base
    from lorabuild.workspace import Progress, Workspace

# role -> stage and whose job of it makes the file; whose training it comes from
Made = Mapping[str, tuple[str, str, str]]
WITHOUT, ALONE = "without", "only"  # of a block: the LoRA without it, and nothing but it
SHEET_SIDE, STRIP_SIDE = 512, 256  # pixels of a picture in the sheet, and in the strip, which has many


def jobs(repository: Repository) -> Iterable[Job]:
    """One a project with [samples]: its variants' files stand beside its own."""
    for name, project in repository.projects.items():
        settings = project.settings
        if found := sampling(repository, project):
            base = settings["project"]["base"]
            drawn = {key: value for key, value in settings["recipe"].items() if key in RECIPE}
            made, measures = _made(project), found.get("held_out")
            trainers = {role: trainer for role, (_, _, trainer) in made.items()}
            yield Job(
                name=f"samples:{name}",
                params={
                    "samples": {key: found[key] for key in SHAPING if key in found},
                    "dataset": {"resolution": found["size"]},
                    "recipe": drawn,
                    "base": base_params(repository, base),
                    **({"held_out": measuring(project, trainers)} if measures else {}),
                },
                inputs={
                    "prompts": prompt_file(repository, project),
                    **{component: Component(base, component) for component in COMPONENTS},
                    **_weights(name, project, made),
                    **(data_inputs(name) if measures else {}),
                },
                outputs=["samples.json", "samples/"],
                options={"prompts": found["shown"]},
            )


SHAPING = ("sample_sampler", "parity", "blocks_ablation", "held_out")  # of [samples], for this stage


def _weights(name: str, project: Project, made: Made) -> dict[str, Input]:
    """Role -> LoRA, of all that the project makes: "trained", "step/10", "resized", "mini/chopped", …

    Of a variant's training the last weights alone: its snapshots would be more pictures than one can look at.
    """
    found: dict[str, Input] = {}
    if source := source_path(project):
        found["source"] = File(source, project.settings["project"]["source"])
    else:
        every = project.settings["samples"]["sample_every_n_steps"] or 1
        if steps_by_data(project):
            found["step/"] = Artifact(f"train:{name}", "step/", every)
        else:
            steps = [step for step in known_steps(project) if step % every == 0]
            found |= {f"step/{step}": Artifact(f"train:{name}", f"step/{step}") for step in steps}
    for role, (stage, owner, _) in made.items():
        found[role] = Artifact(f"{stage}:{owner}", "weights")
    return found


def _made(project: Project) -> Made:
    """Of all but snapshots."""
    found = {}
    made = [("resize", "resized"), ("chop", "chopped")]
    for stage, role in made if source_path(project) else [("train", "trained"), *made]:
        for owner, users in makers(project, stage, None if stage == "train" else stage).items():
            variant = owner.partition("@")[2]
            trainer = maker(project, next(iter(users)), "train")
            found[f"{variant}/{role}" if variant else role] = (stage, owner, trainer)
    return found


@dataclass(frozen=True)
class Column:
    """A LoRA that all prompts are drawn with; the base alone has no digest and no path.

    `of`: the column that this one is a part of, `without` some of its blocks.
    """

    role: str
    digest: str | None = None
    path: Path | None = None
    of: str | None = None
    without: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """As files have it: "trained", "step00000010", "mini-chopped", "without-OUT01"."""
        family, _, member = self.role.rpartition("/")
        return f"step{int(member):08}" if family == "step" else self.role.replace("/", "-")


def run(job: Job, workspace: Workspace, progress: Progress) -> None:
    """Write a PNG for each prompt and LoRA, `sheet.png` of all but the steps, `strip.png` of the steps, and samples.json.

    Each picture is a piece: what a training drew, or another job, is found again; so is each held-out loss. Raises JobError, at the prompt's line,
    for a picture that is not finite, and Interrupted between two steps of a picture.
    """
    data = workspace.read(workspace.path("prompts"), workspace.digests["prompts"])
    file = job.options["prompts"]
    found = parse_prompts(data, file)
    for problem in found.warnings:
        workspace.warn(str(problem))
    recipe, prompts, clip_skip = job.params["recipe"], found.prompts, clip_skip_of(job.params["base"])
    samples = {**job.params["samples"], "size": job.params["dataset"]["resolution"]}
    told = job.params["base"]["prediction_type"], clip_skip
    settings = [settings_of(one, index, samples, recipe, *told) for index, one in enumerate(prompts)]
    columns = list(_columns(workspace))
    if job.params["samples"].get("blocks_ablation"):
        columns += list(_ablations(columns))
    total, done = len(columns) * len(prompts), 0

    def stepped(step: int, steps: int) -> None:
        if workspace.stopping():
            raise Interrupted(f"{done} of {total} pictures")

    painter = _painter(workspace, job.options, recipe, clip_skip, stepped)
    tokens = _tokens(workspace, prompts, file)
    pictures: dict[str, list[bytes]] = {}
    for column in columns:
        with painter.on(column.digest, column.path, column.without) as draw:
            for number, (prompt, one) in enumerate(zip(prompts, settings, strict=True)):
                progress(done, total, f"{column.name}, prompt {number + 1} of {len(prompts)}")
                picture = draw(one, str(Problem(file, prompt.line, "the prompt")))
                workspace.output(f"samples/{_file(number, column)}").write_bytes(picture)
                pictures.setdefault(column.role, []).append(picture)
                done += 1
    _write_pages(workspace, columns, pictures)
    compared = _compared(columns, pictures, len(prompts))
    drawn = [
        {"file": f"samples/{_file(number, column)}", "picture": digest_bytes(pictures[column.role][number])}
        | {"weights": column.of or column.role, "digest": column.digest, **_part(column)}
        | {"line": prompts[number].line, "tokens": tokens[number], **one}
        | {"difference": compared[number].get(column.role, {})}
        for column in columns
        for number, one in enumerate(settings)
    ]
    workspace.note(drawn=painter.drawn, reused=total - painter.drawn)
    written: dict[str, Any] = {"pictures": drawn}
    if "held_out" in job.params:
        meter = Meter(workspace, job.params, clip_skip, painter.base, painter.device)
        written["held_out"] = meter.all(_files(columns), progress)
        workspace.note(measured=meter.measured)
    workspace.output("samples.json").write_bytes(canonical_json(written) + b"\n")


def _files(columns: Iterable[Column]) -> dict[str, tuple[str, Path]]:
    """The files that are measured, with their digests: all but snapshots, which the training itself measures."""
    return {
        column.role: (column.digest, column.path)
        for column in columns
        if column.digest and column.path and column.of is None and not column.role.startswith("step/")
    }


def _columns(workspace: Workspace) -> Iterator[Column]:
    """The base, the steps in their order, then what was trained and what was made of it; variants last."""
    roles = [role for role in workspace.digests if role not in (*COMPONENTS, *INPUTS, "prompts")]
    order = ("source", "trained", "resized", "chopped")
    yield Column("base")
    for role in sorted(roles, key=lambda role: _place(role, order)):
        yield Column(role, workspace.digests[role], workspace.path(role))


def _ablations(columns: Sequence[Column]) -> Iterator[Column]:
    """For each block of the resized LoRA, or of the trained one where there is none: without it, and it alone.

    What is in no block stays in all of them, as in a chop.
    """
    known = {column.role: column for column in columns}
    whole = next(known[role] for role in ("resized", "trained", "source") if role in known)
    assert whole.path is not None
    present = Blocks.read(read_header(whole.path).tensors).present
    for block in present:
        yield Column(f"{WITHOUT}/{block}", whole.digest, whole.path, whole.role, (block,))
        others = tuple(other for other in present if other != block)
        yield Column(f"{ALONE}/{block}", whole.digest, whole.path, whole.role, others)


def _part(column: Column) -> dict[str, Any]:
    """What samples.json tells of a picture of a part of a LoRA."""
    if column.of is None:
        return {}
    shown, _, block = column.role.partition("/")
    return {"block": block, "shown": shown, "without": list(column.without)}


def _compared(columns: Sequence[Column], pictures: Mapping[str, list[bytes]], prompts: int) -> list[dict[str, Any]]:
    """For each prompt: role -> other role -> mean absolute difference of 255."""
    steps = [column.role for column in columns if column.role.startswith("step/")]
    others = {column.role: column.of for column in columns if column.of}
    sides = [column.role for column in columns if column.role not in {*steps, *others}]
    wanted = pairs(sides, steps, others)
    return [differences({role: own[number] for role, own in pictures.items()}, wanted) for number in range(prompts)]


def _place(role: str, order: tuple[str, ...]) -> tuple[Any, ...]:
    family, _, member = role.rpartition("/")
    return (0, int(member)) if family == "step" else (1, family, order.index(member))


def _file(number: int, column: Column) -> str:
    return f"{number:02}-{column.name}.png"


def _painter(
    workspace: Workspace, options: Mapping[str, Any], recipe: Mapping[str, Any], clip_skip: int, stepped: Any
) -> Painter:
    """Loads nothing before the first picture has to be drawn. `options` tell the device, as those of a training do."""
    loaded: list[Base] = []

    @cache
    def device() -> str:
        return device_of(options, recipe, workspace)

    def base() -> Base:
        if not loaded:
            loaded.append(load_base(workspace, recipe["mixed_precision"], device(), clip_skip))
        return loaded[0]

    def vae() -> Any:
        from lorabuild.nn.vae import load_vae

        return load_vae(workspace.path("vae"), workspace.digests["vae"])

    return Painter(workspace, workspace.digests, base, vae, device, stepped)


def _tokens(workspace: Workspace, prompts: Iterable[Prompt], file: str) -> list[list[int]]:
    """Tokens of each prompt by both tokenizers, with a warning for those that take more than one chunk."""
    from lorabuild.nn.base import load_tokenizers
    from lorabuild.nn.conditions import count_tokens

    tokenizers = load_tokenizers(workspace.path("tokenizer1"))
    found = []
    for prompt in prompts:
        counts = [count_tokens(tokenizer, prompt.prompt) for tokenizer in tokenizers]
        if said := too_long(counts):
            workspace.warn(str(Problem(file, prompt.line, said)))
        found.append(counts)
    return found


def _write_pages(workspace: Workspace, columns: Iterable[Column], pictures: Mapping[str, list[bytes]]) -> None:
    """The sheet, and the strip if there are steps to be seen."""
    steps = [column for column in columns if column.role.startswith("step/")]
    sides = [column for column in columns if column not in steps and column.of is None]
    ways = [column for column in columns if column in steps or column.role in ("base", "trained")] if steps else []
    for name, shown, side in (("sheet", sides, SHEET_SIDE), ("strip", ways, STRIP_SIDE)):
        if shown:
            rows = list(zip(*(pictures[column.role] for column in shown), strict=True))
            page = sheet(rows, [column.name for column in shown], side)
            workspace.output(f"samples/{name}.png").write_bytes(page)


STAGE = Stage("samples", 2, jobs, run, slot="gpu")
