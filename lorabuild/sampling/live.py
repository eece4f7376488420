"""Draw a project's prompts while it trains, so that one watches it learn; whatever fails here is one warning."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorabuild.components import component_digests
from lorabuild.data.prompts import Prompt, read_prompts
from lorabuild.errors import Interrupted, Problem, UserError
from lorabuild.hashing import digest_file
from lorabuild.sampling.pictures import COMPONENTS, Painter, png, settings_of

if TYPE_CHECKING:
    from lorabuild.nn.adapter import Adapter
    from lorabuild.nn.base import Base
    from lorabuild.workspace import Workspace


NETWORKS = ("unet", "te1", "te2")  # that a training works with


class _Stopping(Exception):
    """The build is being stopped: the training will notice by itself."""


@dataclass
class Live:
    """The pictures of one training. `steps`: after which updates it draws."""

    workspace: Workspace
    samples: Mapping[str, Any]
    recipe: Mapping[str, Any]
    prediction_type: str
    base: Base
    device: str
    steps: Collection[int]
    prompts: tuple[Prompt, ...] = ()
    _painter: Painter | None = None
    _drawing: Callable[[Mapping[str, Any], str], bytes] | None = None
    _failed: set[int] = field(default_factory=set)

    def begin(self, anew: bool) -> None:
        """Read the prompts, and if the training begins `anew` remove what an earlier one has drawn."""
        with self._warning():
            if self.steps:
                found = read_prompts(Path(self.samples["path"]), self.samples["shown"])
                for problem in found.warnings:
                    self.workspace.warn(str(problem))
                self.prompts = found.prompts
        if anew:
            with self._warning():
                for path in sorted(self._folder.glob("step*-*.png")):
                    path.unlink()

    def draw(self, step: int, adapter: Adapter, saved: Path | None) -> None:
        """Draw all prompts after update `step`: from the file `saved` as a piece, which the stage samples finds again;
        from the `adapter` as it is where nothing was saved. Training goes on as if nothing had happened."""
        if not self.prompts:
            return
        from lorabuild.nn.sampler import undisturbed
        from lorabuild.nn.warm import aside

        digest = digest_file(saved) if saved else None
        try:
            with undisturbed():
                self._all(step, adapter, saved, digest)
        except _Stopping:
            pass
        aside(NETWORKS)  # the VAE, till the next picture

    def _all(self, step: int, adapter: Adapter, saved: Path | None, digest: str | None) -> None:
        with ExitStack() as stack:
            for index, prompt in enumerate(self.prompts):
                if index in self._failed:
                    continue
                where = str(Problem(self.samples["shown"], prompt.line, "the prompt"))
                with self._warning(where, partial(self._failed.add, index)):
                    settings = settings_of(
                        prompt, index, self.samples, self.recipe, self.prediction_type, self.base.clip_skip
                    )
                    if saved is not None:
                        picture = self._on(digest, saved, stack)(settings, where)
                    else:
                        with _evaluating(adapter):
                            pixels = self._pieces.draw(self.base, settings, where)
                        picture = png(pixels, {**settings, "step": step})
                    self._show(f"step{step:08}-{index:02}.png", picture)

    def _on(self, digest: str | None, saved: Path, stack: ExitStack) -> Callable[[Mapping[str, Any], str], bytes]:
        """What draws with the file `saved` until the stack is closed."""
        if self._drawing is None:
            self._drawing = stack.enter_context(self._pieces.on(digest, saved))
            stack.callback(setattr, self, "_drawing", None)
        return self._drawing

    @property
    def _pieces(self) -> Painter:
        """Made when there is a first picture: the VAE, of which training knows nothing, is read for its digest."""
        if self._painter is None:
            places = [Path(place) for place in self.samples.get("vae", ())]
            place = next((place for place in places if place.exists()), self.workspace.path("unet"))
            digests = {**self.workspace.digests, **component_digests(place, ["vae"])}

            def vae() -> Any:
                from lorabuild.nn.vae import load_vae

                return load_vae(place, digests["vae"])

            self._painter = Painter(
                self.workspace,
                {name: digests[name] for name in COMPONENTS},
                lambda: self.base,
                vae,
                lambda: self.device,
                self._stepped,
            )
        return self._painter

    def _stepped(self, done: int, total: int) -> None:
        if self.workspace.stopping():
            raise _Stopping

    @property
    def _folder(self) -> Path:
        return Path(self.samples["live"])

    def _show(self, name: str, picture: bytes) -> None:
        """Whole or not at all: somebody is looking."""
        self._folder.mkdir(parents=True, exist_ok=True)
        part = self._folder / f".{name}.part"
        part.write_bytes(picture)
        part.replace(self._folder / name)

    @contextmanager
    def _warning(self, where: str = "[samples]", failed: Callable[[], None] = lambda: None) -> Iterator[None]:
        """What goes wrong in this block is one line, and no more is tried of it."""
        try:
            yield
        except (_Stopping, Interrupted):
            raise
        except UserError as error:
            said = "; ".join(map(str, error.problems))
        except Exception as error:  # of whatever library: a picture is never worth a training
            lines = str(error).splitlines()
            said = f"{where}: {type(error).__name__}: {lines[0] if lines else ''}"
        else:
            return
        failed()
        self.workspace.warn(f"{said} (not drawn; the training goes on)")


@contextmanager
def _evaluating(adapter: Adapter) -> Iterator[None]:
    """The adapter without dropout, as its file will be."""
    moment = adapter.chance.moment
    try:
        adapter.measuring()
        yield
    finally:
        adapter.chance.moment = moment
