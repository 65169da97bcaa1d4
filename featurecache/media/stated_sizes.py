"""Containers that state the number of their media bytes: WAV, AVI, AIFF, CAF, ASF, MP4, Matroska, …

Each function takes an open file and its size. It returns the position where the media end, or should end, and the
number of bytes that the file lacks, or None if the header states no plausible size. Writers that cannot seek back leave
0, or the largest number, or count their own header; such a file is not cut short. Sources: the RIFF, OpenDML, RF64 (EBU
3306), AIFF, AU, CAF, ASF and Matroska (RFC 9559) specifications.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import BinaryIO

StatedEnd = tuple[int, int] | None
"""Position of the end of the media, and number of missing bytes; None if the header states no plausible size."""
MAX_CHUNKS = 200_000
PLACEHOLDER_SLACK = 1 << 16  # some writers subtract their header from the largest number
HEADER_SLACK = 8  # tolerance beyond the header itself, which some writers count as data
UNKNOWN_WORDS = (1 << 31, 1 << 32)
CLUSTER, SEGMENT, VOID = b"\x1f\x43\xb6\x75", b"\x18\x53\x80\x67", b"\xec"
CUES, TAGS = b"\x1c\x53\xbb\x6b", b"\x12\x54\xc3\x67"
W64_DATA = bytes.fromhex("64617461f3acd3118cd100c04f8edb8a")
ASF_HEADER = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
ASF_DATA = bytes.fromhex("3626b2758e66cf11a6d900aa0062ce6c")


def wav_size(file: BinaryIO, size: int) -> StatedEnd:
    """Read the chunk `data` of RIFF, RF64 or BW64, unless the stated size of the whole file contradicts it."""
    head = _read(file, 0, 12)
    if head[8:12] != b"WAVE" or head[:4] not in (b"RIFF", b"RF64", b"BW64"):
        return None
    riff_end, offset, long_size = 8 + _little(head[4:8]), 12, None
    for _ in range(MAX_CHUNKS):
        chunk = _read(file, offset, 8)
        if len(chunk) < 8:
            return None
        length = _little(chunk[4:])
        if chunk[:4] == b"ds64":
            sizes = _read(file, offset + 8, 16)
            riff_end, long_size = 8 + _little(sizes[:8]), _little(sizes[8:16])
        if chunk[:4] == b"data":
            length = long_size if long_size is not None and length == 0xFFFFFFFF else length
            end = offset + 8 + length
            # Some writers state a wrong size of the chunk or of the file; then neither tells what is missing.
            contradicted = riff_end < end and (riff_end <= size or end - riff_end > offset + 2 * HEADER_SLACK)
            stated = None if _is_placeholder(length) or contradicted else _end_and_missing(end, size, offset + 8)
            return stated and (size, stated[1])  # other chunks may follow
        offset += 8 + length + length % 2
    return None


def w64_size(file: BinaryIO, size: int) -> StatedEnd:
    """Read the chunk `data` of Sony's Wave64, whose lengths include the 24 bytes of a chunk's header."""
    offset = 40
    for _ in range(MAX_CHUNKS):
        chunk = _read(file, offset, 24)
        length = _little(chunk[16:24])
        if len(chunk) < 24 or length < 24:
            return None
        if chunk[:16] == W64_DATA:
            stated = None if length == 24 or length >> 62 else _end_and_missing(offset + length, size, offset + 24)
            return stated and (size, stated[1])
        offset += length + -length % 8
    return None


def avi_size(file: BinaryIO, size: int) -> StatedEnd:
    """Read the list `movi` of RIFF AVI, in the last of its OpenDML continuations."""
    offset, stated = 0, None
    for _ in range(MAX_CHUNKS):
        head = _read(file, offset, 12)
        if len(head) < 12 or head[:4] != b"RIFF" or head[8:12] not in (b"AVI ", b"AVIX"):
            break
        stated = _movi(file, size, offset + 12)
        length = _little(head[4:8])
        if stated is None or _is_placeholder(length):
            return stated
        offset += 8 + length + length % 2
        if stated[1]:
            return None if offset <= size else stated  # the size of the RIFF chunk contradicts that of its list
    return stated


def _movi(file: BinaryIO, size: int, offset: int) -> StatedEnd:
    for _ in range(MAX_CHUNKS):
        chunk = _read(file, offset, 12)
        if len(chunk) < 12:
            return None
        length = _little(chunk[4:8])
        if chunk[:4] == b"LIST" and chunk[8:12] == b"movi":
            stated = None if _is_placeholder(length) else _end_and_missing(offset + 8 + length, size, HEADER_SLACK)
            return stated and (size, stated[1])  # an index follows, which libav needs
        offset += 8 + length + length % 2
    return None


def aiff_size(file: BinaryIO, size: int) -> StatedEnd:
    """Read the chunk SSND of AIFF and AIFF-C."""
    offset = 12
    for _ in range(MAX_CHUNKS):
        chunk = _read(file, offset, 8)
        if len(chunk) < 8:
            return None
        length = _big(chunk[4:])
        if chunk[:4] == b"SSND":
            stated = None if _is_placeholder(length) else _end_and_missing(offset + 8 + length, size, offset + 8)
            return stated and (size, stated[1])  # other chunks may follow
        offset += 8 + length + length % 2
    return None


def au_size(file: BinaryIO, size: int) -> StatedEnd:
    """Read the header of Sun's and NeXT's AU."""
    head = _read(file, 0, 12)
    if head[:4] != b".snd" or _is_placeholder(_big(head[8:12])):
        return None
    return _end_and_missing(_big(head[4:8]) + _big(head[8:12]), size, _big(head[4:8]))


def sox_size(file: BinaryIO, size: int) -> StatedEnd:
    """Read the header of SoX's native format, which 32-bit samples follow, in either byte order."""
    head = _read(file, 0, 16)
    read_number = {b".SoX": _little, b"XoS.": _big}.get(head[:4])
    if read_number is None or not read_number(head[8:16]):
        return None
    return _end_and_missing(4 + read_number(head[4:8]) + 4 * read_number(head[8:16]), size, 0)


