"""Streams and the order of training: functions of seed and epoch, exactly once an epoch."""

from __future__ import annotations

from collections import Counter
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorabuild.streams import python_random, stream_seed
from lorabuild.training.order import batches_per_epoch, epoch_batches, matched_repeats, micro_batches

BUCKETS = [[64, 64], [64, 96], [96, 64]]
image_sets = st.lists(
    st.fixed_dictionaries({"bucket": st.sampled_from(BUCKETS), "repeats": st.integers(1, 4)}), min_size=1, max_size=20
)
IMAGES = [{"bucket": BUCKETS[n % 3], "repeats": 1 + n % 2} for n in range(9)]


def test_streams_differ_by_each_part_of_their_purpose():
    seeds = {
        stream_seed(*name)
        for name in [(1,), (2,), (1, "noise"), (1, "noise", 0), (1, "noise", 0, 1), (1, "noise", 1, 0)]
    }
    assert len(seeds) == 6
    assert stream_seed(1, "a", "b") != stream_seed(1, "ab") != stream_seed(1, "a\x00b")
    assert stream_seed(1, "step", 1) != stream_seed(1, "step", "1")
    assert all(0 <= seed < 1 << 63 for seed in seeds)


def test_streams_are_for_ever():
    """These numbers are in every LoRA that was trained: they may change only with the version of the train stage."""
    assert stream_seed(42, "noise", 0, "ab", 1) == 224247334133096666
    assert python_random(42, "flip").random() == 0.9858820775148006


@given(images=image_sets, batch_size=st.integers(1, 8), seed=st.integers(0, 9), epoch=st.integers(0, 9))
def test_each_repeat_is_seen_exactly_once_an_epoch_in_batches_of_one_bucket(images, batch_size, seed, epoch):
    batches = epoch_batches(images, batch_size, seed, epoch)
    due = {(index, repeat): 1 for index, image in enumerate(images) for repeat in range(image["repeats"])}
    assert Counter(sample for batch in batches for sample in batch) == due
    assert all(0 < len(batch) <= batch_size for batch in batches)
    assert all(len({tuple(images[index]["bucket"]) for index, _ in batch}) == 1 for batch in batches)
    assert len(batches) == batches_per_epoch(images, batch_size)
    short = Counter(tuple(images[batch[0][0]]["bucket"]) for batch in batches if len(batch) < batch_size)
    assert all(count == 1 for count in short.values()), "a bucket has more than one short batch"


def test_epochs_and_seeds_shuffle_both_membership_and_order():
    def partners(batches):
        return {frozenset(batch) for batch in batches}

    first = epoch_batches(IMAGES, 2, 7, 0)
    assert first == epoch_batches(IMAGES, 2, 7, 0)
    for other in (epoch_batches(IMAGES, 2, 7, 1), epoch_batches(IMAGES, 2, 8, 0)):
        assert partners(first) != partners(other)
        assert [images_bucket(batch) for batch in first] != [images_bucket(batch) for batch in other]


def images_bucket(batch):
    return IMAGES[batch[0][0]]["bucket"]


@given(start=st.integers(0, 40))
def test_a_training_taken_up_in_the_middle_sees_the_same_batches(start: int):
    straight = list(islice(micro_batches(IMAGES, 2, 7), start + 12))
    assert list(islice(micro_batches(IMAGES, 2, 7, start), 12)) == straight[start:]


@pytest.mark.parametrize(
    ("repeats", "samples", "shown"),
    [
        ([1, 1, 1], 3, [1, 1, 1]),
        ([1, 1, 1], 8, [3, 3, 2]),
        ([2, 3], 6, [3, 3]),
        ([1, 1, 1], 2, [1, 1, 0]),
        ([5, 5], 3, [5, 0]),
        ([], 4, []),
    ],
)
def test_regularisation_images_are_as_many_as_the_others(repeats: list[int], samples: int, shown: list[int]):
    assert matched_repeats(repeats, samples) == shown


@given(repeats=st.lists(st.integers(1, 5), max_size=9), samples=st.integers(1, 60))
def test_they_are_counted_as_sd_scripts_counts(repeats: list[int], samples: int):
    """Its loop, in words: go round, first by their own repeats, then one more each, until there are enough."""
    shown, total, first = [0] * len(repeats), 0, True
    while repeats and total < samples:
        for number, own in enumerate(repeats):
            shown[number] += own if first else 1
            total += own if first else 1
            if total >= samples:
                break
        first = False
    assert matched_repeats(repeats, samples) == shown


def test_a_data_set_without_images_is_refused():
    with pytest.raises(ValueError, match="without images"):
        next(micro_batches([], 2, 7))
