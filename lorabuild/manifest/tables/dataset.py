"""[dataset] and [[dataset.subset]]: images and captions."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from lorabuild.buckets import settings_problem
from lorabuild.manifest import values
from lorabuild.manifest.tables.table import Count, Extension, Side, Table, Text, Whole
from lorabuild.manifest.values import Misfit


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
