"""Which updates are saved: sd-scripts' keys as it reads them, our keep policy, and the ends of phases."""

from __future__ import annotations

from typing import Any

import pytest

from lorabuild.manifest.values import keep_policy
from lorabuild.training.updates import counted, end_of_epoch, saved_steps, update_count


def kept(steps: int = 80, batches: int = 10, recipe: Any = None, **saved: Any) -> list[int]:
    recipe = {"max_train_steps": steps, "gradient_accumulation_steps": 1} | (recipe or {})
    return saved_steps(recipe, saved, batches)


def test_save_last_n_steps_is_a_distance():
    """goldens/i_behaviour.json: every 2, last 4, 8 steps kept 4, 6, 8."""
    assert kept(8, save_every_n_steps=2, save_last_n_steps=4) == [4, 6, 8]
    assert kept(9, save_every_n_steps=2, save_last_n_steps=4) == [4, 6, 8]
    assert kept(8, save_every_n_steps=2, save_last_n_steps=3) == [6, 8]
    assert kept(8, save_every_n_steps=2, save_last_n_steps=1) == [8]


@pytest.mark.parametrize("last", range(1, 30))
@pytest.mark.parametrize("every", [1, 2, 3, 7])
def test_a_distance_keeps_what_removing_on_the_way_leaves(last: int, every: int):
    """sd-scripts: at each save, the one `last` + 1 steps before, rounded down to a multiple, is removed."""
    standing: set[int] = set()
    for step in range(every, 41, every):
        standing.add(step)
        standing.discard((step - last - 1) // every * every)
    assert kept(40, save_every_n_steps=every, save_last_n_steps=last) == sorted(standing)


def test_save_last_n_epochs_is_a_number_of_saves_and_the_last_epoch_is_the_final_file():
    assert kept(80, 10, save_every_n_epochs=2) == [20, 40, 60]
    assert kept(80, 10, save_every_n_epochs=2, save_last_n_epochs=2) == [40, 60]
    assert kept(85, 10, save_every_n_epochs=2, save_last_n_epochs=1) == [80]


def test_a_policy_keeps_what_any_of_its_terms_names():
    assert kept(80, save_every_n_steps=10, keep="last 3") == [60, 70, 80]
    assert kept(80, save_every_n_steps=10, keep="every 20") == [20, 40, 60, 80]
    assert kept(80, save_every_n_steps=10, keep="last 3, every 20") == [20, 40, 60, 70, 80]
    assert kept(30, save_every_n_steps=10, keep="last 99") == [10, 20, 30]
    assert kept(30, 4, save_every_n_epochs=1, save_every_n_steps=10, keep="last 3") == [24, 28, 30]


def test_the_end_of_each_phase_is_always_kept():
    phases = {"phases": [{"max_train_steps": 33}, {"max_train_steps": 20}, {"max_train_steps": 27}]}
    assert kept(80, recipe=phases) == [33, 53, 80]
    assert kept(80, recipe=phases, save_every_n_steps=10, keep="last 1") == [33, 53, 80]


def test_an_epoch_ends_with_the_update_that_takes_its_last_batch():
    assert [end_of_epoch(epoch, 5, 3) for epoch in (1, 2, 3)] == [2, 4, 5]
    assert [end_of_epoch(epoch, 2, 6) for epoch in (1, 2, 3, 4)] == [1, 1, 1, 2]
    assert kept(3, 2, {"gradient_accumulation_steps": 6}, save_every_n_epochs=1) == [1, 2]
    recipe = {"max_train_epochs": 4, "max_train_steps": None, "gradient_accumulation_steps": 3}
    assert update_count(recipe, 5) == counted(recipe, 5)["max_train_steps"] == 7


@pytest.mark.parametrize("text", ["last 3, every 20", "every 20,last 3", " last  03 , every 20 "])
def test_a_policy_has_one_spelling(text: str):
    assert keep_policy(text) == "last 3, every 20"


@pytest.mark.parametrize(
    "text", ["", "3", "last", "last 0", "last -1", "first 3", "last 3 every 20", "last 3, last 4", "last 3,"]
)
def test_another_policy_is_refused_in_one_line(text: str):
    with pytest.raises(ValueError, match="expected"):
        keep_policy(text)
