"""Calibrate the rule for near duplicates on a clip list: alter clips, encode the copies, compare, fit, store the rule.

Altered copies (`augment`) are encoded again, cropped, cut, mirrored, louder, softer, noisy, resized or faster. Each
copy is a file: decoded, filtered by libavfilter and encoded as H.264 and AAC. It contains only the part of the
recording that the clip uses. The false pairs are hard negatives: different clips that the rule could take for copies.
See `calibration` for the fit.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.error import BlockingIOError as NothingYet
from av.error import EOFError as NothingMore
from av.error import FFmpegError

from featurecache.clips.clip_list import Clip, ClipList
from featurecache.errors import ClipListError
from featurecache.explore.agreement import UNDECIDED, TimeAgreement
from featurecache.explore.calibration import (
    FAR_DEVIATIONS,
    MAX_FALSE_POSITIVE_RATE,
    SCREEN_DEVIATIONS,
    Calibration,
    CalibrationPairs,
    fit_calibration,
    load_calibration,
    uncalibrated,
)
from featurecache.explore.duplicates import Advance, PairScorer, exact_pairs
from featurecache.explore.index_files import CALIBRATION, IndexFiles, index_files
from featurecache.explore.media_vectors import media_vectors
from featurecache.explore.search import Neighbourhood, nearest_rows
from featurecache.extract.job import OpenEncoder
from featurecache.extras import require
from featurecache.media.channels import without_labels
from featurecache.media.container import open_container
from featurecache.store.local import LocalStore

Filters = Sequence[tuple[str, str]]
FRAMES_PER_S = 25
GOOD_CRF, POOR_CRF = "20", "36"
GOOD_AUDIO_BITS, POOR_AUDIO_BITS = 128_000, 24_000
NOISE = "exprs=val(ch)+0.01*(random(ch)*2-1):c=same"
"""White noise of -45 dB of full scale."""


@dataclass(frozen=True)
class Augmentation:
    """One alteration: libavfilter filters per stream, and the encoder's quality."""

    name: str
    video: Filters = ()
    audio: Filters = ()
    crf: str = GOOD_CRF
    audio_bits: int = GOOD_AUDIO_BITS


AUGMENTATIONS = (
    Augmentation("lower bitrate", crf=POOR_CRF, audio_bits=POOR_AUDIO_BITS),
    Augmentation("cropped 10 %", video=[("crop", "iw*0.9:ih*0.9")]),
    Augmentation("cut by 0.5 s", video=[("trim", "start=0.5"), ("setpts", "PTS-STARTPTS")],
                 audio=[("atrim", "start=0.5"), ("asetpts", "PTS-STARTPTS")]),
    Augmentation("mirrored", video=[("hflip", "")]),
    Augmentation("gain −8 dB", audio=[("volume", "0.4")]),
    Augmentation("gain +6 dB", audio=[("volume", "2.0")]),
    Augmentation("noise", video=[("noise", "alls=8:allf=t")], audio=[("aeval", NOISE)]),
    Augmentation("half size", video=[("scale", "iw/2:ih/2")]),
    Augmentation("1.05× speed", video=[("setpts", "PTS/1.05")], audio=[("atempo", "1.05")]),
)  # fmt: skip


def augment(clip: Clip, augmentation: Augmentation, target: Path) -> None:
    """Write the altered copy of a clip as an mp4 file.

    Raises:
        av.FFmpegError, OSError: the clip's media cannot be read.
        ValueError: the clip has neither moving pictures nor sound.
    """
    tracks = [(clip.video, "video"), (clip.audio or clip.video, "audio")]
    with ExitStack() as files, av.open(str(target), "w") as out:
        transcoders = []
        for path, kind in tracks:
            if path:
                container = files.enter_context(open_container(path))
                streams = container.streams.video if kind == "video" else container.streams.audio
                if streams:
                    transcoders.append(_Transcoder(clip, container, streams[0], augmentation, out))
        if not transcoders:
            raise ValueError(f"{clip.id}: no moving pictures and no sound")
        for transcoder in transcoders:  # every output stream must exist before the first packet is written
            transcoder.open()
        for transcoder in transcoders:
            for packet in transcoder.packets():
                out.mux(packet)


