"""Pack what a job reads for another machine: by digest, and as files of the remote store."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lorabuild.bases.layout import component_folder
from lorabuild.components import component_files
from lorabuild.data.tokenizers import find_vocabulary
from lorabuild.data.vocabulary import FILES as VOCABULARY
from lorabuild.errors import InputChanged, Interrupted, JobError
from lorabuild.hashing import digest_bytes, sha256_from
from lorabuild.inputs import Resolved
from lorabuild.remotes.remote import Remote
from lorabuild.stage import INIT, Component, File, Images, Input, Job
from lorabuild.state import State
from lorabuild.store import Output
from lorabuild.workspace import ImageFile

AT_ONCE = 8  # uploads: small files take as long as an answer does
IN_MEMORY = 1 << 26  # bytes of a file that is read whole, so that what is uploaded is what was digested
TAILS = 3  # folders in whose company a checkpoint is looked for: checkpoints/sdxl/pony.safetensors

Told = Callable[[int, int, str], None]


@dataclass
class Pack:
    """`inputs` and `places` of a spec, and what it does not say: where the blobs lie that it names, and the places."""

    inputs: dict[str, dict[str, Any]] = field(default_factory=dict)
    places: dict[str, dict[str, Any]] = field(default_factory=dict)
    files: dict[str, Path] = field(default_factory=dict)  # by digest
    paths: dict[str, Path] = field(default_factory=dict)  # of the places

    def place(self, path: Path) -> tuple[str, bool]:
        """The name of a place, and whether it is new."""
        for name, known in self.paths.items():
            if known == path:
                return name, False
        self.paths[name := str(len(self.paths))] = path
        return name, True


@dataclass
class Sender:
    """Packs, and uploads what the store lacks. `models`: do the nodes have the checkpoints? Then none is uploaded."""

    remote: Remote
    state: State
    models: bool
    model_dirs: Sequence[Path]
    left: Callable[[], bool] = bool
    _there: dict[str, int] | None = None
    _mutex: threading.Lock = field(default_factory=threading.Lock)

    def pack(self, job: Job, inputs: Mapping[str, Resolved], made: Mapping[str, Mapping[str, Output]]) -> Pack:
        """What the job reads. `made`: the files of each base that a job has made, by role.

        Raises JobError, and InputChanged for a file that is no longer what it was.
        """
        pack = Pack()
        for role, one in inputs.items():
            pack.inputs[role] = {"digest": one.digest, **self._one(job.inputs[role], one, pack, made)}
        for name, place in pack.places.items():
            if place["files"] is None and not self.models:
                read = [one["component"] for one in pack.inputs.values() if one.get("place") == name]
                place["files"] = self._files_of(pack.paths[name], read, pack)
        return pack

    def upload(self, pack: Pack, told: Told, again: Collection[str] = ()) -> None:
        """Upload what the store lacks of it, and `again` what is damaged there.

        Raises InputChanged, Interrupted if the build is left meanwhile, and Unreachable.
        """
        with self._mutex:  # the next job needs much the same, a base above all
            if self._there is None or again:
                self._there = self.remote.blobs()
            there = self._there
            sizes = {digest: path.stat().st_size for digest, path in pack.files.items()}
            missing = [digest for digest, size in sizes.items() if there.get(digest) != size or digest in again]
            total, done = sum(sizes[digest] for digest in missing), 0
            with ThreadPoolExecutor(AT_ONCE) as pool:
                sent = pool.map(lambda digest: self._put(digest, pack.files[digest]), missing)
                for digest, _ in zip(missing, sent, strict=True):
                    there[digest] = sizes[digest]
                    done += sizes[digest]
                    if total >> 20:
                        told(done >> 20, total >> 20, "MiB uploaded")

    # what a spec says

    def _one(self, item: Input, one: Resolved, pack: Pack, made: Mapping[str, Mapping[str, Output]]) -> dict[str, Any]:
        match item:
            case Images():
                return {
                    "how": "images",
                    "captions": item.captions,
                    "images": [self._image(image, pack) for image in one.images],
                }
            case Component(base, name):
                return self._component(name, one, made.get(base), pack)
            case File(path, key=key) if key == INIT:  # its digest is that of its tensors
                return {"how": "tensors", "blob": self._blob(path, None, pack)}
        assert one.path is not None
        return {"how": "blob", "blob": self._blob(one.path, one.digest, pack)}

    def _image(self, image: ImageFile, pack: Pack) -> dict[str, Any]:
        caption = None
        if image.caption:
            blob = self._blob(image.caption, image.caption_digest, pack)
            caption = {"blob": blob, "name": image.caption.name}
        return {
            "blob": self._blob(image.path, image.digest, pack),
            "caption": caption,
            "shown": image.shown,
            "subset": image.subset,
            "repeats": image.repeats,
            "settings": dict(image.settings),
        }

    def _component(self, name: str, one: Resolved, made: Mapping[str, Output] | None, pack: Pack) -> dict[str, Any]:
        path = one.path
        assert path is not None
        if name.startswith("tokenizer") and path.is_file():
            return {"how": "vocabulary", "place": self._vocabulary(path, pack)}
        place, new = pack.place(path)
        if new:
            files = None
            if made is not None:
                blob = self.remote.store.blob
                files = {role: self._blob(blob(each.digest), each.digest, pack) for role, each in made.items()}
            names = [] if made is not None else _tails(path)
            pack.places[place] = {"names": names, "single": path.is_file(), "files": files}
        return {"how": "component", "component": name, "place": place}

    def _vocabulary(self, base: Path, pack: Pack) -> str:
        """The vocabulary of a single file, which holds none: found here, and sent along."""
        found = find_vocabulary(base, self.model_dirs)
        files = [found / name for name in VOCABULARY] if found.is_dir() else [found]
        place, _ = pack.place(found)
        blobs = {file.name: self._blob(file, None, pack) for file in files}
        pack.places[place] = {"names": [], "single": found.is_file(), "files": blobs}
        return place

    def _files_of(self, base: Path, components: Iterable[str], pack: Pack) -> dict[str, dict[str, Any]]:
        """A user's checkpoint: the file, or of a folder what these components are read from, with the small files."""
        if base.is_file():
            return {base.name: self._blob(base, None, pack)}
        folders = [base, base / "scheduler"]
        files = [file for name in components for file in component_files(base, name)]
        folders += [component_folder(base, name) for name in components if not name.startswith("tokenizer")]
        files += [file for folder in folders for file in sorted(folder.glob("*.json"))]
        return {str(file.relative_to(base)): self._blob(file, None, pack) for file in dict.fromkeys(files)}

    def _blob(self, path: Path, digest: str | None, pack: Pack) -> dict[str, Any]:
        """A file as a spec names it. Raises InputChanged if it is not of `digest` any more."""
        try:
            found = self.state.digest(path)
            if digest is not None and found != digest:
                raise InputChanged(path)
            size = path.stat().st_size
            sha256 = self.state.digest_of([path], "sha256", lambda: sha256_from(path))
        except FileNotFoundError:
            raise InputChanged(path) from None
        pack.files[found] = path
        return {"digest": found, "size": size, "sha256": sha256}

    # what is sent

    def _put(self, digest: str, path: Path) -> None:
        """What lies under a digest in the store has it: nobody finds the bytes of a file that has just changed there."""
        if self.left():
            raise Interrupted
        if path.stat().st_size < IN_MEMORY:
            data = path.read_bytes()
            if digest_bytes(data) != digest:
                self._changed(path, digest)
            self.remote.put_blob(digest, data)
            return
        self.remote.put_blob(digest, path)
        if self.state.digest(path) != digest:
            self.remote.drop_blob(digest)
            self._changed(path, digest)

    def _changed(self, path: Path, digest: str) -> None:
        if path == self.remote.store.blob(digest):
            self.remote.store.drop(digest)
            raise JobError(f"blob {digest}: damaged in the store here; building again makes it anew")
        raise InputChanged(path)


def _tails(path: Path) -> list[str]:
    """The ends of a path, the longest first: `sdxl/pony.safetensors`, `pony.safetensors`."""
    parts = path.parts[-TAILS:] if len(path.parts) > TAILS else path.parts[1:]
    return [str(Path(*parts[number:])) for number in range(len(parts))]
