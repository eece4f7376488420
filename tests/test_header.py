"""A header is read strictly and agrees with the safetensors library; what is written is canonical, by whatever means."""

from __future__ import annotations

import json
import os
import pickle
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file

from lorabuild import header, writing
from lorabuild.header import FormatError, read_header
from lorabuild.writing import FileRange, copy_ranges, header_bytes, spliced, write_body


def file_of(path: Path, head: dict | bytes, body: bytes = b"") -> Path:
    text = head if isinstance(head, bytes) else json.dumps(head).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + body)
    return path


def entry(start: int, stop: int, dtype: str = "F32", shape: list | None = None) -> dict:
    return {"dtype": dtype, "shape": [(stop - start) // 4] if shape is None else shape, "data_offsets": [start, stop]}


@pytest.fixture
def good(tmp_path: Path) -> Path:
    """A file as the library writes it: several dtypes, a scalar, an empty tensor, metadata."""
    tensors = {
        "b.weight": np.arange(12, dtype=np.float32).reshape(3, 4),
        "a.alpha": np.array(4, dtype=np.float16),
        "c.empty": np.zeros((0, 5), dtype=np.float16),
        "d.ids": np.arange(3, dtype=np.int64),
        "ü.flags": np.array([True, False]),
    }
    save_file(tensors, tmp_path / "good.safetensors", {"ss_tag": "ü \U0001f525", "a": "1"})
    return tmp_path / "good.safetensors"


def test_reading_agrees_with_the_library(good: Path):
    found = read_header(good)
    raw = good.read_bytes()
    with safe_open(good, "np") as library:
        assert set(library.keys()) == set(found.tensors)
        assert library.metadata() == found.metadata
        for name, info in found.tensors.items():
            tensor = library.get_tensor(name)
            assert library.get_slice(name).get_dtype() == info.dtype
            assert tensor.shape == info.shape
            assert tensor.tobytes() == raw[info.start : info.stop]
    assert (found.size, max(info.stop for info in found.tensors.values())) == (len(raw), len(raw))


def test_a_file_without_tensors_is_a_good_file(tmp_path: Path):
    write_body(tmp_path / "empty", [])
    assert not read_header(tmp_path / "empty").tensors
    assert load_file(tmp_path / "empty") == {}


@pytest.mark.parametrize(
    ("head", "body", "said"),
    [
        (b"{", b"", "not JSON"),
        (b"[]", b"", 'does not begin with "{"'),
        (b'{"\xff": 1}', b"", "not JSON"),
        (b'{"a":' * 100_000, b"", "nested too deep"),
        (b'{"a":%s}' % (b"9" * 5000), b"", "digit"),
        (b'{"a":[],"a":[]}', b"", "'a' stands twice"),
        (b'{"a":{"dtype":"U8","dtype":"U8","shape":[0],"data_offsets":[0,0]}}', b"", "'dtype' stands twice"),
        (b'{"a":{"dtype":"U8","shape":[0],"data_offsets":[-0,0]}}', b"", "-0 is no number of bytes"),
        ({"__metadata__": {"epoch": 1}}, b"", "table of strings"),
        ({"__metadata__": {"\ud800": "x"}}, b"", "not Unicode"),
        ({"\ud800": entry(0, 4)}, bytes(4), "not Unicode"),
        ({"a": 1}, b"", "must have dtype, shape and data_offsets"),
        ({"a": {"dtype": "F32", "shape": [1]}}, bytes(4), "must have dtype, shape and data_offsets"),
        ({"a": entry(0, 4, dtype="Q4")}, bytes(4), "unknown dtype 'Q4'"),
        ({"a": entry(0, 4, dtype=["F32"])}, bytes(4), "dtype must be a name"),
        ({"a": entry(0, 4, shape=[True])}, bytes(4), "a shape holds True"),
        ({"a": entry(0, 4, shape=[1.0])}, bytes(4), "a shape holds 1.0"),
        ({"a": entry(0, 4, shape=[-1, -1])}, bytes(4), "a shape holds -1"),
        ({"a": entry(0, 0, shape=[2**40, 2**40, 0])}, b"", "more than 2^63 bytes"),
        ({"a": entry(0, 1, dtype="F4", shape=[3])}, bytes(1), "does not fill whole bytes"),
        ({"a": entry(0, 4, shape=[2])}, bytes(4), "F32 [2] has 8 bytes, not 4"),
        ({"a": {"dtype": "F32", "shape": [0], "data_offsets": [0]}}, b"", "must be two offsets"),
        ({"a": {"dtype": "F32", "shape": [0], "data_offsets": [False, False]}}, b"", "must be two offsets"),
        ({"a": entry(-4, 0)}, b"", "must be two offsets"),
        ({"a": entry(8, 4)}, bytes(8), "holds -1"),
        ({"a": entry(0, 8), "b": entry(4, 12)}, bytes(12), "'b': overlaps"),
        ({"a": entry(0, 4), "b": entry(8, 12)}, bytes(12), "'b': leaves a gap"),
        ({"a": entry(4, 8)}, bytes(8), "'a': leaves a gap"),
        ({"a": entry(0, 8)}, bytes(7), "truncated: its tensors end at byte"),
        ({"a": entry(0, 8)}, bytes(9), "1 bytes too many"),
    ],
)
def test_a_lie_in_the_header_is_one_line_that_names_the_file(
    tmp_path: Path, head: dict | bytes, body: bytes, said: str
):
    path = file_of(tmp_path / "bad.safetensors", head, body)
    with pytest.raises(FormatError) as error:
        read_header(path, "loras/bad.safetensors")
    message = str(error.value)
    assert said in message
    assert message.startswith("loras/bad.safetensors: ")
    assert "\n" not in message and message.isprintable() and len(message) < 400


@pytest.mark.parametrize("size", [0, 3, 8, 20])
def test_a_truncated_file_is_refused(good: Path, size: int):
    os.truncate(good, size)
    with pytest.raises(FormatError):
        read_header(good)


def test_pickles_are_refused_by_name(tmp_path: Path, good: Path):
    import torch

    torch.save({"state_dict": {"a": torch.zeros(3)}}, tmp_path / "zip.safetensors")
    (tmp_path / "bare.bin").write_bytes(pickle.dumps({"a": 1}, protocol=2))
    (tmp_path / "honest.ckpt").write_bytes(good.read_bytes())
    for name in ("zip.safetensors", "bare.bin", "honest.ckpt"):
        with pytest.raises(FormatError, match=r"a pickle, .*convert it"):
            read_header(tmp_path / name)


@pytest.mark.parametrize("length", [640, 896, 1152, 1408])
def test_a_header_whose_length_looks_like_a_pickle_is_read(tmp_path: Path, length: int):
    write_body(tmp_path / "a", [("x" * (length - 56), "U8", [3], b"abc")])
    assert int.from_bytes((tmp_path / "a").read_bytes()[:8], "little") == length
    assert len(read_header(tmp_path / "a").tensors) == 1


def test_a_header_of_gigabytes_is_refused_unread(tmp_path: Path):
    with open(tmp_path / "a", "wb") as file:
        file.write((1 << 30).to_bytes(8, "little"))
        file.truncate(1 << 31)  # sparse
    with pytest.raises(FormatError, match="header length of 1073741824"):
        read_header(tmp_path / "a")


names = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=12).filter(
    lambda n: n != "__metadata__"
)
small_tensors = st.dictionaries(
    names,
    st.tuples(st.sampled_from(["F32", "F16", "U8", "I64"]), st.lists(st.integers(0, 3), max_size=3)),
    max_size=5,
)


@settings(deadline=None, max_examples=150)
@given(
    small_tensors,
    st.dictionaries(st.text(st.characters(exclude_categories=("Cs",))), st.text('aß\n"\\', max_size=5)),
    st.data(),
)
def test_what_is_written_is_read_back_and_by_the_library_too(tensors: dict, metadata: dict, data: st.DataObject):
    blobs = {name: (dtype, shape, b"\x01" * header.byte_size(dtype, shape)) for name, (dtype, shape) in tensors.items()}
    order = data.draw(st.permutations(list(blobs)))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.safetensors"
        head = header_bytes([(name, *blobs[name][:2]) for name in order], metadata)
        path.write_bytes(head + b"".join(blobs[name][2] for name in sorted(blobs)))
        assert len(head) % 8 == 0
        found = read_header(path)
        assert {n: (i.dtype, list(i.shape)) for n, i in found.tensors.items()} == {n: b[:2] for n, b in blobs.items()}
        with safe_open(path, "np") as library:
            assert set(library.keys()) == set(blobs)
            assert (library.metadata() or {}) == metadata == found.metadata


@settings(deadline=None, max_examples=600)
@given(st.data())
def test_mutated_headers_never_crash(data: st.DataObject):
    """Bytes are overwritten, cut out or put in; then it reads, or raises FormatError. What it reads, the library reads."""
    good = {"__metadata__": {"a": "b"}, "x": entry(0, 8), "y": entry(8, 8, shape=[0]), "z": entry(8, 12, "F16", [2, 1])}
    text = json.dumps(good, separators=(",", ":")).encode()
    raw = bytearray(len(text).to_bytes(8, "little") + text + bytes(12))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(raw) - 1))
        piece = data.draw(
            st.one_of(st.binary(max_size=3), st.sampled_from([b"0", b"9", b"-", b"[", b"{", b'"', b",", b"1e5"]))
        )
        raw[at : at + data.draw(st.integers(0, 3))] = piece
        if data.draw(st.booleans()):  # keep the length right, so that the JSON is reached
            raw[:8] = max(0, len(raw) - 8 - 12).to_bytes(8, "little")
        if not raw:
            break
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mutated.safetensors"
        path.write_bytes(raw)
        try:
            found = read_header(path)
        except FormatError as error:
            assert "\n" not in str(error)
            return
        try:
            with safe_open(path, "np") as library:
                assert set(library.keys()) == set(found.tensors)
        except SafetensorError:
            raise AssertionError(f"read what the library refuses: {bytes(raw)!r}") from None


