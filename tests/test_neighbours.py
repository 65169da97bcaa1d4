"""Tokens depend on (media bytes, spec) alone: values, not counts, for features and clips that share a forward pass."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import recordings as rec
import torch
from hf_networks import AUDIO, CROPPED, IMAGE, PICTURE, save
from PIL import Image

from featurecache import load_clips, open_store
from featurecache.clips.clip_list import ClipList
from featurecache.encoders import Encoder, open_encoder
from featurecache.encoders.pooling import average_over_time
from featurecache.errors import FingerprintError
from featurecache.extract.pipeline import forward_key, pool_tokens, stack_inputs
from featurecache.extract.run import extract
from featurecache.media.decode import decode
from featurecache.spec import Spec
from featurecache.views import AudioView

BATCH = 3
POOLED_SOUND = ({"pooling": "padded"}, {"pooling": "valid"}, {"pooling": "valid", "tokens": 5})
SECONDS = (0.11, 3.4, 0.7, 2.0)
"""Of the clips; networks hear 3 s, so that one is cut and the others are padded by different amounts."""


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> ClipList:
    """Clips of very different length; in every batch of three, one without sound or pictures or one that fails."""
    folder = tmp_path_factory.mktemp("clips")
    for number, seconds in enumerate(SECONDS):
        frames = max(2, round(10 * seconds))
        rec.write_clip(folder / f"{number}.mp4", num_frames=frames, sound=rec.sine(seconds, 200 + 90 * number))
    (folder / "bad.mp4").write_bytes(b"nonsense" * 100)
    rows = [{"id": f"c{number}", "video": f"{number}.mp4"} for number in range(len(SECONDS))]
    rows.insert(1, {"id": "words", "text": "Nothing else."})
    rows.insert(4, {"id": "bad", "video": "bad.mp4"})
    (folder / "clips.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_clips(folder / "clips.jsonl")


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory, whisper_folder: Path, eva_folder: Path) -> dict[str, Path]:
    """A checkpoint of every built-in encoder and every hf family."""
    folder = tmp_path_factory.mktemp("networks")
    found = {"whisper": whisper_folder, "eva": eva_folder}
    for kind, (family, settings) in AUDIO.items():
        masked = kind == "hubert-stable"
        preprocessor = {"sampling_rate": 16_000, "do_normalize": True, "return_attention_mask": masked}
        found[kind] = save(folder / kind, family, settings, preprocessor)
    for kind, family in IMAGE.items():
        found[kind] = save(folder / kind, family, PICTURE, CROPPED)
    video = {**PICTURE, "num_frames": 4, "tubelet_size": 2, "use_mean_pooling": False}
    found["videomae"] = save(folder / "videomae", "VideoMAE", video, CROPPED)
    return found


KINDS = {
    "whisper": ("whisper", POOLED_SOUND),
    "whisper, mel on the device": ("whisper", tuple({**each, "mel": "device"} for each in POOLED_SOUND)),
    "whisper, disturbed": ("whisper", tuple({**each, "perturb": "noise:20"} for each in POOLED_SOUND)),
    "eva-global": ("eva-global", ({},)),
    "eva-temporal": ("eva-temporal", tuple({"frames": 4, "grid": grid} for grid in (1, 2, 4))),
    **{kind: ("hf-audio", tuple({**each, "seconds": 3} for each in POOLED_SOUND)) for kind in AUDIO},
    **{kind: ("hf-image", tuple({"pool": pool} for pool in ("grid", "cls", "all")[:: 2 if kind == "siglip" else 1]))
       for kind in IMAGE},
    "videomae": ("hf-video", tuple({"grid": grid} for grid in (1, 2))),
}  # fmt: skip
"""Encoder, and the options of features that share a forward."""


def opened(kind: str, checkpoints: dict[str, Path], device: str = "cpu") -> list[Encoder]:
    name, several = KINDS[kind]
    place = checkpoints.get(kind.partition(",")[0]) or checkpoints["eva"]
    return [open_encoder(name, weights=str(place), device=device, options={**each, "batch": BATCH}) for each in several]


def rows_of(store: Path) -> dict[str, dict[str, bytes]]:
    found = open_store(store)
    return {name: {clip_id: found[name][clip_id].tobytes() for clip_id in found[name].ids} for name in found.names}


def pairs(names: list[str]) -> Iterator[tuple[str, ...]]:
    """Every order of every pair, and all together both ways round."""
    yield from itertools.permutations(names, 2)
    yield tuple(names)
    yield tuple(names[::-1])


@pytest.mark.parametrize("kind", [kind for kind, (_, several) in KINDS.items() if len(several) > 1])
def test_features_that_share_a_forward_hold_what_each_holds_alone(
    kind: str, checkpoints: dict[str, Path], clips: ClipList, tmp_path: Path
) -> None:
    encoders = {f"f{number}": encoder for number, encoder in enumerate(opened(kind, checkpoints))}
    assert len({forward_key(encoder) for encoder in encoders.values()}) == 1
    for name, encoder in encoders.items():
        extract(open_store(tmp_path / "alone", "a"), clips, {name: encoder}, stored_dtype="float32")
    alone = rows_of(tmp_path / "alone")
    assert all(len(set(rows.values())) == len(rows) == len(SECONDS) for rows in alone.values())
    for number, names in enumerate(pairs(list(encoders))):
        together = tmp_path / str(number)
        some = {name: encoders[name] for name in names}
        summary = extract(open_store(together, "a"), clips, some, stored_dtype="float32")
        assert summary.num_forwards == len(clips) / BATCH
        assert rows_of(together) == {name: alone[name] for name in sorted(names)}, names


@pytest.mark.parametrize("kind", ["whisper", "hubert"])
def test_pooling_over_a_clips_own_time_beside_padded_pooling_is_that_average(
    kind: str, checkpoints: dict[str, Path], clips: ClipList, tmp_path: Path
) -> None:
    padded, valid, _ = opened(kind, checkpoints)
    extract(open_store(tmp_path / "s", "a"), clips, {"padded": padded, "valid": valid}, stored_dtype="float32")
    feature = open_store(tmp_path / "s")["valid"]
    for place, clip in enumerate(clips):
        if clip.id in ("words", "bad"):
            continue
        wave = decode(clip, [valid.view])[0]
        at = place % BATCH
        tokens = padded.forward(stack_inputs(padded, {at: padded.preprocess(wave)}))[at : at + 1]
        own = tokens[:, : valid.num_valid(wave)]
        assert np.array_equal(feature[clip.id], average_over_time(own, 64)[0].numpy())
        assert len(np.unique(feature[clip.id], axis=0)) >= min(own.shape[1], 64)


DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_clip_in_a_batch_has_the_same_tokens_whatever_its_neighbours_are(
    kind: str, device: str, checkpoints: dict[str, Path]
) -> None:
    random = np.random.default_rng(0)
    encoder = opened(kind, checkpoints, device)[:2][-1]
    if isinstance(encoder.view, AudioView):
        views = [(0.1 * random.standard_normal(round(16_000 * seconds))).astype(np.float32) for seconds in SECONDS]
    else:
        shape = (encoder.view.count, 40, 60, 3)
        views = [random.integers(0, 256, shape, np.uint8) for _ in SECONDS]
    inputs = [encoder.preprocess(view) for view in views]
    valid = [encoder.num_valid(view) if encoder.needs_valid else 0 for view in views]
    seen: dict[tuple[int, int], np.ndarray] = {}
    for first_clip, step in itertools.product(range(5), (0, 1)):
        clips_of_batch = [(*range(len(views)), None)[(first_clip + at * step) % 5] for at in range(BATCH)]
        places = {at: number for at, number in enumerate(clips_of_batch) if number is not None}
        if not places:
            continue
        tokens = encoder.forward(stack_inputs(encoder, {at: inputs[number] for at, number in places.items()}))
        pooled = pool_tokens(encoder, tokens, places, {at: valid[number] for at, number in places.items()})
        for at, number in places.items():
            row = pooled[at].cpu().numpy()
            assert np.array_equal(row, seen.setdefault((at, number), row)), clips_of_batch


def test_a_masked_network_takes_the_same_attention_kernel_for_a_batch_of_full_clips(
    checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, valid, _ = opened("hubert-stable", checkpoints)
    masks = []
    attention = torch.nn.functional.scaled_dot_product_attention

    def noted(*tensors: torch.Tensor, attn_mask: torch.Tensor | None = None, **settings: object) -> torch.Tensor:
        masks.append(attn_mask)
        return attention(*tensors, attn_mask=attn_mask, **settings)  # type: ignore[arg-type]

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", noted)
    long, short = (valid.preprocess(rec.sine(seconds)) for seconds in (3.4, 0.7))
    full = valid.forward(np.stack([long] * BATCH))
    mixed = valid.forward(np.stack([long, short, short]))
    assert masks
    assert all(mask is not None for mask in masks)
    assert full.shape[1] == valid.num_valid(rec.sine(3.4)) == 149
    assert torch.equal(full[0], mixed[0])


@pytest.mark.parametrize("kind", ["whisper", "wavlm"])
def test_a_store_of_valid_pooling_from_before_is_refused_and_padded_pooling_is_not(
    kind: str, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    padded, valid, _ = (encoder.spec("float16") for encoder in opened(kind, checkpoints))
    assert (padded.implementation, valid.implementation) == (1, 2)
    store = open_store(tmp_path / "s", "a")
    before = Spec(**{**valid.identity(), "implementation": 1})
    store.writer("wv", before)
    with pytest.raises(FingerprintError, match="implementation"):
        store.writer("wv", valid)


def test_a_number_of_valid_tokens_is_never_made_up(checkpoints: dict[str, Path]) -> None:
    _, valid, _ = opened("whisper", checkpoints)
    with pytest.raises(KeyError):
        pool_tokens(valid, torch.zeros(BATCH, 250, 16), {0, 1}, {0: 9})


def test_an_image_is_no_neighbour_of_sound(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    """A feature of sound and one of pictures have the same clips in the same slots, and share nothing."""
    Image.fromarray(rec.picture(3)).save(tmp_path / "still.png")
    (tmp_path / "clips.jsonl").write_text('{"id": "still", "image": "still.png"}\n')
    clips = load_clips(tmp_path / "clips.jsonl")
    some = {"sound": opened("whisper", checkpoints)[1], "picture": opened("eva-global", checkpoints)[0]}
    summary = extract(open_store(tmp_path / "s", "a"), clips, some)
    assert (summary.by_feature["sound"].absent, summary.by_feature["picture"].ok) == (1, 1)
