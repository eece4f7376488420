"""[dataset] and [[dataset.subset]]: images and captions."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, PlainValidator, model_validator

from lorabuild.data.buckets import settings_problem
from lorabuild.manifest import values
from lorabuild.manifest.tables.table import Count, Extension, Side, Table, Text, Whole, off
from lorabuild.manifest.values import Misfit

Folder = Annotated[Text, AfterValidator(values.folder)]
Share = Annotated[float, Field(ge=0, le=1)]
Interpolation = Annotated[
    Literal["lanczos", "box", "area", "nearest", "bilinear", "bicubic"], BeforeValidator(values.interpolation)
]
Warmup = Annotated[int | float, PlainValidator(values.warmup)]
Never = Annotated[bool, AfterValidator(values.never)]


class SubsetTable(Table):
    image_dir: Folder = Field(description="The folder of images and captions, seen from the manifest's folder.")
    num_repeats: Annotated[Count, Field(le=10_000)] = Field(
        1, description="How often an epoch shows each of its images: at most 10,000 times."
    )
    caption_extension: Extension | None = Field(None, description="As in [dataset], for this folder alone.")
    is_reg: bool = off(
        False, "Regularisation: repeated to be as many as the others, their loss weighs prior_loss_weight."
    )
    class_tokens: str = off("", "The caption of an image that has no caption file.")
    flip_aug: bool | None = off(None, "As in [dataset], for this folder alone.")
    shuffle_caption: bool | None = off(None, "As in [dataset], for this folder alone.")
    keep_tokens: Whole | None = off(None, "As in [dataset], for this folder alone.")
    caption_separator: Text | None = off(None, "As in [dataset], for this folder alone.")
    caption_prefix: str | None = off(None, "As in [dataset], for this folder alone.")
    caption_suffix: str | None = off(None, "As in [dataset], for this folder alone.")
    keep_tokens_separator: str | None = off(None, "As in [dataset], for this folder alone.")
    secondary_separator: str | None = off(None, "As in [dataset], for this folder alone.")
    caption_dropout_rate: Share | None = off(None, "As in [dataset], for this folder alone.")
    caption_dropout_every_n_epochs: Whole | None = off(None, "As in [dataset], for this folder alone.")
    caption_tag_dropout_rate: Share | None = off(None, "As in [dataset], for this folder alone.")
    enable_wildcard: bool | None = off(None, "As in [dataset], for this folder alone.")
    token_warmup_min: Whole | None = off(None, "As in [dataset], for this folder alone.")
    token_warmup_step: Warmup | None = off(None, "As in [dataset], for this folder alone.")
    alpha_mask: bool | None = off(None, "As in [dataset], for this folder alone.")
    resize_interpolation: Interpolation | None = off(None, "As in [dataset], for this folder alone.")
    random_crop: Never | None = off(None, "As in [dataset], for this folder alone.")
    color_aug: Never | None = off(None, "As in [dataset], for this folder alone.")


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
    max_token_length: Literal[75, 150, 225] = Field(75, description="Tokens of a caption that count.")
    caption_prefix: str = off("", "Put before each caption, with a space; it is part of the first tag.")
    caption_suffix: str = off("", "Put after each caption, with a space; it is part of the last tag.")
    keep_tokens_separator: str = off(
        "", "Where a caption has it, the tags before it and after a second one stay in place, whatever keep_tokens is."
    )
    secondary_separator: str = off(
        "", "Becomes caption_separator after shuffling, so that the tags that it joins move as one."
    )
    caption_dropout_rate: Share = off(0.0, "Share of samples that are trained without their caption.")
    caption_dropout_every_n_epochs: Whole = off(0, "Every so many epochs are trained without captions; 0 is never.")
    caption_tag_dropout_rate: Share = off(0.0, "Share of tags that are left out, of those that may be shuffled.")
    enable_wildcard: bool = off(False, "Draw one of a caption's lines each time, and one part of each {…} in it.")
    token_warmup_min: Whole = off(1, "How many of the tags that may be shuffled token_warmup_step begins with.")
    token_warmup_step: Warmup = off(
        0, "Updates in which captions grow to all their tags; below 1 a part of max_train_steps, 0 is at once."
    )
    alpha_mask: bool = off(False, "Weigh the loss at each place by how opaque the image is there.")
    alpha_policy: Literal["white", "drop"] = off(
        "white", 'What transparent pixels show: "white", or as in sd-scripts ("drop") the colour stored under them.'
    )
    resize_interpolation: Interpolation | None = off(
        None, 'How images are resized; by default by "area", and by "lanczos" where a side grows.'
    )
    crop_conditioning: Literal["true", "peer"] = off(
        "true", 'The crop that SDXL is told: the "true" one, or sd-scripts\' ("peer"), on the axis that is not cut.'
    )
    latents: Literal["mean", "sample"] = off(
        "mean", 'Of what the VAE makes of an image: its "mean", or as in sd-scripts a "sample", drawn once an image.'
    )
    random_crop: Never = off(False, "Only false: latents are made once an image.")
    color_aug: Never = off(False, "Only false: latents are made once an image.")
    train_data_dir: Folder | None = off(
        None, "A folder of folders 10_ember as sd-scripts has them: repeats, and the caption of images without one."
    )
    reg_data_dir: Folder | None = off(None, "Such a folder of regularisation images, as subsets with is_reg.")
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
        if not any(subset.token_warmup_step for subset in (self, *self.subset)):
            self.token_warmup_min = 1  # it weighs nothing: another value is no other training
        if not self.train_data_dir and (self.reg_data_dir or self.subset) and all(one.is_reg for one in self.subset):
            key = "reg_data_dir" if self.reg_data_dir else "subset"
            raise Misfit(key, "regularisation images alone (is_reg): there is nothing to learn from")
        return self


class TrainedDatasetTable(DatasetTable):
    """The data set of a LoRA that does not start from a file."""

    @model_validator(mode="after")
    def _has_images(self) -> TrainedDatasetTable:
        if not self.subset and not self.train_data_dir:
            raise Misfit("subset", f"required, but missing: {DatasetTable.model_fields['subset'].description}")
        return self
