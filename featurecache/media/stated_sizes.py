"""Containers that state how many bytes of sound and pictures they hold: WAV, AVI, AIFF, CAF, ASF, MP4, Matroska, …

Each function takes an open file and its size; it gives the byte where the media end, or should, and how many of its
bytes the file lacks, or None where the header states no size that can be believed. Writers that cannot go back
leave 0, or the largest number, or count their own header; none of that makes a file cut short.
Sources: the RIFF, OpenDML, RF64 (EBU 3306), AIFF, AU, CAF, ASF and Matroska (RFC 9559) specifications.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import BinaryIO

Stated = tuple[int, int] | None
MAX_CHUNKS = 200_000
PLACEHOLDER_SLACK = 1 << 16  # writers subtract their header from the largest number
HEADER_SLACK = 8  # beyond the header itself, which some writers count as data
UNKNOWN_WORDS = (1 << 31, 1 << 32)
CLUSTER, SEGMENT, VOID = b"\x1f\x43\xb6\x75", b"\x18\x53\x80\x67", b"\xec"
CUES, TAGS = b"\x1c\x53\xbb\x6b", b"\x12\x54\xc3\x67"
W64_DATA = bytes.fromhex("64617461f3acd3118cd100c04f8edb8a")
ASF_HEADER = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
ASF_DATA = bytes.fromhex("3626b2758e66cf11a6d900aa0062ce6c")


def wav_size(file: BinaryIO, size: int) -> Stated:
    """Of RIFF, RF64 and BW64: the chunk `data`, whose size is believed unless that of the whole file contradicts it."""
    head = _read(file, 0, 12)
    if head[8:12] != b"WAVE" or head[:4] not in (b"RIFF", b"RF64", b"BW64"):
        return None
    riff_end, place, long_size = 8 + _little(head[4:8]), 12, None
    for _ in range(MAX_CHUNKS):
        chunk = _read(file, place, 8)
        if len(chunk) < 8:
            return None
        length = _little(chunk[4:])
        if chunk[:4] == b"ds64":
            sizes = _read(file, place + 8, 16)
            riff_end, long_size = 8 + _little(sizes[:8]), _little(sizes[8:16])
        if chunk[:4] == b"data":
            length = long_size if long_size is not None and length == 0xFFFFFFFF else length
            end = place + 8 + length
            contradicted = riff_end < end and (riff_end <= size or end - riff_end > place + 2 * HEADER_SLACK)
            judged = None if _placeholder(length) or contradicted else _judged(end, size, place + 8)
            return judged and (size, judged[1])  # other chunks may follow
        place += 8 + length + length % 2
    return None


def w64_size(file: BinaryIO, size: int) -> Stated:
    """Of Sony's Wave64: the chunk `data`; lengths count the 24 bytes of a chunk's own header."""
    place = 40
    for _ in range(MAX_CHUNKS):
        chunk = _read(file, place, 24)
        length = _little(chunk[16:24])
        if len(chunk) < 24 or length < 24:
            return None
        if chunk[:16] == W64_DATA:
            judged = None if length == 24 or length >> 62 else _judged(place + length, size, place + 24)
            return judged and (size, judged[1])
        place += length + -length % 8
    return None


def avi_size(file: BinaryIO, size: int) -> Stated:
    """Of RIFF AVI and its OpenDML continuations: the list `movi` of the last one."""
    place, found = 0, None
    for _ in range(MAX_CHUNKS):
        head = _read(file, place, 12)
        if len(head) < 12 or head[:4] != b"RIFF" or head[8:12] not in (b"AVI ", b"AVIX"):
            break
        found = _movi(file, size, place + 12)
        length = _little(head[4:8])
        if found is None or _placeholder(length):
            return found
        place += 8 + length + length % 2
        if found[1]:
            return None if place <= size else found  # contradicted
    return found


def _movi(file: BinaryIO, size: int, place: int) -> Stated:
    for _ in range(MAX_CHUNKS):
        chunk = _read(file, place, 12)
        if len(chunk) < 12:
            return None
        length = _little(chunk[4:8])
        if chunk[:4] == b"LIST" and chunk[8:12] == b"movi":
            judged = None if _placeholder(length) else _judged(place + 8 + length, size, HEADER_SLACK)
            return judged and (size, judged[1])  # an index follows, which libav needs
        place += 8 + length + length % 2
    return None


def aiff_size(file: BinaryIO, size: int) -> Stated:
    """Of AIFF and AIFF-C: the chunk SSND."""
    place = 12
    for _ in range(MAX_CHUNKS):
        chunk = _read(file, place, 8)
        if len(chunk) < 8:
            return None
        length = _big(chunk[4:])
        if chunk[:4] == b"SSND":
            judged = None if _placeholder(length) else _judged(place + 8 + length, size, place + 8)
            return judged and (size, judged[1])  # other chunks may follow
        place += 8 + length + length % 2
    return None


def au_size(file: BinaryIO, size: int) -> Stated:
    """Of Sun's and NeXT's AU."""
    head = _read(file, 0, 12)
    if head[:4] != b".snd" or _placeholder(_big(head[8:12])):
        return None
    return _judged(_big(head[4:8]) + _big(head[8:12]), size, _big(head[4:8]))


def sox_size(file: BinaryIO, size: int) -> Stated:
    """Of SoX's native format: 32-bit samples after a header, in either byte order."""
    head = _read(file, 0, 16)
    number = {b".SoX": _little, b"XoS.": _big}.get(head[:4])
    if number is None or not number(head[8:16]):
        return None
    return _judged(4 + number(head[4:8]) + 4 * number(head[8:16]), size, 0)


