"""Bring what a job reads into a node's cache, by digest, and lay it out as the stages expect it."""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorabuild.components import COMPONENTS_FILE, component_digests, component_files, tensors_digest
from lorabuild.data.vocabulary import read_vocabulary
from lorabuild.errors import JobError
from lorabuild.hashing import digest_file, digest_json
from lorabuild.inputs import images_digest
from lorabuild.remotes.remote import Damaged, Remote
from lorabuild.signature import racy, signature
from lorabuild.store import Output
from lorabuild.workspace import ImageFile

AT_ONCE = 8  # downloads: small files take as long as an answer does
LARGE = 1 << 26  # bytes; of a larger file that has been read once its stat is believed
Blob = Mapping[str, Any]  # {"digest", "size", "sha256"}
Told = Callable[[int, int, str], None]


class Lacking(Exception):
    """Blobs that the store does not have, or not whole: who has sent the job can upload them again."""

    def __init__(self, digests: Iterable[str]):
        self.digests = sorted(digests)
        super().__init__(f"{len(self.digests)} files are missing or damaged in the store")


@dataclass(frozen=True)
class Fetched:
    """An input as a worker is told of it: `images` as plain values."""

    digest: str
    path: Path | None
    images: list[dict[str, Any]]

    @property
    def told(self) -> dict[str, Any]:
        return {"digest": self.digest, "path": str(self.path) if self.path else None, "images": self.images}


