"""A folder of images that are wrong in all ways: `check` tells of each in one run, and so does the build."""

from __future__ import annotations

import os
from collections import defaultdict
from pathlib import Path

import pytest
from bad_images import Kind, kinds, make
from checking import checked, one_project, without_trials
from world import World

from lorabuild.findings import one_line

FOLDER = "projects/ember/images"
ALL = kinds()


@pytest.fixture
def world(empty: World, monkeypatch: pytest.MonkeyPatch) -> World:
    without_trials(monkeypatch)
    return one_project(empty)


def folder(world: World, *those: Kind) -> Path:
    where = world.root / FOLDER
    for one in those:
        make(where, one)
    return where


def test_check_finds_all_of_them_in_one_run_and_no_others(world: World):
    assert len(ALL) >= 40
    folder(world, *ALL)
    told: dict[str, set[str]] = defaultdict(set)
    for one in checked(world).findings["ember"]:
        told[os.path.splitext(one.file.removeprefix(f"{FOLDER}/"))[0]].add(one.code)
        assert "\n" not in str(one) and str(one).encode()
    expected: dict[str, set[str]] = defaultdict(set)
    for kind in ALL:
        expected[os.path.splitext(kind.name)[0]].update(kind.codes)
    assert {name: codes for name, codes in told.items() if codes - {"LB036"}} == {
        name: codes for name, codes in expected.items() if codes
    }


def test_the_build_tells_of_each_that_stops_it_in_a_line(world: World):
    where = folder(world, *ALL)
    stops = {kind.name for kind in ALL if kind.stops}
    seen: set[str] = set()
    for _ in range(2):  # files that cannot be read are told of before any is decoded
        result = world.doit("dataset:ember")
        text = result.out + result.err
        assert result.code == 1 and "Traceback" not in text, text
        lines = [line for line in text.splitlines() if FOLDER in line]
        told = {name for name in stops if any(f"{FOLDER}/{stem(name)}." in line for line in lines)}
        assert told and not told & seen, text
        for name in told:
            os.unlink(where / name)
        seen |= told
    assert seen == stops
    assert world.doit("dataset:ember").code == 0


def stem(name: str) -> str:
    """As messages show it."""
    return one_line(os.path.splitext(name)[0])