def caf_size(file: BinaryIO, size: int) -> StatedEnd:
    """Read the chunk `data` of Apple's CAF, whose size is -1 while the file is being written."""
    offset = 8
    for _ in range(MAX_CHUNKS):
        chunk = _read(file, offset, 12)
        if len(chunk) < 12:
            return None
        length = _big(chunk[4:])
        if chunk[:4] == b"data":
            stated = None if length >> 63 else _end_and_missing(offset + 12 + length, size, 0)
            return stated and (size, stated[1])  # the table of packets follows
        offset += 12 + length
    return None


def asf_size(file: BinaryIO, size: int) -> StatedEnd:
    """Read the data object of ASF (wma, wmv)."""
    offset = 0
    for _ in range(MAX_CHUNKS):
        head = _read(file, offset, 24)
        length = _little(head[16:24])
        if len(head) < 24 or (not offset and head[:16] != ASF_HEADER):
            return None
        if head[:16] == ASF_DATA:
            stated = None if length <= 50 else _end_and_missing(offset + length, size, 0)  # no packets: a broadcast
            return stated and (size, stated[1])
        if length < 24:
            return None
        offset += length
    return None


def mov_size(file: BinaryIO, size: int) -> StatedEnd:
    """Read the boxes of MP4, QuickTime and 3GP: a file may end inside its index or a fragment.

    Media without fragments are checked against their index in `track`.
    """
    offset, fragments = 0, False
    for _ in range(MAX_CHUNKS):
        head = _read(file, offset, 16)
        if len(head) < 8:
            return (size, 0) if offset == size else None
        length, header = _big(head[:4]), 8
        if length == 1:
            length, header = _big(head[8:16]), 16
        if length < header:  # 0: a box up to the end of the file
            return None
        offset, box = offset + length, head[4:8]
        fragments |= box == b"moof"
        if offset > size:
            return (size, offset - size) if box in (b"moov", b"moof") or (box == b"mdat" and fragments) else None
    return None


def matroska_size(file: BinaryIO, size: int) -> StatedEnd:
    """Read the clusters of the segment of Matroska and WebM."""
    offset, segment_end, last = 0, None, b""
    for _ in range(MAX_CHUNKS):
        element, start, length = _element(file, offset)
        end = None if length is None else start + length
        if element == SEGMENT:
            offset, segment_end = start, end
            continue
        if not element or end is None or end > size:
            break
        offset = end
        last = last if element == VOID else element
        if segment_end is not None and offset >= segment_end:
            return size, 0
    if segment_end is None or segment_end <= size:
        return None if element != CLUSTER or end is None else (size, max(0, end - size))
    return size, 0 if element not in (b"", CLUSTER) and last in (CLUSTER, CUES, TAGS) else segment_end - size


def _element(file: BinaryIO, offset: int) -> tuple[bytes, int, int | None]:
    """Return the id of an EBML element, the position of its content, and its length; None for an unknown length."""
    head = _read(file, offset, 12)
    id_bytes = 9 - head[0].bit_length() if head else 9
    if id_bytes > 4 or len(head) <= id_bytes:
        return b"", 0, 0
    length_bytes = 9 - head[id_bytes].bit_length()
    content = id_bytes + length_bytes
    if length_bytes > 8 or len(head) < content:
        return b"", 0, 0
    length = _big(head[id_bytes:content]) & ((1 << 7 * length_bytes) - 1)
    unknown = length == (1 << 7 * length_bytes) - 1
    return head[:id_bytes], offset + content, None if unknown else length


STATED_SIZES: dict[str, Callable[[BinaryIO, int], StatedEnd]] = {
    "wav": wav_size, "w64": w64_size, "avi": avi_size, "aiff": aiff_size, "au": au_size, "sox": sox_size,
    "caf": caf_size, "asf": asf_size, "mov": mov_size, "matroska": matroska_size,
}  # fmt: skip
"""libav's name of a container format -> function that reads the stated size."""


def _end_and_missing(end: int, size: int, slack: int) -> tuple[int, int]:
    """Return the stated end and the number of missing bytes; up to `slack` of them are an error of the writer."""
    missing = end - size
    return end, missing if missing > slack + HEADER_SLACK else 0


def _is_placeholder(length: int) -> bool:
    """Whether a length stands for an unknown one: 0, or nearly the largest number."""
    return length == 0 or any(abs(length - word) <= PLACEHOLDER_SLACK for word in UNKNOWN_WORDS)


def _read(file: BinaryIO, offset: int, num_bytes: int) -> bytes:
    return os.pread(file.fileno(), num_bytes, offset) if offset < 1 << 62 else b""


def _little(data: bytes) -> int:
    return int.from_bytes(data, "little")


def _big(data: bytes) -> int:
    return int.from_bytes(data, "big")
