"""The keys of lora.toml and lorabuild.toml as one tree: types, ranges, defaults, and one line on each for the reference."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args, get_origin

from pydantic import Field, ValidationInfo, model_validator
from pydantic.fields import FieldInfo

from lorabuild.manifest.tables.check import CheckTable
from lorabuild.manifest.tables.chop import ChopTable
from lorabuild.manifest.tables.dataset import DatasetTable, TrainedDatasetTable
from lorabuild.manifest.tables.objective import base_misfits, mask_misfits
from lorabuild.manifest.tables.project import ProjectTable
from lorabuild.manifest.tables.recipe import RecipeTable
from lorabuild.manifest.tables.resize import ResizeTable
from lorabuild.manifest.tables.samples import SamplesTable
from lorabuild.manifest.tables.shared import SharedFile
from lorabuild.manifest.tables.table import Name, Table, off
from lorabuild.manifest.values import Misfit, Misfits

__all__ = ["Manifest", "SharedFile", "Table", "TrainedManifest", "inner_table", "table_at", "walk"]


class VariantTable(Table):
    recipe: dict[str, Any] | None = Field(
        None, description="What differs from [recipe]: a training of its own, on the same images."
    )
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
    samples: SamplesTable | None = off(
        None, "[samples]: pictures of what was learnt, drawn while it trains and by `doit samples`."
    )
    check: CheckTable | None = off(None, "[check]: how severe findings are.")
    variants: dict[Name, VariantTable] = Field(
        default_factory=dict,
        exclude=True,
        description="[variants.<name>.recipe|resize|chop]: more files beside the project's own.",
    )
    matrix: dict[str, Any] = Field(
        default_factory=dict,
        exclude=True,
        description=(
            "[matrix]: keys of [recipe], [resize] and [chop] with a list of values each, `thr = [-3.2, -3.9]`: a variant for "
            "each combination (docs/sweeps.md)."
        ),
    )

    @model_validator(mode="after")
    def _together(self) -> Manifest:
        if self.samples and self.samples.held_out and self.project.source:
            raise Misfit("samples.held_out", "a LoRA that is not trained here (project.source) has no held-out loss")
        if self.resize and self.project.source and self.resize.step != "last":
            raise Misfit("resize.step", "a LoRA that is not trained here (project.source) has no steps")
        if self.resize and self.resize.step != "last":
            last = self.recipe.max_train_steps
            if last is not None and self.resize.step > last:
                raise Misfit("resize.step", f"the training ends at step {last} (recipe.max_train_steps)")
            if self.resize.step == last:
                self.resize.step = "last"
        return self

    @model_validator(mode="after")
    def _regularised(self) -> Manifest:
        dataset = self.dataset
        if not (dataset and (dataset.reg_data_dir or any(subset.is_reg for subset in dataset.subset))):
            self.recipe.prior_loss_weight = 1.0  # it weighs nothing: another value is no other training
        return self

    @model_validator(mode="after")
    def _objective_fits(self, info: ValidationInfo) -> Manifest:
        if self.project.source is not None:
            return self
        found = list(mask_misfits(self.recipe, self.dataset))
        if base := (info.context or {}).get(self.project.base):
            prediction_type = base.get("prediction_type", "epsilon")
            found += base_misfits(self.recipe, self.project.base, prediction_type)
        if found:
            raise Misfits(*(Misfit(f"recipe.{misfit.key}", str(misfit)) for misfit in found))
        return self


class TrainedManifest(Manifest):
    """The manifest of a LoRA that does not start from a file."""

    dataset: TrainedDatasetTable = Field(description=Manifest.model_fields["dataset"].description)


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
