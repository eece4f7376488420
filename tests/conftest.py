"""Worlds that are built once and copied for each test: a build with a real training takes some twenty seconds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from s3 import S3, healthy, s3_server
from world import World


@pytest.fixture(scope="session")
def built_once(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A repository with one project, built. Not to be changed: tests take `built`."""
    world = World(tmp_path_factory.mktemp("template") / "repository")
    world.project()
    world.first = world.doit()
    assert world.first.code == 0, world.first.out + world.first.err
    return world


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
