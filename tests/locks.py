"""Lock files as a build leaves them, made from what a repository remembers of its jobs."""

from __future__ import annotations

from world import World

from lorabuild.state import State
from lorabuild.store import Store


def write_lock(world: World, name: str = "ember", shared: bool = True) -> None:
    """projects/<name>/lora.lock with a line a job; `shared`: also the norms of its base, which it shares."""
    state, store = State(world.root / ".lorabuild/state.sqlite", world.root), Store(world.root / ".lorabuild/store")
    names = [*(("norms:tiny",) if shared else ())]
    names += [f"{stage}:{name}" for stage in ("dataset", "latents", "train", "spectrum", "resize", "chop")]
    lines = []
    for job in sorted(names):
        if (last := state.last(job)) is None:
            continue
        steps = [
            f"step/{path.name.split('.')[2]}" for path in store.record_path(last[0]).parent.glob(f"{last[0]}.step.*")
        ]
        outputs = dict(store.record(last[0]).outputs)
        for step in steps:
            outputs |= store.record(f"{last[0]}/{step}").outputs
        told = ", ".join(
            f'"{role}" = {{ digest = "{one.digest}", size = {one.size} }}' for role, one in sorted(outputs.items())
        )
        lines.append(f'"{job}" = {{ key = "{last[0]}", outputs = {{ {told} }} }}\n')
    state.close()
    world.write(f"projects/{name}/lora.lock", "".join(lines))
