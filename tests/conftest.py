"""Worlds that are built once and copied for each test: a build with a real training takes some twenty seconds."""

from __future__ import annotations

from pathlib import Path

import pytest
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
