"""The demo's clips and models: the same from the same seed, readable by the product's own readers, and telling nothing
that they should not."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import re
import sys
from pathlib import Path

import av
import numpy as np
import pytest
import torch
import yaml
from transformers import AutoTokenizer, Blip2VisionModel, LlamaForCausalLM, WhisperModel

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))

import demo_cues
import demo_encoders
import demo_language
import demo_sweeps
import make_demo_clips
from demo_face import FPS, HEIGHT, LOOKS, WIDTH, Person, portraits
from demo_voice import SAMPLING_RATE, VOICES, Speaker, speak

from featurecache.clips.clip_list import load_clips
from featurecache.encoders import open_encoder
from fusion_train.prompts.prompt import PromptFormat, encode_answer, encode_prompt, find_task


@pytest.fixture(scope="module")
def clips_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    make_demo_clips.make_clips(folder, num_clips=3, seed=5, workers=1, awkward=True)
    return folder


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    demo_language.make_language_model(folder, seed=1, num_steps=2)
    return folder


@pytest.fixture(scope="module")
def tokenizer(llama: Path):
    return AutoTokenizer.from_pretrained(llama)


def test_no_two_emotions_share_both_look_and_voice():
    pairs = {(demo_cues.LOOK_OF[emotion], demo_cues.VOICE_OF[emotion]) for emotion in demo_cues.EMOTIONS}
    assert len(pairs) == len(demo_cues.EMOTIONS) == 6


@pytest.mark.parametrize("cue_of", [demo_cues.LOOK_OF, demo_cues.VOICE_OF], ids=["look", "voice"])
def test_one_modality_alone_tells_four_of_six_emotions_at_most(cue_of):
    assert set(cue_of) == set(demo_cues.EMOTIONS)
    assert len(set(cue_of.values())) == 4


def test_every_cue_can_be_drawn_spoken_and_described():
    assert set(LOOKS) == set(demo_cues.LOOK_OF.values()) == set(demo_cues.SEEN)
    assert set(VOICES) == set(demo_cues.VOICE_OF.values()) == set(demo_cues.HEARD)


def test_a_subtitle_does_not_depend_on_the_emotion():
    told = [
        demo_cues.sentences(emotion, "train", np.random.default_rng(seed))
        for emotion in ("sad", "happy")
        for seed in (1, 2)
    ]
    words = {word for text in told for word in text.subtitle.lower().strip(".?").split()}
    assert not words & set(demo_cues.EMOTIONS)


def test_responses_describe_what_is_in_the_clip_and_conclude_with_its_label():
    for number in range(12):
        row = make_demo_clips.describe(0, number)
        emotion = row["labels"]["emotion"]
        look, voice = demo_cues.LOOK_OF[emotion], demo_cues.VOICE_OF[emotion]
        for text in (row["responses"]["reason"].lower(), row["responses"]["think"].lower()):
            assert any(cue in text for cue in demo_cues.SEEN[look])
            assert any(cue in text for cue in demo_cues.HEARD[voice])
            assert emotion in text
        assert row["responses"]["think"].endswith(f"</think><answer>{emotion}</answer>")


@pytest.mark.parametrize("seed", [0, 1])
def test_no_text_of_one_split_is_a_text_of_another_whatever_its_spelling_and_order(seed):
    said: dict[str, set[tuple[str, ...]]] = {"train": set(), "val": set(), "test": set()}
    for number in range(960):
        row = make_demo_clips.describe(seed, number)
        for text in (row["text"], *row["responses"].values()):
            words = tuple(sorted(re.findall(r"[a-z]+", text.lower())))
            said[row["split"]].add(words)
    assert min(map(len, said.values())) > 60
    for one, other in itertools.combinations(said.values(), 2):
        assert not one & other


def test_the_language_model_of_the_demo_reads_texts_of_the_training_split_only(monkeypatch):
    read = []

    def noted(emotion, split, rng):
        read.append(split)
        return demo_cues.sentences(emotion, split, rng)

    monkeypatch.setattr(demo_language, "sentences", noted)
    demo_language._sample_texts(np.random.default_rng(0), 12)
    assert read == ["train"] * 12


def test_every_phrase_of_a_test_text_is_in_some_training_text():
    pairs = [(a, b) for a in range(3) for b in range(3) if demo_cues.split_of_cues(a, b) == "train"]
    assert {a for a, _ in pairs} == {b for _, b in pairs} == {0, 1, 2}


def test_every_split_is_balanced_and_shares_no_person_with_another():
    rows = [make_demo_clips.describe(0, number) for number in range(480)]
    for split, share in (("train", 240), ("val", 48), ("test", 192)):
        emotions = [row["labels"]["emotion"] for row in rows if row["split"] == split]
        assert [emotions.count(emotion) for emotion in demo_cues.EMOTIONS] == [share // 6] * 6
    for one, other in itertools.combinations(make_demo_clips.PEOPLE.values(), 2):
        assert not set(one) & set(other)


def test_a_clip_is_a_function_of_seed_and_number():
    first, again, other = (make_demo_clips.render(seed, 4) for seed in (0, 0, 1))
    assert np.array_equal(first[0], again[0])
    assert np.array_equal(first[1], again[1])
    assert first[2] == again[2]
    assert first[0].shape != other[0].shape or not np.array_equal(first[0], other[0])


def test_the_same_arrays_give_the_same_mp4_bytes(tmp_path: Path):
    frames, sound, _ = make_demo_clips.render(0, 1, duration_s=0.6)
    for name in ("a.mp4", "b.mp4"):
        make_demo_clips.write_mp4(tmp_path / name, frames, sound)
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()


def test_two_workers_write_what_one_writes(tmp_path: Path, clips_folder: Path):
    make_demo_clips.make_clips(tmp_path, num_clips=3, seed=5, workers=2)
    for number in range(3):
        name = f"clips/demo_{number:04d}.mp4"
        assert (tmp_path / name).read_bytes() == (clips_folder / name).read_bytes()


def test_a_clip_holds_the_frames_and_the_sound_that_were_made(clips_folder: Path):
    clip = load_clips(clips_folder / "clips.jsonl")[0]
    frames, sound, peak = make_demo_clips.render(5, 0)
    with av.open(str(clip.video)) as container:
        assert container.streams.video[0].codec_context.name == "h264"
        assert container.streams.video[0].average_rate == FPS
        decoded = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    with av.open(str(clip.video)) as container:
        heard = np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)])
    assert len(decoded) == len(frames)
    assert decoded[0].shape == (HEIGHT, WIDTH, 3)
    assert np.abs(decoded[peak].astype(int) - frames[peak]).mean() < 6
    assert clip.peak_frame == peak < len(frames)
    assert abs(len(heard) - len(sound)) <= 3 * 1024  # AAC works in blocks of 1024


def test_the_awkward_clips_are_awkward(clips_folder: Path):
    silent, short, corrupt = load_clips(clips_folder / "clips.jsonl")[3:]
    with av.open(str(silent.video)) as container:
        assert not container.streams.audio
    with av.open(str(short.video)) as container:
        assert sum(1 for _ in container.decode(video=0)) == FPS
    with pytest.raises(av.FFmpegError):
        av.open(str(corrupt.video))


def test_faces_differ_by_look_and_only_where_the_face_moves():
    rng = np.random.default_rng(0)
    person = Person.draw(rng, rng)
    still, *others = (portraits([look], person, np.random.default_rng(1))[0].astype(int) for look in LOOKS.values())
    for other in others:
        changed = np.abs(other - still).max(axis=2) > 24
        assert 0.01 < changed.mean() < 0.2
        assert not changed[:, :60].any()


def test_voices_differ_in_loudness_and_never_clip():
    level = {}
    for name, voice in VOICES.items():
        sounds = [speak(voice, Speaker.draw(np.random.default_rng(k)), 1.0, np.random.default_rng(k)) for k in range(6)]
        assert all(sound.shape == (SAMPLING_RATE,) and sound.dtype == np.float32 for sound in sounds)
        assert max(np.abs(sound).max() for sound in sounds) < 1.0
        level[name] = np.mean([np.sqrt(np.mean(sound**2)) for sound in sounds])
    assert level["sharp"] > 1.5 * level["lilting"] > 1.5 * 1.5 * level["flat"]


def test_the_encoders_load_without_a_missing_weight(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(demo_encoders, "NUM_STUDIED", 2)
    demo_encoders.make_whisper(tmp_path / "whisper", seed=0)
    demo_encoders.make_eva(tmp_path / "eva", seed=0)
    for kind, name in ((WhisperModel, "whisper"), (Blip2VisionModel, "eva")):
        _, info = kind.from_pretrained(tmp_path / name, output_loading_info=True)
        assert not any(info.values()), info
    assert (tmp_path / "whisper" / "preprocessor_config.json").is_file()


def test_the_encoders_are_a_function_of_the_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(demo_encoders, "NUM_STUDIED", 1)
    digests = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        demo_encoders.make_eva(tmp_path / name, seed)
        digests.append(hashlib.sha256((tmp_path / name / "model.safetensors").read_bytes()).hexdigest())
    assert digests[0] == digests[1] != digests[2]


def test_signs_tell_an_open_mouth_a_flushed_cheek_and_a_tear_apart():
    pictures = demo_encoders.study(np.random.default_rng(2))
    shown = demo_encoders.signs(demo_encoders._squash(pictures, 224)).mean(dim=(2, 3))
    mouth, flush, tear = shown[list(LOOKS).index("open")], shown[list(LOOKS).index("tense")], shown[3]
    assert (int(mouth.argmax()), int(flush.argmax()), int(tear.argmax())) == (0, 1, 2)
    assert shown[0].max() < 0.1 * min(mouth[0], flush[1], tear[2])


def test_the_tokenizer_opens_with_the_special_tokens_of_llama_2(tokenizer):
    assert (tokenizer.unk_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)
    assert tokenizer("a key").input_ids[0] == 1
    assert tokenizer.encode("a key", add_special_tokens=False)[0] != 1
    assert 400 < len(tokenizer) <= demo_language.VOCABULARY


@pytest.mark.parametrize("text", ["The voice trembles.", "Zürich ☃  two spaces", "<think>so</think>", ""])
def test_the_tokenizer_gives_back_any_text(tokenizer, text):
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids) == text


def test_every_emotion_and_cue_is_one_token(tokenizer):
    for word in (*demo_cues.EMOTIONS, *LOOKS, *VOICES):
        assert len(tokenizer.encode(word, add_special_tokens=False)) == 1, word


def test_the_language_model_runs_on_the_prompts_of_the_trainer(llama: Path, tokenizer):
    model, info = LlamaForCausalLM.from_pretrained(llama, output_loading_info=True)
    assert not any(info.values()), info
    before, after = PromptFormat().render("I see.", find_task("emotion"), sorted(demo_cues.EMOTIONS))
    ids = [*encode_prompt(tokenizer, before, 0, after), *encode_answer(tokenizer, "sad")]
    logits = model(torch.tensor([ids])).logits
    assert logits.shape == (1, len(ids), len(tokenizer))
    assert torch.isfinite(logits).all()


def test_only_training_texts_of_the_corpus_are_read(tmp_path: Path):
    import make_demo_models

    rows = [{"id": split, "text": f"said in {split}", "split": split} for split in ("train", "val", "test")]
    (tmp_path / "clips.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    assert make_demo_models._texts(tmp_path / "clips.jsonl") == ["said in train"]


@pytest.mark.parametrize("sweep", ["tokens", "encoders"])
def test_the_demo_makes_every_feature_that_a_shipped_sweep_compares(sweep: str) -> None:
    file = yaml.safe_load((demo_sweeps.SWEEPS / f"{sweep}.yaml").read_text())
    compared = {name for settings in file["variants"].values() for name in settings.get("features", {}).values()}
    commands = demo_sweeps.commands(sweep)
    words = [word for command in commands for word in command]
    made = {after.partition("=")[0] for word, after in itertools.pairwise(words) if word == "--encoder"}
    assert compared <= made
    assert not any(published in word for word in words for published in demo_sweeps.SMALL)


def test_the_hub_encoders_of_the_demo_open_as_those_of_the_hub(tmp_path: Path) -> None:
    demo_encoders.make_hub_encoders(tmp_path, seed=0)
    for encoder, options in (
        (f"hf-audio:{tmp_path}/hubert", {}),
        (f"hf-audio:{tmp_path}/wavlm", {}),
        (f"hf-image:{tmp_path}/clip", {"pool": "all"}),
        (f"hf-video:{tmp_path}/videomae", {}),
    ):
        assert open_encoder(encoder, options=options).shape[1] == demo_encoders.WIDTH


def test_a_weakened_voice_lies_between_the_mean_of_all_and_itself():
    mean = VOICES["sharp"].weakened(0.0)
    assert mean.level_db == np.mean([voice.level_db for voice in VOICES.values()])
    assert dataclasses.astuple(VOICES["flat"].weakened(0.0)) == pytest.approx(dataclasses.astuple(mean))
    assert dataclasses.astuple(VOICES["flat"].weakened(1.0)) == pytest.approx(dataclasses.astuple(VOICES["flat"]))
    assert VOICES["flat"].weakened(0.5).pitch == pytest.approx((mean.pitch + 0.92) / 2)
