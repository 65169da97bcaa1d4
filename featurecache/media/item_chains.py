"""Containers that are items laid end to end, each with its own length: MPEG audio, ADTS, AC-3, Ogg, MPEG-TS, …

The last items are found from the file's end: a place where several follow each other, the last of which ends the sound.
What comes after is a tag, padding or leftovers, or the beginning of an item that the file does not hold whole.

`chain_end` and `amr_end` take an open file and its size; they give the byte after the last whole item and how many
bytes the file lacks of the next, 0 where no item begins there, or None where no chain is found.
Sources: ISO 11172-3, 13818-1 and 13818-7, ATSC A/52, RFC 3533, RFC 4867, the FLV and WavPack specifications.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import BinaryIO

WINDOW_BYTES = 1 << 15
MAX_TRIED = 20_000  # places; a file made to have more is not judged
MAX_WINDOW_BYTES = 1 << 24  # a tag may hold pictures; what follows even longer leftovers is not looked for

Item = tuple[int, object] | None
"""Length in bytes, and what all items of one chain have in common."""
HEAD_BYTES = 27 + 255  # of the longest header, that of an Ogg page
UNKNOWN_BYTES = HEAD_BYTES + 1  # an item whose own header is not there whole


@dataclass(frozen=True)
class Chain:
    """One kind of item."""

    begins: re.Pattern[bytes]
    least_bytes: int
    item: Callable[[bytes], Item]
    """The first bytes of an item, at least `least_bytes` of them -> the item; None where they are of none."""
    min_items: int = 3
    """So many in a row are no accident."""
    mark_bytes: int = 2
    """How many bytes at the beginning of all items of a chain are the same."""

    def last(self, data: bytes, from_start: bool) -> tuple[int, int] | None:
        """Return the end of the last chain in the tail of a file and what is lacking there.

        With `from_start` the tail is the whole file, in which one item is enough.
        """
        found, place, tried = None, 0, 0
        while tried < MAX_TRIED and (match := self.begins.search(data, place)) is not None:
            place, tried = match.start(), tried + 1
            end, count, last = self._follow(data, place)
            if count >= (1 if from_start and found is None else self.min_items):
                found = end, self._lacking(data, end, last)
                place = end
            else:
                place += 1
        if found is None and from_start and (alone := self._at(data, 0)) is not None:
            return len(data), max(0, alone[0] - len(data))
        return None if tried == MAX_TRIED else found

    def _follow(self, data: bytes, place: int) -> tuple[int, int, tuple[object, bytes]]:
        count, kind, head = 0, None, b""
        while (item := self._at(data, place)) is not None and (not count or item[1] == kind):
            if place + item[0] > len(data):
                break
            kind, head, count = item[1], data[place : place + self.mark_bytes], count + 1
            place += item[0]
        return place, count, (kind, head)

    def _lacking(self, data: bytes, end: int, last: tuple[object, bytes]) -> int:
        """Return how many bytes are missing of an item that begins at `end`; 0 where none does."""
        rest, (kind, mark) = data[end : end + HEAD_BYTES], last
        if not rest.strip(b"\0"):
            return 0  # padding
        if len(rest) < self.least_bytes:
            return 1 if rest[: self.mark_bytes] == mark[: len(rest)] else 0
        item = self.item(rest)
        if item is None or item[1] != kind:
            return 0
        return max(0, end + item[0] - len(data))

    def _at(self, data: bytes, place: int) -> Item:
        head = data[place : place + HEAD_BYTES]
        item = self.item(head) if len(head) >= self.least_bytes else None
        return item if item is not None and item[0] > 0 else None


# kb/s by index, per (MPEG 1, layer); MPEG 2 and 2.5 share theirs.
BITRATES = {
    (True, 1): (0, 32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (True, 2): (0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (0, 32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 3): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
RATES = (44_100, 48_000, 32_000)


def mpeg_audio_frame(head: bytes) -> Item:
    """MPEG 1, 2 and 2.5 audio, layers I to III, of a stated bit rate."""
    version, layer, bitrate, rate = head[1] >> 3 & 3, 4 - (head[1] >> 1 & 3), head[2] >> 4, head[2] >> 2 & 3
    if head[0] != 0xFF or head[1] < 0xE0 or version == 1 or layer == 4 or bitrate in (0, 15) or rate == 3:
        return None
    first = version == 3
    per_second = RATES[rate] >> {3: 0, 2: 1, 0: 2}[version]
    bits = 1000 * BITRATES[first, layer][bitrate]
    padding = head[2] >> 1 & 1
    if layer == 1:
        return 4 * (12 * bits // per_second + padding), (version, layer, rate)
    return (72 if layer == 3 and not first else 144) * bits // per_second + padding, (version, layer, rate)


def adts_frame(head: bytes) -> Item:
    """AAC with a header per frame."""
    if head[0] != 0xFF or head[1] & 0xF6 != 0xF0:
        return None
    length = (head[3] & 3) << 11 | head[4] << 3 | head[5] >> 5
    return (length, (head[1], head[2])) if length >= 7 else None


AC3_WORDS = (64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384, 448, 512, 640, 768, 896, 1024, 1152, 1280)
"""16-bit words of a frame at 48 kHz, by half the frame size code."""


def ac3_frame(head: bytes) -> Item:
    """AC-3, and E-AC-3, whose frames state their length."""
    if head[:2] != b"\x0b\x77":
        return None
    rate, code, stream_id = head[4] >> 6, head[4] & 63, head[5] >> 3
    if stream_id > 10:
        return 2 * (((head[2] & 7) << 8 | head[3]) + 1), "E-AC-3"
    if rate == 3 or code >= 2 * len(AC3_WORDS):
        return None
    words = AC3_WORDS[code // 2]
    words = {0: words, 1: words * 48_000 // 44_100 + code % 2, 2: words * 3 // 2}[rate]
    return 2 * words, ("AC-3", rate)


def ogg_page(head: bytes) -> Item:
    """A page: its header lists the lengths of its segments."""
    if head[:5] != b"OggS\0":
        return None
    segments = head[26]
    if len(head) < 27 + segments:
        return UNKNOWN_BYTES, "Ogg"
    return 27 + segments + sum(head[27 : 27 + segments]), "Ogg"


def wavpack_block(head: bytes) -> Item:
    """A block of WavPack."""
    return (8 + int.from_bytes(head[4:8], "little"), "WavPack") if head[:4] == b"wvpk" else None


def flv_tag(head: bytes) -> Item:
    """A tag of sound, pictures or a script, and the four bytes that repeat its length."""
    if head[0] not in (8, 9, 18) or head[8:11] != b"\0\0\0":
        return None
    return 11 + int.from_bytes(head[1:4], "big") + 4, "FLV"


def program_pack(head: bytes) -> Item:
    """A pack header or a packet of an MPEG program stream, or its end code."""
    if head[:3] != b"\0\0\1" or head[3] < 0xB9:
        return None
    if head[3] == 0xB9:
        return 4, "MPEG"
    if len(head) < 14:
        return UNKNOWN_BYTES, "MPEG"
    if head[3] == 0xBA:
        return 14 + (head[13] & 7) if head[4] >> 6 == 1 else 12, "MPEG"
    return 6 + int.from_bytes(head[4:6], "big"), "MPEG"


def transport_packet(length: int, sync_at: int) -> Callable[[bytes], Item]:
    """A packet of an MPEG transport stream, of 188 bytes with or without a time before it or a checksum after it."""
    return lambda head: (length, length) if head[sync_at] == 0x47 else None


def _transport(length: int, sync_at: int) -> Chain:
    begins = re.compile(rb"(?s).{%d}G(?=.{%d}G.{%d}G)" % (sync_at, length - 1, length - 1))
    return Chain(begins, sync_at + 1, transport_packet(length, sync_at), min_items=5, mark_bytes=0 if sync_at else 1)


CHAINS: dict[str, tuple[Chain, ...]] = {
    "mp3": (Chain(re.compile(rb"\xff[\xe2-\xe7\xf2-\xff][\x10-\xef]"), 4, mpeg_audio_frame),),
    "aac": (Chain(re.compile(rb"\xff[\xf0\xf1\xf8\xf9]"), 7, adts_frame),),
    "ac3": (Chain(re.compile(rb"\x0b\x77"), 6, ac3_frame),),
    "eac3": (Chain(re.compile(rb"\x0b\x77"), 6, ac3_frame),),
    "ogg": (Chain(re.compile(rb"OggS\x00"), 27, ogg_page, min_items=2),),
    "wv": (Chain(re.compile(rb"wvpk"), 8, wavpack_block, min_items=2),),
    "flv": (Chain(re.compile(rb"(?s)[\x08\x09\x12].{7}\x00\x00\x00"), 11, flv_tag, min_items=4),),
    "mpeg": (Chain(re.compile(rb"\x00\x00\x01[\xba-\xff]"), 4, program_pack),),
    "mpegts": (_transport(188, 0), _transport(192, 4), _transport(204, 0)),
}
"""libav's name of a container format -> what its items may be."""


