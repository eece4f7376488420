"""Worlds that are built once and copied for each test: a build with a real training takes some twenty seconds."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import browser, report_site
from s3 import S3, healthy, s3_server
from shared import once
from world import LONGER, World

__all__ = ["browser", "report_site"]  # fixtures, for all tests

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: there is a process for each core already


@pytest.hookimpl(tryfirst=True, optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """The whole suite is shared out between processes; what is named (or needs the GPU) runs in this one.

    Four at most: each holds a gigabyte once it has imported torch and diffusers.
    """
    whole = config.args_source is not pytest.Config.ArgsSource.ARGS and config.option.markexpr != "gpu"
    return min(len(os.sched_getaffinity(0)), 4) if whole else 0


@pytest.fixture(scope="session")
def built_once(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A repository with one project, built. Not to be changed: tests take `built`."""
    return World(once(tmp_path_factory, "template", _build) / "repository")


def _build(folder: Path) -> None:
    world = World(folder / "repository")
    world.project()
    first = world.doit()
    assert first.code == 0, first.out + first.err


@pytest.fixture(scope="session")
def straight(built_once: World, tmp_path_factory: pytest.TempPathFactory) -> World:
    """The same with LONGER, built undisturbed: what an interrupted build has to come to. Not to be changed."""

    def build(folder: Path) -> None:
        world = built_once.copy(folder / "repository")
        world.manifest(**LONGER)
        assert world.doit().code == 0

    return World(once(tmp_path_factory, "straight", build) / "repository")


@pytest.fixture
def built(built_once: World, tmp_path: Path) -> World:
    """A copy of the built repository, for this test alone."""
    return built_once.copy(tmp_path / "repository")


@pytest.fixture
def empty(tmp_path: Path) -> World:
    """A repository without projects."""
    return World(tmp_path / "repository")


@pytest.fixture(scope="session")
def one_s3() -> Iterator[S3]:
    with s3_server() as server:
        yield server


@pytest.fixture
def s3(one_s3: S3, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3]:
    """The server, well, with its address and keys in the environment."""
    for name, value in one_s3.environment.items():
        monkeypatch.setenv(name, value)
    one_s3.fault, one_s3.requests = healthy, []
    yield one_s3
    one_s3.fault = healthy
