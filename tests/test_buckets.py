"""Buckets: as sd-scripts chooses them, and a clear word where it crashes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorabuild.data.buckets import buckets, centre_crop, geometry, peer_crop, settings_problem

GOLDEN = json.loads((Path(__file__).parent / "goldens/buckets.json").read_text())
SETTINGS = {
    "resolution": [1024, 1024],
    "enable_bucket": True,
    "bucket_no_upscale": False,
    "bucket_reso_steps": 32,
    "min_bucket_reso": 256,
    "max_bucket_reso": 2048,
}


@pytest.mark.parametrize(
    "golden", GOLDEN["settings"], ids=lambda golden: f"{golden['resolution'][0]}-{golden['bucket_reso_steps']}"
)
def test_buckets_are_those_of_sd_scripts(golden: dict):
    settings = {"enable_bucket": True, **golden}
    if golden["predefined"] is not None:
        assert list(buckets(settings)) == [tuple(bucket) for bucket in golden["predefined"]]
    for size, row in zip(GOLDEN["sizes"], golden["rows"], strict=True):
        if row is None:
            with pytest.raises(ValueError, match="smaller than one bucket step"):
                geometry(tuple(size), settings)
        else:
            found = geometry(tuple(size), settings)
            told = peer_crop(tuple(size), found.bucket, flip=False)
            assert [*found.bucket, *found.resized, *told] == row, size


@pytest.mark.parametrize(
    ("steps", "longest", "count"), [(32, 1024, 49), (32, 2048, 81), (64, 1024, 25), (64, 2048, 41)]
)
def test_the_table_has_the_known_number_of_buckets(steps: int, longest: int, count: int):
    assert len(buckets(SETTINGS | {"bucket_reso_steps": steps, "max_bucket_reso": longest})) == count


def test_limits_are_rounded_outwards_to_whole_steps():
    uneven = buckets(SETTINGS | {"min_bucket_reso": 270, "max_bucket_reso": 1500})
    assert uneven == buckets(SETTINGS | {"min_bucket_reso": 256, "max_bucket_reso": 1504})


def test_without_buckets_everything_is_cut_to_the_resolution():
    settings = SETTINGS | {"enable_bucket": False, "bucket_no_upscale": True, "resolution": [512, 768]}
    found = geometry((100, 100), settings)
    assert (found.bucket, found.resized, found.crop) == ((512, 768), (768, 768), (128, 0))


sides = st.integers(min_value=1, max_value=5000)


@given(size=st.tuples(sides, sides), no_upscale=st.booleans(), steps=st.sampled_from([32, 64]))
def test_a_bucket_lies_within_its_resized_image_and_touches_it(size: tuple[int, int], no_upscale: bool, steps: int):
    settings = SETTINGS | {"bucket_no_upscale": no_upscale, "bucket_reso_steps": steps}
    try:
        found = geometry(size, settings)
    except ValueError as error:
        assert "smaller than one bucket step" in str(error) or "too long" in str(error)
        return
    left_over = [whole - kept for whole, kept in zip(found.resized, found.bucket, strict=True)]
    assert all(kept % steps == 0 and kept > 0 for kept in found.bucket)
    assert min(left_over) >= 0
    if no_upscale:
        assert max(left_over) < steps
        assert found.resized == size or size[0] * size[1] > 1024 * 1024
    else:
        assert min(left_over) == 0, "the resized image covers more than it has to"
    for axis in (0, 1):
        before, after = found.crop[axis], left_over[axis] - found.crop[axis]
        assert before == left_over[axis] // 2 and after - before in (0, 1)


def test_a_thread_is_refused_before_it_becomes_a_giant():
    with pytest.raises(ValueError, match="1x4000 is too long for any bucket"):
        geometry((1, 4000), SETTINGS)


@pytest.mark.parametrize("size", [(30_000, 70), (70, 30_000)])
def test_a_strip_that_shrinks_below_one_step_is_refused(size: tuple[int, int]):
    """sd-scripts divides by zero here, or makes an empty bucket."""
    with pytest.raises(ValueError, match=r"smaller than one bucket step \(64 px\)"):
        geometry(size, SETTINGS | {"bucket_no_upscale": True, "bucket_reso_steps": 64})


def test_the_crop_is_the_middle_rounded_down():
    assert centre_crop((1184, 869), (1184, 864)) == (0, 2)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"max_bucket_reso": 512}, "above 512"),
        ({"min_bucket_reso": 1100}, "below 1088"),
        ({"resolution": [16, 1024], "min_bucket_reso": 0}, "below 32"),
        ({"bucket_reso_steps": 20}, "multiple of 8"),
        ({"enable_bucket": False, "resolution": [500, 512]}, "multiples of 8"),
    ],
)
def test_settings_that_contradict_each_other_are_named(change: dict, word: str):
    assert settings_problem(SETTINGS) is None
    assert word in settings_problem(SETTINGS | change)
