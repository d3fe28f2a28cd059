"""Headers of model files: what good ones say, and how bad ones are refused. Files are made here, byte by byte."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offload_core.files.gguf_header import read_gguf_header
from offload_core.files.model_files import read_models
from offload_core.files.safetensors_header import HeaderError, read_safetensors_header

WIDTH = {"F32": 4, "BF16": 2, "F8_E4M3": 1}


def safetensors(tensors: dict[str, tuple[str, list[int]]], metadata: dict[str, str] | None = None) -> bytes:
    """A safetensors file with zeros for data."""
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": metadata}
    position = 0
    for name, (dtype, shape) in tensors.items():
        size = WIDTH[dtype]
        for length in shape:
            size *= length
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [position, position + size]}
        position += size
    return with_header(json.dumps(header).encode(), position)


def with_header(text: bytes, data_bytes: int = 0) -> bytes:
    return struct.pack("<Q", len(text)) + text + bytes(data_bytes)


def entry(**changes: Any) -> bytes:
    """A file with one tensor of two BF16 values, some fields of it changed."""
    tensor = {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4], **changes}
    return with_header(json.dumps({"a": {key: value for key, value in tensor.items() if value != "gone"}}).encode(), 4)


def test_a_good_file(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(safetensors({"a": ("BF16", [2, 3]), "b": ("F32", []), "c": ("F32", [0, 9])}, {"format": "pt"}))
    tensors = read_safetensors_header(path)
    # "b" and "c" meet at a byte: the empty one may come on either side of it.
    assert {(t.name, t.dtype, t.shape, t.bytes, t.elements) for t in tensors} == {
        ("a", "BF16", (2, 3), 12, 6),
        ("b", "F32", (), 4, 1),
        ("c", "F32", (0, 9), 0, 0),
    }


def test_no_tensors_is_a_file_too(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(with_header(b"{}"))
    assert read_safetensors_header(path) == ()


MALFORMED: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "0 bytes are too few"),
    "seven bytes": (b"1234567", "7 bytes are too few"),
    "length only": (struct.pack("<Q", 0), "says its header has 0 bytes"),
    "length one": (with_header(b"{"), "says its header has 1 bytes"),
    "length past the end": (struct.pack("<Q", 100) + b"{}", "header has 100 bytes; the file has 10"),
    "length huge": (struct.pack("<Q", (1 << 64) - 1) + b"{}", "100000000 are allowed"),
    "length just over the limit": (struct.pack("<Q", 100_000_001) + b"{}", "100000000 are allowed"),
    "a picture": (b"\x89PNG\r\n\x1a\n" + bytes(100), "are allowed"),
    "a web page": (b"<!DOCTYPE html><html>", "are allowed"),
    "not json": (with_header(b"hello"), "not JSON"),
    "not utf-8": (with_header(b'{"\xff": 1}'), "not JSON in UTF-8"),
    "a list": (with_header(b"[]"), r"\[\], not a JSON object"),
    "a number": (with_header(b"12345"), "12345, not a JSON object"),
    "nested without end": (with_header(b"[" * 200_000), "nested too deeply"),
    "a name twice": (with_header(b'{"a": 1, "a": 2}'), "'a' is in the header twice"),
    "metadata a list": (with_header(b'{"__metadata__": []}'), r"__metadata__ is \[\]"),
    "metadata of numbers": (with_header(b'{"__metadata__": {"a": 1}}'), "__metadata__ is"),
    "tensor a number": (with_header(b'{"a": 5}'), "described by 5"),
    "name empty": (with_header(b'{"": {}}'), "not a name"),
    "name with a line break": (with_header(b'{"a\\nb": {}}'), "not a name"),
    "name without end": (with_header(json.dumps({"a" * 5000: {}}).encode()), "not a name"),
    "no dtype": (entry(dtype="gone"), "dtype None"),
    "unknown dtype": (entry(dtype="F12"), "dtype 'F12'"),
    "dtype a list": (entry(dtype=["F32"]), r"dtype \['F32'\]"),
    "no shape": (entry(shape="gone"), "shape None"),
    "shape a number": (entry(shape=2), "shape 2"),
    "negative size": (entry(shape=[-2]), r"shape \[-2\]"),
    "fractional size": (entry(shape=[2.0]), r"shape \[2.0\]"),
    "size true": (entry(shape=[True, 2]), "shape"),
    "huge size": (entry(shape=[1 << 62]), "shape"),
    "sizes whose product overflows": (entry(shape=[1 << 33, 1 << 33]), "does not have 4 bytes"),
    "too many dimensions": (entry(shape=[1] * 17), "at most 16 sizes"),
    "wrong number of bytes": (entry(shape=[3]), "does not have 4 bytes"),
    "no offsets": (entry(data_offsets="gone"), "data_offsets None"),
    "one offset": (entry(data_offsets=[4]), "data_offsets"),
    "backward offsets": (entry(data_offsets=[4, 0]), "data_offsets"),
    "negative offset": (entry(data_offsets=[-4, 0]), "data_offsets"),
    "offsets of text": (entry(data_offsets=["0", "4"]), "data_offsets"),
    "hole at the start": (entry(data_offsets=[4, 8]), "leaves a hole"),
    "overlap": (
        with_header(
            b'{"a": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]},'
            b' "b": {"dtype": "U8", "shape": [4], "data_offsets": [2, 6]}}',
            6,
        ),
        "overlaps",
    ),
    "truncated data": (entry()[:-1], "truncated: 1 of .* 4 bytes are missing; get the file again"),
    "data left over": (
        entry() + b"xyz",
        "too long: 3 bytes lie behind .* do not get it again: cut its last 3 bytes off",
    ),
    "half a byte": (with_header(b'{"a": {"dtype": "F4", "shape": [3], "data_offsets": [0, 1]}}', 1), "does not have"),
}


@pytest.mark.parametrize("fault", MALFORMED)
def test_malformed_files_are_refused_in_one_line(fault: str, tmp_path: Path) -> None:
    data, words = MALFORMED[fault]
    path = tmp_path / "bad.safetensors"
    path.write_bytes(data)
    with pytest.raises(HeaderError, match=words) as caught:
        read_safetensors_header(path)
    message = str(caught.value)
    assert str(path) in message and "\n" not in message and len(message) < len(str(path)) + 250


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_random_bytes_never_do_anything_but_refuse(tmp_path_factory: Any, data: st.DataObject) -> None:
    """Flip bytes of a good file: it is read, or it is refused; nothing else happens."""
    good = bytearray(safetensors({"a.0.w": ("BF16", [4, 4]), "a.1.w": ("F32", [4])}))
    for _ in range(data.draw(st.integers(1, 4))):
        good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "flipped.safetensors"
    path.write_bytes(bytes(good))
    try:
        assert sum(tensor.bytes for tensor in read_safetensors_header(path)) == 48
    except HeaderError as error:
        assert "\n" not in str(error)


# ---- GGUF


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def gguf(
    tensors: list[tuple[str, list[int], int, int]],
    values: list[bytes] | None = None,
    data_bytes: int = 0,
    version: int = 3,
    tensor_count: int | None = None,
) -> bytes:
    """A GGUF file of (name, shape with the fastest dimension first, type, offset)."""
    values = values or []
    count = len(tensors) if tensor_count is None else tensor_count
    head = b"GGUF" + struct.pack("<IQQ", version, count, len(values)) + b"".join(values)
    for name, shape, kind, offset in tensors:
        head += text(name) + struct.pack("<I", len(shape)) + b"".join(struct.pack("<Q", size) for size in shape)
        head += struct.pack("<IQ", kind, offset)
    return head + bytes(-len(head) % 32) + bytes(data_bytes)


VALUES = [
    text("general.architecture") + struct.pack("<I", 8) + text("flux"),
    text("general.quantization_version") + struct.pack("<II", 4, 2),
    text("tokens") + struct.pack("<IIQ", 9, 8, 2) + text("a") + text("b"),
    text("scores") + struct.pack("<IIQ", 9, 6, 3) + bytes(12),
    text("general.alignment") + struct.pack("<II", 4, 32),
]


def test_a_good_gguf(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(gguf([("a.weight", [64, 2], 8, 0), ("b.weight", [8], 0, 160)], VALUES, 192))
    first, second = read_gguf_header(path)
    assert (first.name, first.dtype, first.shape, first.bytes) == ("a.weight", "Q8_0", (2, 64), 136)
    assert (second.dtype, second.bytes) == ("F32", 32)
    path.write_bytes(path.read_bytes() + bytes(7))
    assert read_gguf_header(path) == (first, second), "as those who read such files: what lies behind is left alone"


BAD_GGUF: dict[str, tuple[bytes, str]] = {
    "not gguf": (b"GGML" + bytes(100), "not a GGUF file"),
    "only the magic": (b"GGUF", "truncated"),
    "old version": (gguf([], version=1), "version 1"),
    "big-endian version": (gguf([], version=0x03000000), "version 50331648"),
    "too many tensors": (gguf([], tensor_count=1 << 60), "too many"),
    "more tensors than there are": (gguf([], tensor_count=5), "truncated|not a name"),
    "text without end": (gguf([], [struct.pack("<Q", 1 << 62)]), "a text of"),
    "value past the end": (gguf([], [text("a") + struct.pack("<IQ", 8, 1 << 40)]), "truncated"),
    "unknown value type": (gguf([], [text("a") + struct.pack("<I", 99)]), "unknown type 99"),
    "array without end": (gguf([], [text("a") + struct.pack("<IIQ", 9, 8, 1 << 60)]), "array has"),
    "array of numbers without end": (gguf([], [text("a") + struct.pack("<IIQ", 9, 0, 1 << 60)]), "truncated"),
    "arrays in arrays": (
        gguf([], [text("a") + struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 9], 64),
        "unknown type 9",
    ),
    "alignment of three": (gguf([], [text("general.alignment") + struct.pack("<II", 4, 3)]), "not a power of two"),
    "alignment zero": (gguf([], [text("general.alignment") + struct.pack("<II", 4, 0)]), "not a power of two"),
    "unknown tensor type": (gguf([("a", [32], 77, 0)], data_bytes=32), "type 77"),
    "nine dimensions": (gguf([("a", [1] * 9, 0, 0)], data_bytes=32), "9 dimensions"),
    "half a block": (gguf([("a", [33], 8, 0)], data_bytes=64), "not whole blocks"),
    "askew": (gguf([("a", [1], 0, 4)], data_bytes=64), "askew"),
    "overlap": (gguf([("a", [64], 0, 0), ("b", [8], 0, 32)], data_bytes=512), "inside another"),
    "twice": (gguf([("a", [8], 0, 0), ("a", [8], 0, 32)], data_bytes=64), "twice"),
    "truncated data": (gguf([("a", [64], 0, 0)], data_bytes=255), "truncated, 1 bytes of it are missing; get"),
    "shape overflow": (gguf([("a", [1 << 40, 1 << 40], 0, 0)], data_bytes=64), "truncated"),
    "nameless": (gguf([("", [1], 0, 0)], data_bytes=64), "not a name"),
}


@pytest.mark.parametrize("fault", BAD_GGUF)
def test_bad_gguf_is_refused_in_one_line(fault: str, tmp_path: Path) -> None:
    data, words = BAD_GGUF[fault]
    path = tmp_path / "bad.gguf"
    path.write_bytes(data)
    with pytest.raises(HeaderError, match=words) as caught:
        read_gguf_header(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


# ---- several files


def test_shards_become_one_model_by_any_name(tmp_path: Path) -> None:
    names = [tmp_path / f"m-0000{number}-of-00002.safetensors" for number in (1, 2)]
    names[0].write_bytes(safetensors({"a": ("F32", [4])}))
    names[1].write_bytes(safetensors({"b": ("F32", [2])}))
    index = tmp_path / "m.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": names[0].name, "b": names[1].name}}))
    for given_paths in ([names[0]], names, [index], [names[1], names[0]]):
        (model,) = read_models(given_paths)
        assert model.bytes == 24 and [tensor.name for tensor in model.tensors] == ["a", "b"]


def test_shards_that_do_not_belong_together(tmp_path: Path) -> None:
    first, second = (tmp_path / f"m-0000{number}-of-00002.safetensors" for number in (1, 2))
    first.write_bytes(safetensors({"a": ("F32", [4])}))
    with pytest.raises(HeaderError, match="m-00002-of-00002.safetensors is missing"):
        read_models([first])
    second.write_bytes(safetensors({"a": ("F32", [4])}))
    with pytest.raises(HeaderError, match="tensor 'a' is in both"):
        read_models([first])


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"weight_map": 5}', '{"weight_map": {"a": 5}}', '{"weight_map": {}}']
)
def test_a_bad_index(content: str, tmp_path: Path) -> None:
    index = tmp_path / "m.safetensors.index.json"
    index.write_text(content)
    with pytest.raises(HeaderError, match="index|names 0 files"):
        read_models([index])


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/passwd", "a/b.safetensors", "", "..", "."])
def test_an_index_cannot_point_elsewhere(name: str, tmp_path: Path) -> None:
    index = tmp_path / "m.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(HeaderError, match="not beside it"):
        read_models([index])


def test_a_missing_file_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_models([tmp_path / "none.safetensors"])
