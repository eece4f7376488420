"""The keys of lora.toml and lorabuild.toml: types, ranges, defaults, and one line on each for the reference."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo

from lorabuild.buckets import settings_problem
from lorabuild.errors import near_miss
from lorabuild.lora.ranks import KEYS as RECIPE_KEYS
from lorabuild.lora.ranks import recipe_faults, resolve_recipe
from lorabuild.manifest import values
from lorabuild.manifest.values import Misfit, Misfits
from lorabuild.names import STAGES, block_name, matching_blocks, name_problem, quoted, resolve_chop

MOST = 2**31 - 1
Whole = Annotated[int, Field(ge=0, le=MOST)]
Count = Annotated[int, Field(ge=1, le=MOST)]
Side = Annotated[int, Field(ge=8, le=16384)]  # pixels
Rate = Annotated[float, Field(ge=0)]
Part = Annotated[float, Field(ge=0, lt=1)]
Text = Annotated[str, Field(min_length=1)]
Extension = Annotated[str, AfterValidator(values.dotted)]


def _checked_name(name: str) -> str:
    if problem := name_problem(name):
        raise ValueError(problem)
    return name


def _checked_entry(entry: str) -> str:
    matching_blocks(entry.removeprefix("!"))
    return entry


Name = Annotated[str, AfterValidator(_checked_name)]


class Table(BaseModel):
    """Strict: a number is not text, `true` is not 1, unknown keys are errors. Whole numbers do for others."""

    # Deferred: only whole files are validated, so that the tables in them need no validator of their own.
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, defer_build=True)


class ProjectTable(Table):
    base: str = Field(description="The model to train on: the name of a base in lorabuild.toml, or tiny.")
    source: Annotated[Text, AfterValidator(values.file)] | None = Field(
        None,
        description="A LoRA file to start from, seen from the manifest's folder: it is resized and chopped, not trained. "
        "~ is the home folder.",
    )
    kind: Literal["character", "style", "concept"] | None = Field(None, description="What the LoRA teaches.")
    trigger: str | None = Field(None, description="The word in a prompt that calls it.")
    title: str | None = Field(None, description="Its name for people, in the file's metadata.")
    author: str | None = Field(None, description="Who made it, in the file's metadata.")
    description: str | None = Field(None, description="A few words on it, in the file's metadata.")
    license: str | None = Field(None, description="The licence, in the file's metadata.")
    tags: Annotated[list[str] | None, BeforeValidator(values.tag_list)] = Field(
        None, description="Tags for the file's metadata: a list, or text with commas."
    )

    @field_validator("base")
    @classmethod
    def _known_base(cls, base: str, info: ValidationInfo) -> str:
        bases = info.context
        if bases is not None and base not in bases:
            raise ValueError(f"{quoted(base)} is not a base of lorabuild.toml{near_miss(base, bases)}")
        return base


class SubsetTable(Table):
    image_dir: Annotated[Text, AfterValidator(values.folder)] = Field(
        description="The folder of images and captions, seen from the manifest's folder."
    )
    num_repeats: Annotated[Count, Field(le=10_000)] = Field(
        1, description="How often an epoch shows each of its images: at most 10,000 times."
    )
    caption_extension: Extension | None = Field(None, description="As in [dataset], for this folder alone.")


class DatasetTable(Table):
    resolution: Annotated[list[Side], Field(min_length=2, max_length=2), BeforeValidator(values.both_sides)] = Field(
        [1024, 1024], description="Area to train at, in pixels: one side of a square, or [width, height]."
    )
    enable_bucket: bool = Field(
        True, description="Let each image keep about its aspect ratio, at the area of resolution."
    )
    min_bucket_reso: Side = Field(256, description="Shortest side of a bucket, in pixels.")
    max_bucket_reso: Side = Field(2048, description="Longest side of a bucket, in pixels.")
    bucket_reso_steps: Annotated[Side, Field(multiple_of=8)] = Field(
        32, description="Sides of buckets are multiples of this, in pixels; itself a multiple of 8."
    )
    bucket_no_upscale: bool = Field(False, description="Never enlarge an image; buckets then follow the images.")
    flip_aug: bool = Field(False, description="Show each image mirrored half of the time.")
    caption_extension: Extension = Field(".txt", description="A caption has its image's name with this extension.")
    caption_separator: Text = Field(",", description="What stands between the tags of a caption.")
    shuffle_caption: bool = Field(False, description="Shuffle the tags anew each time.")
    keep_tokens: Whole = Field(0, description="How many tags stay in front when shuffled.")
    max_token_length: Literal[75] = Field(75, description="Tokens of a caption that count.")
    subset: Annotated[list[SubsetTable], Field(min_length=1)] = Field(
        [], description="[[dataset.subset]]: one or more folders of images."
    )

    @model_validator(mode="after")
    def _complete(self) -> DatasetTable:
        if problem := settings_problem(self.model_dump(exclude={"subset"})):
            key, _, said = problem.partition(" ")
            raise Misfit(key, said)
        for subset in self.subset:
            subset.caption_extension = subset.caption_extension or self.caption_extension
        return self


class TrainedDatasetTable(DatasetTable):
    """The data set of a LoRA that does not start from a file."""

    subset: Annotated[list[SubsetTable], Field(min_length=1)] = Field(
        description=DatasetTable.model_fields["subset"].description
    )


class NetworkArgs(Table):
    algo: Annotated[Literal["locon"], BeforeValidator(values.algo)] = Field("locon", description="LyCORIS's algorithm.")
    preset: Literal["full"] = Field("full", description="LyCORIS's preset: which layers get an adapter.")
    conv_dim: Count | None = Field(None, description="Rank of 3x3 convolutions; default network_dim.")
    conv_alpha: Rate | None = Field(None, description="Alpha of 3x3 convolutions; default network_alpha.")


class OptimizerArgs(Table):
    betas: Annotated[list[Part], Field(min_length=2, max_length=2)] = Field(
        [0.9, 0.999], description="How slowly the running means of gradient and squared gradient forget."
    )
    eps: Annotated[float, Field(gt=0)] = Field(1e-8, description="Keeps the division by the root mean square finite.")
    weight_decay: Rate = Field(0.01, description="Part of a weight, times the learning rate, that each update removes.")


class SchedulerArgs(Table):
    num_cycles: Annotated[float, Field(gt=0)] = Field(
        0.5, description="Cosine: waves in the whole training; 0.5 falls to zero, 0.375 to 0.146."
    )


class RecipeTable(Table):
    network_module: Literal["lycoris.kohya"] = Field("lycoris.kohya", description="What makes the adapter.")
    network_dim: Count = Field(8, description="Rank of the adapter.")
    network_alpha: Rate = Field(
        1.0, description="The adapter's effect is scaled by alpha / rank; 0 stands for the rank."
    )
    network_args: NetworkArgs = Field(default_factory=NetworkArgs, description="LyCORIS's arguments.")
    optimizer_type: Annotated[Literal["AdamW"], BeforeValidator(values.optimizer)] = Field(
        "AdamW", description="The optimizer; upper and lower case do not count."
    )
    optimizer_args: OptimizerArgs = Field(default_factory=OptimizerArgs, description="The optimizer's arguments.")
    learning_rate: Rate = Field(1e-4, description="What unet_lr and text_encoder_lr are if they are not set.")
    unet_lr: Rate | None = Field(None, description="Learning rate of the U-Net; default learning_rate, 0 freezes it.")
    text_encoder_lr: Rate | None = Field(
        None, description="Learning rate of both text encoders; default learning_rate, 0 freezes them."
    )
    lr_scheduler: Literal["constant", "cosine"] = Field("constant", description="How the learning rate goes on.")
    lr_scheduler_args: SchedulerArgs = Field(default_factory=SchedulerArgs, description="The scheduler's arguments.")
    lr_warmup_steps: Annotated[int | float, PlainValidator(values.warmup)] = Field(
        0, description="Steps in which the rate rises from 0; below 1 a part of max_train_steps."
    )
    max_train_steps: Count = Field(1600, description="Updates of the weights.")
    train_batch_size: Count = Field(1, description="Images a forward pass.")
    gradient_accumulation_steps: Count = Field(1, description="Forward passes an update.")
    multires_noise_iterations: Whole = Field(0, description="Levels of pyramid noise; 0 is plain noise.")
    multires_noise_discount: Annotated[float, Field(ge=0, le=1)] = Field(
        0.3, description="How much each level of pyramid noise weighs of the one before."
    )
    mixed_precision: Literal["no", "fp16", "bf16"] = Field("no", description="Precision of the forward pass.")
    save_precision: Annotated[Literal["fp32", "fp16", "bf16"], BeforeValidator(values.save_precision)] = Field(
        "fp16", description='Precision of the LoRA files; "float" is fp32.'
    )
    save_every_n_steps: Count | None = Field(None, description="Save a snapshot every so many steps.")
    seed: Annotated[int, Field(ge=0, lt=2**32)] = Field(
        42, description="All that is random follows from it. sd-scripts draws one where none is set; here it is 42."
    )
    max_grad_norm: Rate = Field(1.0, description="Longer gradients are scaled down to this norm; 0 leaves them.")
    gradient_checkpointing: bool = Field(False, description="Saves memory for time; the result is the same.")

    @model_validator(mode="after")
    def _complete(self) -> RecipeTable:
        if self.lr_scheduler == "constant" and self.lr_scheduler_args.model_fields_set:
            raise Misfit("lr_scheduler_args", 'lr_scheduler "constant" takes no arguments')
        if self.lr_scheduler == "constant" and self.lr_warmup_steps:
            raise Misfit("lr_warmup_steps", 'lr_scheduler "constant" has no warm-up: set 0')
        if self.lr_warmup_steps < 1:
            self.lr_warmup_steps = int(self.lr_warmup_steps * self.max_train_steps)
        if self.multires_noise_iterations == 0:
            self.multires_noise_discount = 0.3  # it weighs nothing: another value is no other training
        self.unet_lr = self.learning_rate if self.unet_lr is None else self.unet_lr
        self.text_encoder_lr = self.learning_rate if self.text_encoder_lr is None else self.text_encoder_lr
        if self.unet_lr == self.text_encoder_lr == 0:
            raise Misfit("learning_rate", "unet_lr and text_encoder_lr are both 0: nothing would be trained")
        convolutions = self.network_args
        convolutions.conv_dim = convolutions.conv_dim or self.network_dim
        if convolutions.conv_alpha is None:
            convolutions.conv_alpha = self.network_alpha
        convolutions.conv_alpha = convolutions.conv_alpha or float(convolutions.conv_dim)
        self.network_alpha = self.network_alpha or float(self.network_dim)
        return self


class ResizeTable(Table):
    thr: float | None = Field(None, description="Ranks that score below it are dropped; log10 units.")
    size: float | None = Field(
        None, description="In place of thr: the size of the file in MiB, header and all, at most."
    )
    sv_ratio: float | None = Field(
        None, description="In place of thr: singular values down to the layer's largest divided by this stay."
    )
    sv_fro: float | None = Field(
        None, description="In place of thr: so much of each layer's Frobenius norm stays, 0 to 1."
    )
    sv_cumulative: float | None = Field(
        None, description="In place of thr: so much of the sum of each layer's singular values stays, 0 to 1."
    )
    max_rank: float | None = Field(None, description="No layer keeps more ranks; of convolutions, see max_conv_rank.")
    max_conv_rank: float | None = Field(
        None, description="No convolution keeps more ranks, be it more or less than max_rank, which is the default."
    )
    fro_ckpt: float | None = Field(
        None,
        description="Weight of this score: σ as a part of the base layer's Frobenius norm. Default: 1, if no other.",
    )
    spn_ckpt: float | None = Field(None, description="Weight: σ as a part of the base layer's largest singular value.")
    fro_lora: float | None = Field(None, description="Weight: σ as a part of the LoRA layer's Frobenius norm.")
    spn_lora: float | None = Field(None, description="Weight: σ as a part of the LoRA layer's largest singular value.")
    subspace: float | None = Field(
        None, description="Weight: σ as a part of what the base does in the rank's own direction."
    )
    params: float | None = Field(None, description="Weight: σ for each number that the rank takes in the file.")
    rescale: float | None = Field(None, description="Multiplies the effect of the LoRA. Default: 1.")
    step: Annotated[int | str, PlainValidator(values.step)] = Field(
        "last", description='Which saved step is resized, or "last".'
    )
    allow_empty: bool = Field(False, description="A file without any tensor is not an error.")

    @model_validator(mode="after")
    def _together(self) -> ResizeTable:
        if found := recipe_faults(self.model_dump()):
            raise Misfits(*(Misfit(key, said.removeprefix(f"{key}: ")) for key, said in found))
        recipe = resolve_recipe(self.model_dump())
        for key in RECIPE_KEYS:  # one spelling: weights that add up to 1, nothing that has no effect
            setattr(self, key, recipe.get(key))
        return self


class ChopTable(Table):
    keep: list[Annotated[str, AfterValidator(_checked_entry)]] | None = Field(
        None, description="Blocks that stay: names, globs, negations, in order. Default: all."
    )
    weights: dict[Annotated[str, AfterValidator(block_name)], float] | None = Field(
        None, description="Blocks that are scaled: 0.5 is half the effect, unlisted ones are 1."
    )
    vector: str | None = Field(
        None,
        description="In place of keep: 12, 20, 21 or 22 numbers, a preset of Inspire-Pack, or its notation with %.",
    )
    vector_style: Literal["resize_lora", "inspire"] | None = Field(
        None,
        description="What a first number of vector other than 1 is: the U-Net's factor, or the text encoders' weight.",
    )
    allow_empty: bool = Field(False, description="A file without any tensor is not an error.")

    @model_validator(mode="after")
    def _together(self) -> ChopTable:
        try:
            resolve_chop(self.model_dump())
        except ValueError as error:
            raise Misfit("weights" if self.vector is None else "vector", str(error)) from None
        return self


class VariantTable(Table):
    resize: dict[str, Any] | None = Field(None, description="What differs from [resize].")
    chop: dict[str, Any] | None = Field(None, description="What differs from [chop].")


class Manifest(Table):
    """projects/<name>/lora.toml, with the recipes that it extends."""

    extends: str | list[str] | None = Field(
        None, exclude=True, description="Recipes to start from: recipes/<name>.toml."
    )
    project: ProjectTable = Field(description="[project]: what the LoRA is, and the base that it is for.")
    dataset: DatasetTable | None = Field(
        None,
        description="[dataset]: images and captions. Required, with one [[dataset.subset]] or more, without a source.",
    )
    recipe: RecipeTable = Field(default_factory=RecipeTable, description="[recipe]: how it is trained.")
    resize: ResizeTable | None = Field(None, description="[resize]: which ranks stay. Without it nothing is resized.")
    chop: ChopTable | None = Field(None, description="[chop]: which blocks stay. Without it nothing is chopped.")
    variants: dict[Name, VariantTable] = Field(
        default_factory=dict,
        exclude=True,
        description="[variants.<name>.resize|chop]: more files of the same training.",
    )

    @model_validator(mode="after")
    def _together(self) -> Manifest:
        if self.resize and self.project.source and self.resize.step != "last":
            raise Misfit("resize.step", "a LoRA that is not trained here (project.source) has no steps")
        if self.resize and self.resize.step != "last":
            last = self.recipe.max_train_steps
            if self.resize.step > last:
                raise Misfit("resize.step", f"the training ends at step {last} (recipe.max_train_steps)")
            if self.resize.step == last:
                self.resize.step = "last"
        return self

    @model_validator(mode="after")
    def _trained_on_a_folder(self, info: ValidationInfo) -> Manifest:
        base = (info.context or {}).get(self.project.base, {})
        trains = self.project.source is None
        if trains and values.is_single_file(base.get("file", "")):
            raise Misfit("project.base", "training on a single-file base is not supported yet; use a diffusers folder")
        return self


class TrainedManifest(Manifest):
    """The manifest of a LoRA that does not start from a file."""

    dataset: TrainedDatasetTable = Field(description=Manifest.model_fields["dataset"].description)


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
    prediction_type: Literal["epsilon"] = Field(
        "epsilon", exclude=True, description="What the base predicts. With one answer only, no setting depends on it."
    )

    @model_validator(mode="after")
    def _one_source(self) -> BaseTable:
        if (self.builtin is None) == (self.file is None):
            raise ValueError('a base has either builtin or file: builtin = "tiny-sdxl", file = "pony.safetensors"')
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
    default: list[Literal[STAGES]] = Field(list(STAGES), description="The stages that plain `doit` builds.")


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


class SharedFile(Table):
    """lorabuild.toml, and over it lorabuild.local.toml."""

    bases: dict[Name, BaseTable] = Field(
        default_factory=dict, description="[bases.<name>]: models to train on; each has either builtin or file."
    )
    models: ModelsTable = Field(default_factory=ModelsTable, description="[models]: where bases lie on a machine.")
    slots: SlotsTable = Field(default_factory=SlotsTable, description="[slots]: how many jobs run at once.")
    build: BuildTable = Field(default_factory=BuildTable, description="[build]: what plain `doit` builds.")
    store: StoreTable = Field(default_factory=StoreTable, description="[store]: what is kept of what was built.")


def table_at(model: type[Table], path: tuple[str | int, ...]) -> type[Table] | None:
    """The table that stands at `path` of a file, None if the schema has none there."""
    parts = iter(path)
    table: type[Table] | None = model
    for part in parts:
        field = table.model_fields.get(str(part)) if table else None
        if field is None:
            return None
        table = inner_table(field)
        if _holds_many(field):
            next(parts, None)  # the name or the number of the one that is meant
    return table


def walk(model: type[Table], above: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every key with its dotted path, tables before what they hold. `*` is a name that the user chooses."""
    for key, field in model.model_fields.items():
        path = f"{above}{key}"
        yield path, field
        if table := inner_table(field):
            yield from walk(table, f"{path}.*." if get_origin(field.annotation) is dict else f"{path}.")


def inner_table(field: FieldInfo) -> type[Table] | None:
    """The table that a key holds, or those in its list or its table are; None for a plain value."""
    return next((one for one in _parts(field.annotation) if isinstance(one, type) and issubclass(one, Table)), None)


def _holds_many(field: FieldInfo) -> bool:
    return get_origin(field.annotation) in (dict, list)


def _parts(annotation: Any) -> Iterator[Any]:
    """An annotation and all within it: `list[Table] | None` has a Table."""
    yield annotation
    for part in get_args(annotation):
        yield from _parts(part)
