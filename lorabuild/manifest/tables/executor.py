"""[executor]: where jobs run, if not on this machine alone."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from lorabuild.manifest.tables.table import Count, Table, Text, Whole, off
from lorabuild.names import STAGES

Gigabytes = Annotated[float, Field(gt=0)]
Minutes = Annotated[float, Field(gt=0)]


class StageNeedsTable(Table):
    gpus: Whole | None = off(None, "GPUs of a job of this stage.")
    cpus: Count | None = off(None, "Processors of a job of this stage.")
    memory_gb: Gigabytes | None = off(None, "Memory of a job of this stage, in GB.")
    minutes: Minutes | None = off(None, "Time of a job of this stage.")


class SlurmTable(Table):
    cluster: Literal["slurm", "local", "debug"] = off(
        "slurm",
        "Where submitit runs jobs: by Slurm; as processes of this machine (local), or within `doit` (debug), to try it out.",
    )
    partition: Text | None = off(None, "Slurm's partition.")
    account: Text | None = off(None, "The account that pays.")
    qos: Text | None = off(None, "The quality of service.")
    constraint: Text | None = off(None, "What nodes must have, as Slurm writes it.")
    gres: Text | None = off(None, 'How GPUs are asked for, where it is not --gpus-per-node: "gpu:a100:{gpus}".')
    folder: Text = off(".lorabuild/slurm", "Where jobs are written; the nodes must see it under the same path.")
    setup: list[Text] = off([], "Lines of the shell before each job: module load, source venv/bin/activate.")
    python: Text | None = off(None, "The Python on the nodes that has lorabuild; without it, the one that runs `doit`.")
    signal_delay_s: Count = off(120, "How many seconds before its time is over a job is told to keep its state.")
    timeouts: Whole = off(10, "How often a job whose time is over is queued again, to go on from its state.")
    sbatch: dict[str, str | int | float | bool] = off({}, "Further parameters of sbatch, by name.")


class RayTable(Table):
    address: Text = off("auto", 'Where the head of the cluster listens: "auto" (this machine is a node), "HOST:PORT".')


class ExecutorTable(Table):
    kind: Literal["local", "slurm", "ray"] = Field(
        "local", description="What runs jobs: this machine, a Slurm cluster, or a Ray cluster (docs/executors.md)."
    )
    stages: list[Literal[STAGES]] | None = off(
        None, "The stages whose jobs leave this machine; without it, those that need a GPU: latents, train, samples."
    )
    jobs: Count = Field(16, description="How many of them are under way at once.")
    tries: Count = Field(3, description="How often a job that is lost is begun, in all.")
    gpus: Whole = Field(1, description="GPUs of a job of a stage that needs one; 0: processors alone.")
    cpus: Count = Field(4, description="Processors of a job, and threads of its libraries.")
    memory_gb: Gigabytes | None = off(None, "Memory of a job, in GB; without it, what the cluster gives.")
    minutes: Minutes | None = off(None, "Time of a job; without it, what the executor takes.")
    cache: Text | None = off(
        None, "A folder on the nodes for what jobs read and make; without it, ~/.cache/lorabuild/node there."
    )
    models: list[Text] = off(
        [],
        "Folders of checkpoints, as the nodes see them: then none is uploaded. A base is looked for there by its name.",
    )
    base: StageNeedsTable | None = off(None, "[executor.base]: what a job of this stage needs, instead.")
    norms: StageNeedsTable | None = off(None, "[executor.norms]: what a job of this stage needs, instead.")
    dataset: StageNeedsTable | None = off(None, "[executor.dataset]: what a job of this stage needs, instead.")
    latents: StageNeedsTable | None = off(None, "[executor.latents]: what a job of this stage needs, instead.")
    train: StageNeedsTable | None = off(None, "[executor.train]: what a job of this stage needs, instead.")
    spectrum: StageNeedsTable | None = off(None, "[executor.spectrum]: what a job of this stage needs, instead.")
    resize: StageNeedsTable | None = off(None, "[executor.resize]: what a job of this stage needs, instead.")
    chop: StageNeedsTable | None = off(None, "[executor.chop]: what a job of this stage needs, instead.")
    samples: StageNeedsTable | None = off(None, "[executor.samples]: what a job of this stage needs, instead.")
    slurm: SlurmTable | None = off(None, '[executor.slurm]: for kind = "slurm" (docs/slurm.md).')
    ray: RayTable | None = off(None, '[executor.ray]: for kind = "ray" (docs/ray.md).')
