"""Random changes to files: of bytes, of lengths, of parts that change places, of values of JSON.

All draw from the generator that they are given, so that a seed makes the same change again.
"""

from __future__ import annotations

import json
import math
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from random import Random
from typing import Any

WORDS = (
    b"[" * 5000, b"{" * 5000, b"9" * 5000, b"1e999", b"-1", b"NaN", b"inf", b"null", b"true", b'"',
    b'"\\ud800"', b'"\\u0000"', b"\0", b"\r", b"'", b"{}", b"[]", b"x" * 200_000,
    "\u2028".encode(),
)  # fmt: skip
Span = tuple[int, int]  # of bytes
HUGE = (2**31, 2**31 - 1, 2**32 - 1, 2**30, 2**16, 2**15, 2**63 - 1, 2**64 - 1, 0, 1)
BOXES = (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"edts", b"udta")  # of MP4, that hold others
TEXTS = ("toml", "jsonl", "csv", "lexicon")
MASTERS = ("18538067", "1654ae6b", "ae", "1f43b675", "e0", "a0")  # of Matroska, that hold others

# ---- parts of files ----------------------------------------------------------------------------


def _boxes(data: bytes, start: int, end: int) -> Iterator[Span]:
    """Of MP4 and MOV, those within others too."""
    while start + 8 <= end:
        size = int.from_bytes(data[start : start + 4], "big")
        if size < 8 or start + size > end:
            return
        yield start, start + size
        if data[start + 4 : start + 8] in BOXES:
            yield from _boxes(data, start + 8, start + size)
        start += size


def _elements(data: bytes, start: int, end: int) -> Iterator[Span]:
    """Of Matroska and WebM, those within others too."""
    while start < end:
        length = 9 - data[start].bit_length()  # of the name; zeros at the front tell it
        place = start + length
        if length > 4 or place >= end:
            return
        width = 9 - data[place].bit_length()  # of the size, likewise
        size = int.from_bytes(data[place : place + width], "big") & ((1 << 7 * width) - 1)
        body = place + width
        if width > 8 or body + size > end:
            return
        yield start, body + size
        if data[start:place].hex() in MASTERS:
            yield from _elements(data, body, body + size)
        start = body + size


def _png_chunks(data: bytes) -> Iterator[Span]:
    start = 8
    while start + 12 <= len(data):
        end = start + 12 + int.from_bytes(data[start : start + 4], "big")
        yield start, min(end, len(data))
        start = end


def _riff_chunks(data: bytes) -> Iterator[Span]:
    start = 12
    while start + 8 <= len(data):
        size = int.from_bytes(data[start + 4 : start + 8], "little")
        end = start + 8 + size + size % 2
        yield start, min(end, len(data))
        start = end


def _jpeg_segments(data: bytes) -> Iterator[Span]:
    start = 2
    while start + 4 <= len(data) and data[start] == 0xFF and data[start + 1] != 0xDA:
        end = start + 2 + int.from_bytes(data[start + 2 : start + 4], "big")
        yield start, min(end, len(data))
        start = end


def _tiff_entries(data: bytes) -> Iterator[Span]:
    start = int.from_bytes(data[4:8], "little")
    for number in range(int.from_bytes(data[start : start + 2], "little")):
        yield start + 2 + 12 * number, start + 14 + 12 * number


def _lines(data: bytes) -> Iterator[Span]:
    start = 0
    for line in data.splitlines(keepends=True):
        yield start, start + len(line)
        start += len(line)


PARTS: dict[str, Callable[[bytes], Iterator[Span]]] = {
    "mp4": lambda data: _boxes(data, 0, len(data)),
    "mov": lambda data: _boxes(data, 0, len(data)),
    "webm": lambda data: _elements(data, 0, len(data)),
    "mkv": lambda data: _elements(data, 0, len(data)),
    "png": _png_chunks,
    "apng": _png_chunks,
    "webp": _riff_chunks,
    "jpg": _jpeg_segments,
    "tif": _tiff_entries,
    "toml": _lines,
    "jsonl": _lines,
    "csv": _lines,
}


def _span(data: bytes, kind: str, random: Random) -> Span:
    """A part of a file of some kind, or any few bytes."""
    parts = list(PARTS[kind](data)) if kind in PARTS else []
    if parts and random.random() < 0.7:
        return random.choice(parts)
    start = random.randrange(len(data))
    return start, min(len(data), start + random.choice((1, 4, 16, 100)))


# ---- changes of bytes --------------------------------------------------------------------------


def _bytes(data: bytes, kind: str, random: Random, others: Sequence[bytes]) -> bytes:
    """A few bytes anywhere."""
    del kind, others
    changed = bytearray(data)
    for _ in range(random.choice((1, 1, 2, 8, 40))):
        changed[random.randrange(len(data))] = random.choice((0, 0x7F, 0x80, 0xFF, _byte(random)))
    return bytes(changed)


def _byte(random: Random) -> int:
    return random.randrange(256)


def _header(data: bytes, kind: str, random: Random, others: Sequence[bytes]) -> bytes:
    """A few bytes at the front."""
    front = min(len(data), random.choice((16, 64, 256, 1024)))
    return _bytes(data[:front], kind, random, others) + data[front:]


