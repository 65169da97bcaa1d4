"""Containers that are sequences of items, each with its own length: MPEG audio, ADTS, AC-3, Ogg, MPEG-TS, …

The last items are searched from the end of the file: several complete items in a row, the last of which ends the media.
After it come a tag, padding or leftovers, or the beginning of an item that the file holds in part.

`sequence_end` and `amr_end` take an open file and its size. They return the position after the last complete item and
the number of bytes that the file lacks of the next item (0 if no item begins there), or None if no sequence is found.
Sources: ISO 11172-3, 13818-1 and 13818-7, ATSC A/52, RFC 3533, RFC 4867, the FLV and WavPack specifications.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import BinaryIO

WINDOW_BYTES = 1 << 15
MAX_CANDIDATES = 20_000  # positions that look like an item; a file crafted to have more is not checked
MAX_WINDOW_BYTES = 1 << 24  # a tag may hold pictures; longer leftovers at the end of a file are not searched

Item = tuple[int, object] | None
"""Length in bytes, and a value that is equal for all items of one sequence."""
HEAD_BYTES = 27 + 255  # length of the longest header, that of an Ogg page
UNKNOWN_BYTES = HEAD_BYTES + 1  # stands for the length of an item whose header is incomplete


@dataclass(frozen=True)
class ItemFormat:
    """One format of items, and the search for sequences of them."""

    begins: re.Pattern[bytes]
    least_bytes: int
    item: Callable[[bytes], Item]
    """First bytes of an item, at least `least_bytes` -> the item; None if they are not the head of an item."""
    min_items: int = 3
    """Number of consecutive items that are no accident."""
    mark_bytes: int = 2
    """Number of bytes at the beginning of an item that are equal in all items of a sequence."""

    def last_sequence(self, data: bytes, from_start: bool) -> tuple[int, int] | None:
        """Return the end of the last sequence in the tail of a file, and the number of bytes missing after it.

        With `from_start` the tail is the whole file, in which one item suffices.
        """
        result, position, num_candidates = None, 0, 0
        while num_candidates < MAX_CANDIDATES and (match := self.begins.search(data, position)) is not None:
            position, num_candidates = match.start(), num_candidates + 1
            end, count, last_item = self._follow(data, position)
            if count >= (1 if from_start and result is None else self.min_items):
                result = end, self._missing_bytes(data, end, last_item)
                position = end
            else:
                position += 1
        if result is None and from_start and (only_item := self._item_at(data, 0)) is not None:
            return len(data), max(0, only_item[0] - len(data))
        return None if num_candidates == MAX_CANDIDATES else result

    def _follow(self, data: bytes, position: int) -> tuple[int, int, tuple[object, bytes]]:
        """Return the end of the sequence at `position`, its number of items, and (kind, first bytes) of its last."""
        count, kind, head = 0, None, b""
        while (item := self._item_at(data, position)) is not None and (not count or item[1] == kind):
            if position + item[0] > len(data):
                break
            kind, head, count = item[1], data[position : position + self.mark_bytes], count + 1
            position += item[0]
        return position, count, (kind, head)

    def _missing_bytes(self, data: bytes, end: int, last_item: tuple[object, bytes]) -> int:
        """Return the number of missing bytes of an item that begins at `end`; 0 if none begins there."""
        rest, (kind, mark) = data[end : end + HEAD_BYTES], last_item
        if not rest.strip(b"\0"):
            return 0  # padding
        if len(rest) < self.least_bytes:
            return 1 if rest[: self.mark_bytes] == mark[: len(rest)] else 0
        item = self.item(rest)
        if item is None or item[1] != kind:
            return 0
        return max(0, end + item[0] - len(data))

    def _item_at(self, data: bytes, position: int) -> Item:
        head = data[position : position + HEAD_BYTES]
        item = self.item(head) if len(head) >= self.least_bytes else None
        return item if item is not None and item[0] > 0 else None


# (is MPEG 1, layer) -> kb/s by index; MPEG 2 and 2.5 share a table.
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
    """Read a frame of MPEG 1, 2 or 2.5 audio, layer I, II or III, with a stated bit rate."""
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
    """Read a frame of AAC with an ADTS header."""
    if head[0] != 0xFF or head[1] & 0xF6 != 0xF0:
        return None
    length = (head[3] & 3) << 11 | head[4] << 3 | head[5] >> 5
    return (length, (head[1], head[2])) if length >= 7 else None


AC3_WORDS = (64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384, 448, 512, 640, 768, 896, 1024, 1152, 1280)
"""Number of 16-bit words of a frame at 48 kHz, by half the frame size code."""


def ac3_frame(head: bytes) -> Item:
    """Read a frame of AC-3, or of E-AC-3, whose frames state their length."""
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
    """Read an Ogg page, whose header lists the lengths of its segments."""
    if head[:5] != b"OggS\0":
        return None
    segments = head[26]
    if len(head) < 27 + segments:
        return UNKNOWN_BYTES, "Ogg"
    return 27 + segments + sum(head[27 : 27 + segments]), "Ogg"


def wavpack_block(head: bytes) -> Item:
    """Read a block of WavPack."""
    return (8 + int.from_bytes(head[4:8], "little"), "WavPack") if head[:4] == b"wvpk" else None


def flv_tag(head: bytes) -> Item:
    """Read an FLV tag of sound, pictures or a script, with the four bytes that repeat its length."""
    if head[0] not in (8, 9, 18) or head[8:11] != b"\0\0\0":
        return None
    return 11 + int.from_bytes(head[1:4], "big") + 4, "FLV"


def program_pack(head: bytes) -> Item:
    """Read a pack header or a packet of an MPEG program stream, or its end code."""
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
    """Return a reader of MPEG transport packets: 188 bytes, or more with a time before or a checksum after them."""
    return lambda head: (length, length) if head[sync_at] == 0x47 else None


def _transport(length: int, sync_at: int) -> ItemFormat:
    begins = re.compile(rb"(?s).{%d}G(?=.{%d}G.{%d}G)" % (sync_at, length - 1, length - 1))
    return ItemFormat(
        begins, sync_at + 1, transport_packet(length, sync_at), min_items=5, mark_bytes=0 if sync_at else 1
    )


ITEM_FORMATS: dict[str, tuple[ItemFormat, ...]] = {
    "mp3": (ItemFormat(re.compile(rb"\xff[\xe2-\xe7\xf2-\xff][\x10-\xef]"), 4, mpeg_audio_frame),),
    "aac": (ItemFormat(re.compile(rb"\xff[\xf0\xf1\xf8\xf9]"), 7, adts_frame),),
    "ac3": (ItemFormat(re.compile(rb"\x0b\x77"), 6, ac3_frame),),
    "eac3": (ItemFormat(re.compile(rb"\x0b\x77"), 6, ac3_frame),),
    "ogg": (ItemFormat(re.compile(rb"OggS\x00"), 27, ogg_page, min_items=2),),
    "wv": (ItemFormat(re.compile(rb"wvpk"), 8, wavpack_block, min_items=2),),
    "flv": (ItemFormat(re.compile(rb"(?s)[\x08\x09\x12].{7}\x00\x00\x00"), 11, flv_tag, min_items=4),),
    "mpeg": (ItemFormat(re.compile(rb"\x00\x00\x01[\xba-\xff]"), 4, program_pack),),
    "mpegts": (_transport(188, 0), _transport(192, 4), _transport(204, 0)),
}
"""libav's name of a container format -> the possible formats of its items."""


