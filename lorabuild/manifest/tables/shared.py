"""lorabuild.toml and lorabuild.local.toml: what all projects share, and what a machine has."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from lorabuild.bases.layout import CLIP_SKIP
from lorabuild.manifest import values
from lorabuild.manifest.tables.executor import ExecutorTable
from lorabuild.manifest.tables.table import Count, Name, Table, Text, off
from lorabuild.names import BY_DEFAULT, REPORT, STAGES


class BaseTable(Table):
    builtin: Literal["tiny-sdxl"] | None = Field(
        None, exclude_if=values.unset, description="A base that lorabuild makes itself."
    )
    file: Annotated[Text, AfterValidator(values.file)] | None = Field(
        None,
        exclude_if=values.unset,
        description="A .safetensors file in SGM's layout (what UIs load), or a diffusers folder: a path seen from the "
        "repository, or else from a folder of [models] dirs.",
    )
    prediction_type: Literal["epsilon", "v_prediction"] = off("epsilon", "What the base predicts.")
    clip_skip: Annotated[int, Field(ge=1, le=12)] = off(
        CLIP_SKIP,
        "Which hidden states of both text encoders count, from the last layer: 2, SDXL's, are those before the last one. "
        "sd-scripts has no other for SDXL.",
    )
    vae: Annotated[Text, AfterValidator(values.file)] | None = off(
        None,
        "A VAE that takes the place of the base's own: a .safetensors file or a diffusers folder, looked for as file is.",
    )
    digest: Annotated[Text, AfterValidator(values.sha256)] | None = off(
        None,
        "A pin: the sha256 of the file, or its first ten digits or more, as Civitai and Hugging Face show it; of a folder that "
        "of its U-Net's weights. Another file is an error.",
    )
    default: bool = off(False, "The base that `lorabuild new` takes where none is named.")

    @model_validator(mode="after")
    def _one_source(self) -> BaseTable:
        if (self.builtin is None) == (self.file is None):
            raise ValueError('a base has either builtin or file: builtin = "tiny-sdxl", file = "pony.safetensors"')
        if self.digest and self.builtin:
            raise values.Misfit("digest", "pins a file; what lorabuild makes itself needs none")
        return self


class ModelsTable(Table):
    dirs: list[Annotated[Text, AfterValidator(values.folder)]] = Field(
        [], description="Folders, seen from the repository, where bases are looked for; ~ is the home folder."
    )


class SlotsTable(Table):
    gpu: Count = Field(
        1, description="Heavy jobs at once (train, latents), a GPU each; without a GPU each takes a cpu slot, too."
    )
    cpu: Count = Field(2, description="Other jobs at once; each gets an equal share of the cores.")


class BuildTable(Table):
    default: list[Literal[(*STAGES, REPORT)]] = Field(
        list(BY_DEFAULT), description='The stages that plain `doit` builds; with "report" it also writes the pages.'
    )


class StoreTable(Table):
    max_gb: Annotated[float, Field(gt=0)] | None = Field(
        None,
        description="How much `lorabuild gc` keeps of what resize and chop made and nothing names any more, however young, in GB; "
        "without it, only age counts.",
    )
    remote: Annotated[str, AfterValidator(values.remote)] | None = Field(
        None,
        description="Where builds are shared: s3://bucket/prefix, file:///folder, gs://, ssh://. What is there under a key is "
        'fetched, not built; what is built is uploaded (docs/remote.md). "" in lorabuild.local.toml: none on this machine.',
    )
    read_only: bool = Field(False, description="Fetch from the remote, upload nothing.")


Folder = Annotated[Text, AfterValidator(values.folder)]


class ExportTable(Table):
    a1111: Folder | None = off(None, "A1111's or Forge's folder of LoRAs, or the program's own, which has models/Lora.")
    comfy: Folder | None = off(None, "ComfyUI's folder of LoRAs, or the program's own, which has models/loras.")
    diffusers: Folder | None = off(None, "A folder that gets a folder for each LoRA.")
    folder: Folder | None = off(None, "A folder that gets a folder for each LoRA, with a model card.")


class SharedFile(Table):
    """lorabuild.toml, and over it lorabuild.local.toml."""

    bases: dict[Name, BaseTable] = Field(
        default_factory=dict, description="[bases.<name>]: models to train on; each has either builtin or file."
    )
    models: ModelsTable = Field(default_factory=ModelsTable, description="[models]: where bases lie on a machine.")
    slots: SlotsTable = Field(default_factory=SlotsTable, description="[slots]: how many jobs run at once.")
    build: BuildTable = Field(default_factory=BuildTable, description="[build]: what plain `doit` builds.")
    store: StoreTable = Field(default_factory=StoreTable, description="[store]: what is kept of what was built.")
    executor: ExecutorTable = Field(
        default_factory=ExecutorTable, description="[executor]: other machines that build (docs/executors.md)."
    )
    export: ExportTable = Field(
        default_factory=ExportTable,
        description="[export]: where `lorabuild export` puts its copies without -o, seen from the repository; ~ is the home "
        "folder.",
    )

    @model_validator(mode="after")
    def _executor_has_a_store(self) -> SharedFile:
        if (kind := self.executor.kind) == "local":
            return self
        if not self.store.remote:
            said = f'"{kind}" needs [store] remote: all files travel through it (file:///shared/folder, s3://bucket/prefix)'
            raise values.Misfit("executor.kind", said)
        if self.store.read_only:
            said = f'executor.kind = "{kind}" sends what jobs read through the store: it must be written to'
            raise values.Misfit("store.read_only", said)
        return self