def _length(data: bytes, kind: str, random: Random, others: Sequence[bytes]) -> bytes:
    """A number of the file becomes a huge one: at the front of a part, or anywhere."""
    del others
    start, end = _span(data, kind, random)
    place = random.randrange(start, min(end, start + 40))
    width = random.choice((1, 2, 4, 8))
    number = random.choice(HUGE) % (1 << 8 * width)
    order = random.choice(("big", "little"))
    return data[:place] + number.to_bytes(width, order) + data[place + width :]


def _cut(data: bytes, kind: str, random: Random, others: Sequence[bytes]) -> bytes:
    """The file ends early."""
    del others
    return data[: random.choice((random.randrange(len(data)), _span(data, kind, random)[0]))]


def _swapped(data: bytes, kind: str, random: Random, others: Sequence[bytes]) -> bytes:
    """Two parts change places."""
    del others
    (a, b), (c, d) = sorted((_span(data, kind, random), _span(data, kind, random)))
    if c < b:  # one within the other
        return data[:a] + data[c:d] + data[b:]
    return data[:a] + data[c:d] + data[b:c] + data[a:b] + data[d:]


def _repeated(data: bytes, kind: str, random: Random, others: Sequence[bytes]) -> bytes:
    """A part stands there twice, or is missing."""
    del others
    start, end = _span(data, kind, random)
    return data[:start] + data[start:end] * random.choice((0, 2, 2, 50)) + data[end:]


def _foreign(data: bytes, kind: str, random: Random, others: Sequence[bytes]) -> bytes:
    """A part of another file in place of one: another stream, another header."""
    other = random.choice(others)
    start, end = _span(data, kind, random)
    spans = [_span(other, kind, random) for _ in range(20)]
    alike = [one for one in spans if other[slice(*one)][4:8] == data[start:end][4:8]]
    first, last = random.choice(alike or spans)
    return data[:start] + other[first:last] + data[end:]


def _told(data: bytes, kind: str, random: Random, others: Sequence[bytes]) -> bytes:
    """Something else in place of what follows a sign of text."""
    del kind, others
    signs = [place + 1 for place, byte in enumerate(data) if byte in b"=:,"] or [0]
    start = random.choice(signs)
    return data[:start] + random.choice(WORDS) + data[start + random.randrange(20) :]


CHANGES = (_bytes, _header, _length, _cut, _swapped, _repeated, _foreign)


def changed(data: bytes, kind: str, random: Random, others: Sequence[bytes]) -> bytes:
    """The file after one to three random changes; sums that tell of changes are made anew."""
    changes = (*CHANGES, _told, _told, _told) if kind in TEXTS else CHANGES
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        data = random.choice(changes)(data, kind, random, others) or b"\0"
    if kind in ("png", "apng") and random.random() < 0.8:
        data = with_sums(data)
    return data


def with_sums(data: bytes) -> bytes:
    """A PNG file whose chunks have the checksums of what they hold."""
    whole = bytearray(data)
    for start, end in _png_chunks(data):
        if end - start >= 12:
            whole[end - 4 : end] = struct.pack(">I", zlib.crc32(whole[start + 4 : end - 4]))
    return bytes(whole)


# ---- changes of values -------------------------------------------------------------------------


def _deep(depth: int) -> list[Any]:
    nested: list[Any] = []
    for _ in range(depth):
        nested = [nested]
    return nested


VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 3, 7, 10**4, 2**31, 2**63, 10**30, -(10**30), 10**400, 0.5,
    -0.5, 1e-300, 1e308, math.nan, math.inf, -math.inf, "", "x", "NaN", "12", "-1", "../..", "\0",
    "\ud800", "\n", "x" * 3000, [], {}, [1, 2], [[]], {"a": {"b": []}}, [-1, -1],
    [10**9, 10**9], _deep(100),
)  # fmt: skip


def places(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Every container of a tree with every key or index in it."""
    for key in [*tree] if isinstance(tree, dict) else range(len(tree)):
        yield tree, key
        if isinstance(tree[key], dict | list):
            yield from places(tree[key])


def with_other_values(tree: Any, random: Random, values: Sequence[Any] = VALUES) -> Any:
    """A copy of a tree of plain values in which one to three are wrong, missing or elsewhere."""
    tree = json.loads(json.dumps(tree))
    for _ in range(random.choice((1, 1, 2, 3))):
        found = list(places(tree))
        if not found:
            break
        holder, key = random.choice(found)
        _alter(holder, key, random, values, found)
    return tree


def _alter(
    holder: Any, key: Any, random: Random, values: Sequence[Any], found: Sequence[tuple[Any, Any]]
) -> None:
    what = random.random()
    if what < 0.5:
        holder[key] = random.choice(values)
    elif what < 0.6:
        del holder[key]
    elif what < 0.7 and isinstance(holder, dict):
        holder[random.choice(("unknown", "", "format", "0", "-1", "9" * 40))] = holder.pop(key)
    elif what < 0.8:
        other, name = random.choice(found)
        holder[key] = json.loads(json.dumps(other[name]))
    elif isinstance(holder[key], int | float) and not isinstance(holder[key], bool):
        factor = random.choice((-1, 0, 2, 0.5, 1000, 10**9, 1.0))
        with suppress(OverflowError):
            holder[key] = holder[key] * factor
    else:
        holder[key] = random.choice(([holder[key]], {"a": holder[key]}, str(holder[key])))