@settings(deadline=None, max_examples=200)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(
                st.sampled_from(["dtype", "shape", "data_offsets", "__metadata__", "a"]), inner, max_size=4
            )
        ),
    )
)
def test_any_json_is_read_or_refused(value: object):
    with tempfile.TemporaryDirectory() as folder:
        path = file_of(
            Path(folder) / "any.safetensors", json.dumps({"a": value, "__metadata__": {}}).encode(), bytes(4)
        )
        try:
            read_header(path)
        except FormatError as error:
            assert "\n" not in str(error)


def test_equal_content_gives_equal_bytes_in_any_order(tmp_path: Path):
    a, b = ("a", "F32", (2,), b"12345678"), ("b", "F16", [], b"xy")
    write_body(tmp_path / "1", [a, b])
    write_body(
        tmp_path / "2",
        iter([("b", "F16", (), lambda: bytearray(b"xy")), ("a", "F32", [2], np.frombuffer(a[3], "<f4"))]),
    )
    raw = (tmp_path / "1").read_bytes()
    assert raw == (tmp_path / "2").read_bytes()
    assert raw[8:].startswith(b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{')
    assert raw.endswith(b"12345678xy")


def test_data_of_another_size_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="a: 7 bytes given"):
        write_body(tmp_path / "a", [("a", "F32", [2], b"1234567")])
    with pytest.raises(ValueError, match=r"cannot be used \(again\)"):
        write_body(tmp_path / "a", [("a", "U8", [1], b"1"), ("a", "U8", [1], b"2")])


@pytest.mark.parametrize("missing", [(), ("copy_file_range",), ("copy_file_range", "sendfile")])
def test_ranges_are_copied_by_any_means(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: tuple[str, ...]):
    """Large enough to take several plain reads; also where a call is there and refuses, as between two file systems."""

    def refuses(*args: object) -> int:
        raise OSError(18, "Invalid cross-device link")

    for name in missing[:1]:
        monkeypatch.setattr(os, name, refuses, raising=False)
    for name in missing[1:]:
        monkeypatch.delattr(os, name, raising=False)
    content = np.random.default_rng(0).bytes(3 * writing.COPY_BYTES + 17)
    source = tmp_path / "source"
    source.write_bytes(content)
    with open(tmp_path / "copy", "wb", buffering=0) as target:
        target.write(b"head")
        copy_ranges(source, [(5, 5), (0, 10), (1, len(content))], target)
        target.write(b"tail")
    assert (tmp_path / "copy").read_bytes() == b"head" + content[:10] + content[1:] + b"tail"


def test_neighbouring_ranges_are_copied_at_once_and_others_in_their_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "source").write_bytes(b"aaaabbbbccccdddd")
    (tmp_path / "other").write_bytes(b"....eeee")
    seen: list[tuple[int, int]] = []
    plain = writing.copy_ranges
    monkeypatch.setattr(writing, "copy_ranges", lambda path, ranges, to: (seen.extend(ranges), plain(path, ranges, to)))
    source, other = tmp_path / "source", tmp_path / "other"
    write_body(tmp_path / "out", [
        ("1", "F32", [1], FileRange(source, 0, 4)), ("2", "F32", [1], FileRange(source, 4, 8)),
        ("3", "F32", [1], FileRange(other, 4, 8)), ("4", "F32", [1], b"ffff"),
        ("5", "F32", [1], FileRange(source, 8, 12)), ("6", "F32", [1], FileRange(source, 12, 16)),
    ])  # fmt: skip
    assert (tmp_path / "out").read_bytes().endswith(b"aaaabbbbeeeeffffccccdddd")
    assert seen == [(0, 8), (4, 8), (8, 16)]


def test_a_source_that_ends_too_early_is_named(tmp_path: Path):
    (tmp_path / "short").write_bytes(b"1234")
    with pytest.raises(FormatError, match="short: ends at byte 4, 8 were expected"):
        write_body(tmp_path / "out", [("a", "F32", [2], FileRange(tmp_path / "short", 0, 8))])


@pytest.mark.parametrize("tensors", [[], [("a", "F32", (2,), bytes(8)), ("ü", "F16", (), bytes(2))]])
def test_metadata_is_spliced_in_as_if_it_had_been_there(tmp_path: Path, tensors: list):
    body = tmp_path / "body"
    write_body(body, tensors)
    metadata = {"b": 'a "quote"', "a": "ü"}
    with open(body, "rb") as file:
        assert spliced(file, metadata) == header_bytes([tensor[:3] for tensor in tensors], metadata)
        assert file.tell() == read_header(body).data_start
