"""Frames are those of their numbers, in the order of the decoder, where the times of a file contradict that order."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import recordings as rec

from featurecache.clips.clip_list import Clip
from featurecache.errors import MediaError
from featurecache.media.decode import decode, decode_each
from featurecache.views import AudioView, FramesView

NUM = 20
ORDER = list(range(NUM))
TWICE = ORDER + ORDER
OPTIONS = {"crf": "10", "bf": "2", "g": "10"}


def copied(sources: list[Path], target: Path, gap_ms: int = 0, start: int = 0, all_key: bool = False) -> Path:
    """Write the pictures of several recordings into one file, as a stream copy does; a negative gap overlaps them."""
    with av.open(str(target), "w") as output:
        stream, offset, last = None, start, -(2**60)
        for source in sources:
            with av.open(str(source)) as file:
                video = file.streams.video[0]
                stream = stream or output.add_stream_from_template(video)
                end = 0
                for packet in file.demux(video):
                    if packet.dts is None:
                        continue
                    end = max(end, packet.pts + packet.duration)
                    dts = max(last + 1, packet.dts + offset)
                    packet.pts, packet.dts = max(packet.pts + offset, dts), dts
                    last, packet.stream = packet.dts, stream
                    packet.is_keyframe |= all_key
                    output.mux(packet)
                offset += end + round(gap_ms / 1000 / video.time_base)
    return target


def joined_transport_streams(folder: Path) -> Path:
    """Two streams byte for byte; the second one's times lie between those of the first."""
    first = rec.write_clip(folder / "first.ts", num_frames=NUM, options=OPTIONS, sound=rec.sine(2.0))
    second = copied([first], folder / "second.ts", start=2700)  # in 1/90,000 s; frames are 9,000 apart
    path = folder / "joined.ts"
    path.write_bytes(first.read_bytes() + second.read_bytes())
    return path


def joined_by_copy(folder: Path) -> Path:
    """One mp4 of two stream copies, the second of which begins before the first has ended."""
    source = rec.write_clip(folder / "source.mp4", num_frames=NUM, options=OPTIONS)
    return copied([source, source], folder / "joined.mp4", gap_ms=-350)


def copied_into_avi(folder: Path) -> Path:
    """H.264 with B-frames in AVI, which has no times: libav counts packets."""
    source = rec.write_clip(folder / "source.ts", num_frames=NUM, options=OPTIONS)
    return copied([source], folder / "copied.avi")


def packed_b_frames(folder: Path) -> Path:
    """What DivX wrote: a chunk holds a picture and the B-frame before it, the next chunk says that nothing is new."""
    with av.open(str(folder / "source.avi"), "w") as source:
        stream = source.add_stream("mpeg4", rate=10, options={"b": "4M", "g": "10", "bf": "1"})
        stream.width, stream.height, stream.pix_fmt = rec.WIDTH, rec.HEIGHT, "yuv420p"
        packets = []
        for number in range(NUM + 1):
            frame = av.VideoFrame.from_ndarray(rec.picture(number), format="rgb24")
            frame.pts = number
            packets += stream.encode(frame)
        pictures = [(bytes(packet), packet.is_keyframe) for packet in packets + stream.encode(None)]
    start = b"\0\0\1\xb6"
    head, _, picture = pictures[0][0].partition(start)
    pictures[0] = (head + b"\0\0\1\xb2DivX503b1393p" + start + picture, True)
    chunks: list[tuple[bytes, bool]] = []
    for data, is_keyframe in pictures:
        if data[data.index(start) + 4] >> 6 == 2:  # a B-frame
            chunks[-1] = (chunks[-1][0] + data, chunks[-1][1])
            chunks.append((start + b"\x55\x5f\xff", False))
        else:
            chunks.append((data, is_keyframe))
    with av.open(str(folder / "packed.avi"), "w") as file:
        stream = file.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = rec.WIDTH, rec.HEIGHT, "yuv420p"
        stream.codec_context.codec_tag = "DX50"
        for number, (data, is_keyframe) in enumerate(chunks):
            packet = av.Packet(data)
            packet.stream, packet.pts, packet.dts, packet.time_base = stream, number, number, Fraction(1, 10)
            packet.is_keyframe = is_keyframe
            file.mux(packet)
    return folder / "packed.avi"