def caf_size(file: BinaryIO, size: int) -> Stated:
    """Of Apple's CAF: the chunk `data`, whose size is -1 while it is written."""
    place = 8
    for _ in range(MAX_CHUNKS):
        chunk = _read(file, place, 12)
        if len(chunk) < 12:
            return None
        length = _big(chunk[4:])
        if chunk[:4] == b"data":
            judged = None if length >> 63 else _judged(place + 12 + length, size, 0)
            return judged and (size, judged[1])  # the table of packets follows
        place += 12 + length
    return None


def asf_size(file: BinaryIO, size: int) -> Stated:
    """Of ASF (wma, wmv): the data object."""
    place = 0
    for _ in range(MAX_CHUNKS):
        head = _read(file, place, 24)
        length = _little(head[16:24])
        if len(head) < 24 or (not place and head[:16] != ASF_HEADER):
            return None
        if head[:16] == ASF_DATA:
            judged = None if length <= 50 else _judged(place + length, size, 0)  # no packets: a broadcast
            return judged and (size, judged[1])
        if length < 24:
            return None
        place += length
    return None


def mov_size(file: BinaryIO, size: int) -> Stated:
    """Of MP4, QuickTime and 3GP in fragments, or within the index. Media of one piece are judged by their index."""
    place, fragments = 0, False
    for _ in range(MAX_CHUNKS):
        head = _read(file, place, 16)
        if len(head) < 8:
            return (size, 0) if place == size else None
        length, header = _big(head[:4]), 8
        if length == 1:
            length, header = _big(head[8:16]), 16
        if length < header:  # 0: a box up to the end of the file
            return None
        place, box = place + length, head[4:8]
        fragments |= box == b"moof"
        if place > size:
            return (size, place - size) if box in (b"moov", b"moof") or (box == b"mdat" and fragments) else None
    return None


def matroska_size(file: BinaryIO, size: int) -> Stated:
    """Of Matroska and WebM: the clusters of the segment."""
    place, segment_end, last = 0, None, b""
    for _ in range(MAX_CHUNKS):
        element, start, length = _element(file, place)
        end = None if length is None else start + length
        if element == SEGMENT:
            place, segment_end = start, end
            continue
        if not element or end is None or end > size:
            break
        place = end
        last = last if element == VOID else element
        if segment_end is not None and place >= segment_end:
            return size, 0
    if segment_end is None or segment_end <= size:
        return None if element != CLUSTER or end is None else (size, max(0, end - size))
    return size, 0 if element not in (b"", CLUSTER) and last in (CLUSTER, CUES, TAGS) else segment_end - size


def _element(file: BinaryIO, place: int) -> tuple[bytes, int, int | None]:
    """Return the id of an EBML element, where its content begins and how long that is; None for an unknown length."""
    head = _read(file, place, 12)
    id_bytes = 9 - head[0].bit_length() if head else 9
    if id_bytes > 4 or len(head) <= id_bytes:
        return b"", 0, 0
    length_bytes = 9 - head[id_bytes].bit_length()
    content = id_bytes + length_bytes
    if length_bytes > 8 or len(head) < content:
        return b"", 0, 0
    length = _big(head[id_bytes:content]) & ((1 << 7 * length_bytes) - 1)
    unknown = length == (1 << 7 * length_bytes) - 1
    return head[:id_bytes], place + content, None if unknown else length


STATED_SIZES: dict[str, Callable[[BinaryIO, int], Stated]] = {
    "wav": wav_size, "w64": w64_size, "avi": avi_size, "aiff": aiff_size, "au": au_size, "sox": sox_size,
    "caf": caf_size, "asf": asf_size, "mov": mov_size, "matroska": matroska_size,
}  # fmt: skip
"""libav's name of a container format -> what its header states."""


def _judged(end: int, size: int, slack: int) -> tuple[int, int]:
    lacking = end - size
    return end, lacking if lacking > slack + HEADER_SLACK else 0


def _placeholder(length: int) -> bool:
    return length == 0 or any(abs(length - word) <= PLACEHOLDER_SLACK for word in UNKNOWN_WORDS)


def _read(file: BinaryIO, place: int, num_bytes: int) -> bytes:
    return os.pread(file.fileno(), num_bytes, place) if place < 1 << 62 else b""


def _little(data: bytes) -> int:
    return int.from_bytes(data, "little")


def _big(data: bytes) -> int:
    return int.from_bytes(data, "big")