class _Transcoder:
    """Decodes, filters and encodes one stream."""

    def __init__(self, clip: Clip, container: Any, stream: Any, augmentation: Augmentation, out: Any) -> None:
        self._container, self._stream, self._augmentation, self._out = container, stream, augmentation, out
        self._kind = stream.type
        begin, end = clip.start_s or 0.0, clip.end_s
        self._span = f"start={begin}" + (f":end={end}" if end is not None else "")

    def open(self) -> None:
        """Build the filters and the output stream."""
        graph = self._graph = av.filter.Graph()
        if self._kind == "video":
            source, sink = graph.add_buffer(template=self._stream), graph.add("buffersink")
            trim, set_times = "trim", "setpts"
            filters = [
                *self._augmentation.video,
                ("fps", str(FRAMES_PER_S)),
                ("scale", "trunc(iw/2)*2:trunc(ih/2)*2"),
                ("format", "yuv420p"),
            ]
        else:
            source, sink = graph.add_abuffer(template=self._stream), graph.add("abuffersink")
            trim, set_times, filters = "atrim", "asetpts", [*self._augmentation.audio, ("aformat", "sample_fmts=fltp")]
        last = source
        for name, arguments in [(trim, self._span), (set_times, "PTS-STARTPTS"), *filters]:
            node = graph.add(name, arguments)
            last.link_to(node)
            last = node
        last.link_to(sink)
        graph.configure()
        self._source = source
        if self._kind == "video":
            self._encoder = self._out.add_stream("libx264", rate=FRAMES_PER_S)
            self._encoder.options = {"crf": self._augmentation.crf, "preset": "veryfast"}
            self._encoder.pix_fmt = "yuv420p"
        else:
            self._encoder = self._out.add_stream("aac", rate=self._stream.rate)
            self._encoder.bit_rate = self._augmentation.audio_bits
            self._encoder.layout = "mono" if self._stream.channels == 1 else "stereo"

    def packets(self) -> Iterator[Any]:
        """Decode, filter and encode the stream; yield the packets."""
        sized = self._kind == "audio"  # the size of the pictures is known with the first filtered frame
        for frame in self._filtered():
            if not sized:
                self._encoder.width, self._encoder.height, sized = frame.width, frame.height, True
            if self._kind == "video":
                frame.pict_type = 0  # the encoder chooses the types of frames
            yield from self._encoder.encode(frame)
        if sized:
            yield from self._encoder.encode(None)

    def _filtered(self) -> Iterator[Any]:
        try:
            for frame in self._container.decode(self._stream):
                self._source.push(frame if self._kind == "video" else without_labels(frame))
                yield from self._pulled()
            self._source.push(None)
        except NothingMore:  # the trim filter has ended before the recording
            pass
        yield from self._pulled()

    def _pulled(self) -> Iterator[Any]:
        while True:
            try:
                yield self._graph.pull()
            except (NothingYet, NothingMore):
                return


NUM_CALIBRATED = 40
NUM_RANDOM_PAIRS = 200_000
NUM_NEGATIVES = 8
"""Hard negatives per clip with the same text and another speaker; and as many among the nearest clips."""
NUM_NEAREST = 256
"""Nearest clips per clip that hard negatives are chosen from."""


def known_calibration(store: LocalStore, neighbourhood: Neighbourhood, files: IndexFiles | None = None) -> Calibration:
    """Return the stored calibration of these features and weights, or a cautious rule if there is none.

    `neighbourhood` has the comparison `copies`.
    """
    stored = load_calibration(
        files or index_files(store.location), _fingerprints(store, neighbourhood), neighbourhood.weights
    )
    return stored or cautious_rule(store, neighbourhood, SCREEN_DEVIATIONS)