@dataclass(frozen=True)
class Fetcher:
    """Brings the inputs of one spec into `cache`, whose store `remote` fills. `folder` is the job's own."""

    spec: Mapping[str, Any]
    remote: Remote
    cache: Path
    folder: Path
    told: Told

    def inputs(self) -> dict[str, dict[str, Any]]:
        """Role -> what a worker is told. Raises Lacking, JobError for what is not as the key says, and Unreachable."""
        here = {name: self._here(place) for name, place in self.spec["places"].items()}
        self._bring(self._needed(here))
        places = {name: path or self._laid_out(self.spec["places"][name]) for name, path in here.items()}
        found = {role: self._one(role, one, places) for role, one in self.spec["inputs"].items()}
        for role, one in self.spec["inputs"].items():
            self._check(role, one, found[role])
        return {role: one.told for role, one in found.items()}

    # what the node has of its own

    def _here(self, place: Mapping[str, Any]) -> Path | None:
        """A checkpoint in the node's folders of models. Raises JobError where it is neither there nor in the store."""
        folders = [Path(os.path.expanduser(folder)) for folder in self.spec["models"]]
        for name in place["names"]:
            for folder in folders:
                if (folder / name).exists():
                    return folder / name
        if place["files"] is None:
            where = ", ".join(map(str, folders))
            raise JobError(
                f"{place['names'][-1]}: not in {where} on {socket.gethostname()} ([executor] models); "
                "without models it is uploaded to the store, once"
            )
        return None

    # what the store has

    def _needed(self, here: Mapping[str, Path | None]) -> dict[str, Blob]:
        """By digest, so that each comes once."""
        places = [self.spec["places"][name]["files"].values() for name, path in here.items() if path is None]
        blobs = [blob for one in (_blobs_of(one) for one in self.spec["inputs"].values()) for blob in one]
        return {blob["digest"]: blob for blob in [*blobs, *(blob for files in places for blob in files)]}

    def _bring(self, blobs: Mapping[str, Blob]) -> None:
        missing = [blob for blob in blobs.values() if not self._whole(blob)]
        total, done, lacking = sum(blob["size"] for blob in missing), 0, []

        def bring(blob: Blob) -> bool:
            for _ in range(2):  # the way may have damaged it
                try:
                    self.remote.fetch_blob(Output(blob["digest"], blob["size"]), blob["sha256"])
                    return True
                except Damaged as error:
                    print(error)
            return False

        with ThreadPoolExecutor(AT_ONCE) as pool:
            for blob, came in zip(missing, pool.map(bring, missing), strict=True):
                if not came:
                    lacking.append(blob["digest"])
                done += blob["size"]
                if total >> 20:
                    self.told(done >> 20, total >> 20, "MiB of inputs")
        if lacking:
            raise Lacking(lacking)

    def _whole(self, blob: Blob) -> bool:
        path = self.remote.store.blob(blob["digest"])
        if not path.exists() or path.stat().st_size != blob["size"]:
            return False
        return self._remembered([path], "file", lambda: digest_file(path)) == blob["digest"]

    # how it lies

    def _one(self, role: str, one: Mapping[str, Any], places: Mapping[str, Path]) -> Fetched:
        match one["how"]:
            case "images":
                return Fetched(
                    one["digest"], None, [self._image(role, n, image) for n, image in enumerate(one["images"])]
                )
            case "component" | "vocabulary":
                return Fetched(one["digest"], places[one["place"]], [])
        return Fetched(one["digest"], self.remote.store.blob(one["blob"]["digest"]), [])

    def _image(self, role: str, number: int, image: Mapping[str, Any]) -> dict[str, Any]:
        """A caption file keeps its name: messages tell it."""
        caption, path = image["caption"], None
        if caption:
            path = self.folder / "captions" / role / str(number) / Path(caption["name"]).name
            _placed(self.remote.store.blob(caption["blob"]["digest"]), path)
        return {
            "path": str(self.remote.store.blob(image["blob"]["digest"])),
            "digest": image["blob"]["digest"],
            "caption": str(path) if path else None,
            "caption_digest": caption["blob"]["digest"] if caption else None,
            **{name: image[name] for name in ("shown", "subset", "repeats", "settings")},
        }

    def _laid_out(self, place: Mapping[str, Any]) -> Path:
        """The files of a base under their own names."""
        files = place["files"]
        names = {name: blob["digest"] for name, blob in files.items()}
        folder = self.cache / "base" / digest_json(names)
        for name, digest in names.items():
            _placed(self.remote.store.blob(digest), folder / _safe(name))
        return folder / _safe(next(iter(names))) if place["single"] else folder

    # is it what the key says?

    def _check(self, role: str, one: Mapping[str, Any], found: Fetched) -> None:
        digest = self._digest_of(one, found)
        if digest != one["digest"]:
            what = f" ({found.path} on {socket.gethostname()})" if found.path else ""
            raise JobError(f"{role}: it is not what the key says{what}: {digest}, not {one['digest']}")

    def _digest_of(self, one: Mapping[str, Any], found: Fetched) -> str:
        path = found.path
        match one["how"]:
            case "blob":
                return one["blob"]["digest"]
            case "tensors":
                assert path is not None
                return tensors_digest(path)
            case "images":
                images = [ImageFile(**{**image, "path": Path(image["path"])}) for image in found.images]
                return images_digest(images, one["captions"])
            case "vocabulary":
                assert path is not None
                return read_vocabulary(path).digest
        assert path is not None
        name = one["component"]
        if COMPONENTS_FILE in (self.spec["places"][one["place"]]["files"] or ()):  # a job has made it, and tells of it
            return json.loads((path / COMPONENTS_FILE).read_bytes())[name]
        return self._remembered(component_files(path, name), name, lambda: component_digests(path, [name])[name])

    def _remembered(self, files: Sequence[Path], what: str, make: Callable[[], str]) -> str:
        """A digest of files; where they are large, made once as long as their stat stays what it is."""
        signatures = [signature(path) for path in files]
        if sum(one[0] for one in signatures) < LARGE:
            return make()
        place = self.cache / "memo" / digest_json([what, *zip(map(str, files), map(list, signatures), strict=True)])
        if place.exists():
            return place.read_text()
        digest = make()
        if not any(map(racy, signatures)) and [signature(path) for path in files] == signatures:
            part = place.with_name(f"{place.name}.{os.getpid()}")
            place.parent.mkdir(parents=True, exist_ok=True)
            part.write_text(digest)
            part.replace(place)
        return digest


def _blobs_of(one: Mapping[str, Any]) -> Iterator[Blob]:
    """All blobs that an input names itself."""
    if "blob" in one:
        yield one["blob"]
    for image in one.get("images", ()):
        yield image["blob"]
        if image["caption"]:
            yield image["caption"]["blob"]


def _safe(name: str) -> Path:
    """A relative path that stays below its folder. Raises JobError."""
    path = Path(name)
    if path.is_absolute() or ".." in path.parts:
        raise JobError(f"the spec is damaged: {name!r} is no file of a base")
    return path


def _placed(blob: Path, path: Path) -> None:
    """Give a blob a name: the same file by another path, or a copy where there are no hard links."""
    if path.exists() and (path.samefile(blob) or digest_file(path) == blob.name):
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    part.unlink(missing_ok=True)
    try:
        os.link(blob, part)
    except OSError:
        shutil.copyfile(blob, part)
    part.replace(path)
    part.unlink(missing_ok=True)  # of two names of one file nothing is replaced