def sequence_end(formats: Sequence[ItemFormat], file: BinaryIO, size: int) -> tuple[int, int] | None:
    """Find the last sequence of items in a file, of one of these formats; see the head of this module."""
    window = WINDOW_BYTES
    while True:
        start = max(0, size - window)
        data = os.pread(file.fileno(), size - start, start)
        sequences = (item_format.last_sequence(data, start == 0) for item_format in formats)
        last = next(filter(None, sequences), None)
        if last is not None:
            return start + last[0], last[1]
        if start == 0 or window >= MAX_WINDOW_BYTES:
            return None
        window *= 8


AMR_FRAMES = {
    b"#!AMR\n": {0: 13, 1: 14, 2: 16, 3: 18, 4: 20, 5: 21, 6: 27, 7: 32, 8: 6, 15: 1},
    b"#!AMR-WB\n": {0: 18, 1: 24, 2: 33, 3: 37, 4: 41, 5: 47, 6: 51, 7: 59, 8: 61, 9: 6, 14: 1, 15: 1},
}
"""First bytes of a file -> frame type -> bytes of a frame."""


def amr_end(file: BinaryIO, size: int) -> tuple[int, int] | None:
    """Find the end of AMR as `sequence_end` does; its frames have no mark, so they are followed from the first."""
    data = os.pread(file.fileno(), min(size, MAX_WINDOW_BYTES), 0)
    mark = next((mark for mark in AMR_FRAMES if data.startswith(mark)), None)
    if mark is None or len(data) < size:
        return None
    end = position = len(mark)
    unpadded_size = len(data.rstrip(b"\0"))
    while position < unpadded_size:
        head = data[position]
        length = AMR_FRAMES[mark].get(head >> 3 & 15)
        if head & 0x83 or length is None:
            break
        if position + length > size:
            return end, position + length - size
        end = position = position + length
    return end, 0