CASES = [
    (joined_transport_streams, TWICE),
    (joined_by_copy, TWICE),
    (copied_into_avi, ORDER),
    (packed_b_frames, [*ORDER, NUM]),
]


def shown_of(path: Path, view: FramesView, **part: float) -> list[int]:
    return rec.frame_numbers(decode(Clip("a", video=path, **part), [view])[0])


@pytest.mark.parametrize(("write", "order"), CASES, ids=lambda value: getattr(value, "__name__", ""))
def test_frames_come_in_the_order_of_the_decoder_where_times_contradict_it(
    tmp_path: Path, write: Callable[[Path], Path], order: list[int]
) -> None:
    path = write(tmp_path)
    with av.open(str(path)) as file:  # the material is what it is meant to be: every frame is there
        assert rec.frame_numbers(np.stack([f.to_ndarray(format="rgb24") for f in file.decode(video=0)])) == order
    assert shown_of(path, FramesView(len(order), "uniform", False)) == order
    chosen = [order[(2 * i + 1) * len(order) // 32] for i in range(16)]
    assert shown_of(path, FramesView(16, "uniform", False)) == chosen
    assert shown_of(path, FramesView(1, "first", False)) == [0]
    middle = len(order) // 2
    assert shown_of(path, FramesView(4, "window", False)) == order[middle - 2 : middle + 2]
    peak = FramesView(1, "peak", False)
    for number in (*range(1, 7), len(order) // 2, len(order) // 2 + 1, len(order) - 1):
        assert shown_of(path, peak, peak_frame=number) == [order[number]], number


def test_a_part_of_joined_recordings_is_refused_where_times_go_back(tmp_path: Path) -> None:
    path = joined_transport_streams(tmp_path)
    five = FramesView(5, "uniform", False)
    assert shown_of(path, five, start_s=0.5, end_s=1.0) == [5, 6, 7, 8, 9]  # before they do
    late = decode_each(Clip("a", video=path, start_s=1.0), [five])[0]
    assert isinstance(late, MediaError)
    assert "expected frame times that ascend, which start_s and end_s need" in str(late)
    assert "got times that go back" in str(late)


def test_a_part_of_an_avi_with_b_frames_is_cut_by_the_order_of_frames(tmp_path: Path) -> None:
    path = copied_into_avi(tmp_path)
    shown = shown_of(path, FramesView(10, "first", False), start_s=0.8, end_s=1.3)
    assert shown == [*range(shown[0], shown[0] + 5), *[shown[0] + 4] * 5]
    assert abs(shown[0] - 8) <= 2  # the delay of B-frames


@pytest.mark.parametrize("states_duration", [True, False], ids=["", "no duration of a frame"])
def test_keyframe_marks_on_every_packet_change_nothing(tmp_path: Path, states_duration: bool) -> None:
    """Then the index lists every frame at the time when it is shown, the last of them after the last decoding time."""
    source = rec.write_clip(tmp_path / "source.mp4", num_frames=NUM, options=OPTIONS)
    path = copied([source], tmp_path / "marked.mkv", all_key=True)
    if not states_duration:  # as of recorders and of muxers of variable rates: the element is void
        path.write_bytes(path.read_bytes().replace(b"\x23\xe3\x83\x84\x05\xf5\xe1\x00", b"\xec\x86" + bytes(6)))
    assert shown_of(path, FramesView(NUM, "uniform", False)) == ORDER
    assert shown_of(path, FramesView(5, "uniform", False), start_s=0.5, end_s=1.0) == [5, 6, 7, 8, 9]


def test_sound_of_joined_recordings_is_whole(tmp_path: Path) -> None:
    part = rec.write_clip(tmp_path / "part.ts", num_frames=NUM, options=OPTIONS, sound=rec.sine(2.0))
    joined = tmp_path / "joined.ts"
    joined.write_bytes(part.read_bytes() * 2)
    sound = decode(Clip("a", video=joined), [AudioView()])[0]
    assert sound.shape == pytest.approx((64_000,), abs=4 * 1024)