def cautious_rule(store: LocalStore, neighbourhood: Neighbourhood, deviations: float = FAR_DEVIATIONS) -> Calibration:
    """Return a rule from random pairs: similarities `deviations` deviations above their median."""
    rng = np.random.default_rng(0)
    left, right = rng.integers(len(neighbourhood), size=(2, NUM_RANDOM_PAIRS))
    left, right = left[left != right], right[left != right]
    scorer = PairScorer(neighbourhood, {name: store.spec(name) for name in neighbourhood.names})
    batches = np.array_split(np.arange(len(left)), max(1, len(left) // 10_000))
    scores = [scorer(neighbourhood.by_feature(left[rows]), neighbourhood.by_feature(right[rows])) for rows in batches]
    similarity, floor = (np.concatenate([score[side] for score in scores]) for side in (0, 1))
    common = similarity > -1  # pairs with a common modality
    return uncalibrated(
        similarity[common], floor[common], _fingerprints(store, neighbourhood), neighbourhood.weights, deviations
    )


def calibrate(
    store: LocalStore,
    neighbourhood: Neighbourhood,
    clips: ClipList,
    open_for: OpenEncoder,
    *,
    num_clips: int = NUM_CALIBRATED,
    max_false_positive_rate: float = MAX_FALSE_POSITIVE_RATE,
    seed: int = 0,
    files: IndexFiles | None = None,
    advance: Advance = lambda done, total: None,
) -> Calibration:
    """Alter some clips of the list, fit the rule on their copies, and store it among the index files.

    Raises:
        ClipListError: fewer than four clips with moving pictures or sound.
        StoreError: none of their media can be compared in time.
        FingerprintError: an opened encoder is not the one that its feature was made with.
    """
    require("explore", "sklearn", subject="--calibrate")
    usable = [clip for clip in clips if clip.id in neighbourhood and (clip.video or clip.audio)]
    if len(usable) < 4:
        raise ClipListError("--calibrate", expected="at least 4 clips with video or audio", got=str(len(usable)))
    # Opened first, so that wrong or missing weights are an error before any clip is altered.
    encoders = {name: open_for(store.spec(name)) for name in neighbourhood.names}
    numbers = np.random.default_rng(seed).choice(len(usable), min(num_clips, len(usable)), replace=False)
    sampled = [usable[number] for number in sorted(numbers)]
    specs = {name: store.spec(name) for name in neighbourhood.names}
    scorer = PairScorer(neighbourhood, specs)
    with tempfile.TemporaryDirectory(prefix="fcache-altered-") as folder:
        copies, augmentations, originals = _alter(sampled, Path(folder), advance)
        ids, vectors, _ = media_vectors(store, neighbourhood, copies, encoders, files)
        encoded = set(ids)
        usable_copies = [n for n, clip in enumerate(copies) if clip.id in encoded]
        by_id = {clip.id: clip for clip in [*clips, *copies]}
        agree = TimeAgreement(by_id.__getitem__)
        copy_agreement = np.array([_number(agree(originals[n], copies[n].id)) for n in usable_copies])
    copy_of = np.array([neighbourhood.row_of(originals[n]) for n in usable_copies])
    copy_similarity, copy_floor = scorer(neighbourhood.split(vectors), neighbourhood.by_feature(copy_of))
    negatives = _hard_negatives(store, neighbourhood, clips, sampled)
    left = np.array([neighbourhood.row_of(a) for a, _, _ in negatives])
    right = np.array([neighbourhood.row_of(b) for _, b, _ in negatives])
    false_similarity, false_floor = scorer(neighbourhood.by_feature(left), neighbourhood.by_feature(right))
    rule = fit_calibration(
        CalibrationPairs(
            copy_similarity=copy_similarity,
            copy_floor=copy_floor,
            copy_agreement=copy_agreement,
            copy_of=copy_of,
            augmentations=[augmentations[n] for n in usable_copies],
            false_similarity=false_similarity,
            false_floor=false_floor,
            false_agreement=np.array([_number(agree(a, b)) for a, b, _ in negatives]),
            false_of=left,
            same_text=np.array([same_text for _, _, same_text in negatives]),
        ),
        _fingerprints(store, neighbourhood),
        neighbourhood.weights,
        max_false_positive_rate,
    )
    (files or index_files(store.location)).write(CALIBRATION, rule.to_bytes())
    return rule


def _number(agreement: float | None) -> float:
    """Return −1 for a pair whose media cannot be compared."""
    return UNDECIDED if agreement is None else agreement


def _hard_negatives(
    store: LocalStore, neighbourhood: Neighbourhood, clips: ClipList, sampled: Sequence[Clip]
) -> list[tuple[str, str, bool]]:
    """Return pairs of different clips that a rule could take for copies: both ids, and whether they have the same text.

    Clips with the same text by another speaker are chosen, and near clips by another speaker with another text; if
    text or speaker is unknown, the nearest clips. Exact copies are left out. Clips of the same speaker with the same
    text are left out too, because they may be near copies.
    """
    clip_by_id = {clip.id: clip for clip in clips if clip.id in neighbourhood}
    copies: dict[str, set[str]] = {}
    for pair in exact_pairs(store, neighbourhood.names, clip_by_id.__contains__):
        copies.setdefault(pair.a, set()).add(pair.b)
        copies.setdefault(pair.b, set()).add(pair.a)
    rows = [neighbourhood.row_of(clip.id) for clip in sampled]
    _, nearest = nearest_rows(neighbourhood.vectors[rows], neighbourhood.vectors, len(neighbourhood))
    pairs: list[tuple[str, str, bool]] = []
    for clip, row in zip(sampled, nearest.tolist(), strict=True):
        others = [
            clip_by_id[neighbourhood.ids[other_row]] for other_row in row if neighbourhood.ids[other_row] in clip_by_id
        ]
        others = [other for other in others if other.id != clip.id and other.id not in copies.get(clip.id, ())]
        same_text = [other for other in others if _same_text(clip, other) and _other_speaker(clip, other)]
        other_text = [
            other for other in others[:NUM_NEAREST] if _other_speaker(clip, other) and not _same_text(clip, other)
        ]
        pairs += [(clip.id, other.id, True) for other in same_text[:NUM_NEGATIVES]]
        pairs += [(clip.id, other.id, False) for other in other_text[:NUM_NEGATIVES]]
        if not same_text and not other_text:
            pairs += [(clip.id, other.id, False) for other in others[:NUM_NEGATIVES] if not _same_text(clip, other)]
    return pairs


def _same_text(a: Clip, b: Clip) -> bool:
    return a.text is not None and b.text is not None and a.text.split() == b.text.split()


def _other_speaker(a: Clip, b: Clip) -> bool:
    return a.speaker is not None and b.speaker is not None and a.speaker != b.speaker


def _alter(clips: Sequence[Clip], folder: Path, advance: Advance) -> tuple[list[Clip], list[str], list[str]]:
    """Write a copy of every clip per augmentation that applies; return copies, augmentations and originals."""
    copies, names, originals = [], [], []
    total = len(clips) * len(AUGMENTATIONS)
    advance(0, total)
    for number, (clip, change) in enumerate((clip, change) for clip in clips for change in AUGMENTATIONS):
        path = folder / f"{number}.mp4"
        applies = (
            (change.video and clip.video)
            or (change.audio and (clip.audio or clip.video))
            or not (change.video or change.audio)
        )
        if applies:
            try:
                augment(clip, change, path)
            except (FFmpegError, OSError, ValueError):  # for example, the clip is too short for the cut
                continue
            copies.append(
                Clip(f"copy-{number}", video=path if clip.video else None, audio=None if clip.video else path)
            )
            names.append(change.name)
            originals.append(clip.id)
        advance(number + 1, total)
    return copies, names, originals


def _fingerprints(store: LocalStore, neighbourhood: Neighbourhood) -> dict[str, str]:
    return {name: store[name].fingerprint for name in neighbourhood.names}