def chain_end(chains: Sequence[Chain], file: BinaryIO, size: int) -> tuple[int, int] | None:
    """Find the last chain of a file that is of one of these kinds; see above."""
    window = WINDOW_BYTES
    while True:
        start = max(0, size - window)
        data = os.pread(file.fileno(), size - start, start)
        found = next(filter(None, (chain.last(data, start == 0) for chain in chains)), None)
        if found is not None:
            return start + found[0], found[1]
        if start == 0 or window >= MAX_WINDOW_BYTES:
            return None
        window *= 8


AMR_FRAMES = {
    b"#!AMR\n": {0: 13, 1: 14, 2: 16, 3: 18, 4: 20, 5: 21, 6: 27, 7: 32, 8: 6, 15: 1},
    b"#!AMR-WB\n": {0: 18, 1: 24, 2: 33, 3: 37, 4: 41, 5: 47, 6: 51, 7: 59, 8: 61, 9: 6, 14: 1, 15: 1},
}
"""Bytes of a frame by its type, after the mark that such a file begins with."""


def amr_end(file: BinaryIO, size: int) -> tuple[int, int] | None:
    """As `chain_end`, of AMR, whose frames have no mark to find them by: they are followed from the first."""
    data = os.pread(file.fileno(), min(size, MAX_WINDOW_BYTES), 0)
    mark = next((mark for mark in AMR_FRAMES if data.startswith(mark)), None)
    if mark is None or len(data) < size:
        return None
    end = place = len(mark)
    whole = len(data.rstrip(b"\0"))
    while place < whole:
        head = data[place]
        length = AMR_FRAMES[mark].get(head >> 3 & 15)
        if head & 0x83 or length is None:
            break
        if place + length > size:
            return end, place + length - size
        end = place = place + length
    return end, 0
