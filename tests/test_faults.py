"""Whose fault a failure is: a clip's media make a record, anything else ends the run, as do first clips all alike."""

from __future__ import annotations

import copy
import errno
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import recordings as rec
from click.testing import CliRunner
from PIL import Image
from stub_encoders import StubEncoder, stub_encoders

from featurecache import load_clips, open_store
from featurecache.cli import main
from featurecache.clips.clip_list import ClipList
from featurecache.errors import MediaError
from featurecache.extract import prepare as preparation
from featurecache.extract.run import extract
from featurecache.maintenance.retry import retry
from featurecache.media import decode as media
from featurecache.store.protocols import Status
from featurecache.views import AudioView, FramesView

NUM_CLIPS = 12


def listed(folder: Path, rows: list[dict[str, object]]) -> ClipList:
    (folder / "clips.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_clips(folder / "clips.jsonl")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Recordings of every kind: with sound and pictures, without sound, a picture, and one that is none."""
    folder = tmp_path_factory.mktemp("clips")
    rec.write_clip(folder / "whole.mp4", num_frames=6, sound=rec.sine(0.4))
    rec.write_clip(folder / "mute.mp4", num_frames=6)
    Image.fromarray(rec.picture(3)).save(folder / "still.png")
    (folder / "bad.mp4").write_bytes(b"nonsense" * 100)
    return folder


def many(folder: Path, kind: str, name: str, count: int = NUM_CLIPS) -> ClipList:
    return listed(folder, [{"id": f"c{number}", kind: name} for number in range(count)])


class Raising(StubEncoder):
    """Raises for every clip, or only for the one that is number `at`."""

    def __init__(self, error: Exception, at: int | None = None) -> None:
        super().__init__("loudness", AudioView())
        self.error, self.at, self.calls = error, at, 0

    def preprocess(self, view: np.ndarray) -> np.ndarray:
        self.calls += 1
        if self.at in (None, self.calls):
            raise self.error
        return super().preprocess(view)


@pytest.mark.parametrize("error", [TypeError("open() got an unexpected keyword"), AttributeError("x"), ValueError("x")])
def test_an_error_of_the_program_ends_the_run_names_the_clip_and_keeps_what_is_finished(
    error: Exception, folder: Path, tmp_path: Path
) -> None:
    clips = many(folder, "video", "whole.mp4")
    with pytest.raises(type(error)) as caught:
        extract(open_store(tmp_path / "s", "a"), clips, {"loudness": Raising(error, at=7)}, workers=1)
    assert any('clip "c6"' in note for note in caught.value.__notes__)
    assert any("kept" in note for note in caught.value.__notes__)
    assert list(open_store(tmp_path / "s")["loudness"].ids) == [f"c{number}" for number in range(6)]
    assert extract(open_store(tmp_path / "s", "a"), clips, stub_encoders()).by_feature["loudness"].ok == 6


def test_a_call_of_the_decoder_that_no_release_takes_ends_the_run(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(*args: object) -> object:
        raise TypeError("open() got an unexpected keyword argument 'metadata_errors'")

    monkeypatch.setattr("featurecache.media.recording.Recording.decode", wrong)
    with pytest.raises(TypeError, match="metadata_errors"):
        extract(open_store(tmp_path / "s", "a"), many(folder, "video", "whole.mp4"), stub_encoders())
    assert not any(
        len(list(feature.records())) for feature in map(open_store(tmp_path / "s").__getitem__, ("loudness",))
    )


def test_an_encoder_says_with_a_media_error_that_a_clip_is_at_fault(folder: Path, tmp_path: Path) -> None:
    error = MediaError('clip "c2"', expected="a face in its pictures", got="none")
    summary = extract(
        open_store(tmp_path / "s", "a"),
        many(folder, "video", "whole.mp4"),
        {"loudness": Raising(error, at=3)},
        workers=1,
    )
    assert (summary.by_feature["loudness"].ok, summary.by_feature["loudness"].failed) == (NUM_CLIPS - 1, 1)
    assert open_store(tmp_path / "s")["loudness"].record("c2").reason == "expected a face in its pictures, got none"


def test_tokens_of_a_wrong_shape_end_the_run(folder: Path, tmp_path: Path) -> None:
    class Wrong(StubEncoder):
        def pool(self, tokens):  # type: ignore[no-untyped-def]
            return super().pool(tokens[:, :3])

    with pytest.raises(ValueError, match="expected shape"):
        extract(open_store(tmp_path / "s", "a"), many(folder, "video", "whole.mp4"), {"x": Wrong("x", AudioView())})


@pytest.mark.parametrize(("number", "is_file"), [(errno.EMFILE, False), (errno.ESTALE, False), (errno.EACCES, True)])
@pytest.mark.parametrize("place", ["decode", "hash"])
def test_an_error_of_the_machine_is_not_the_files(
    number: int, is_file: bool, place: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*args: object) -> object:
        raise OSError(number, "refused")

    if place == "decode":
        monkeypatch.setattr("featurecache.media.recording.Recording.decode", refused)
    else:
        monkeypatch.setattr(preparation, "clip_source", refused)
    clips = many(folder, "video", "whole.mp4", 2)
    if is_file:
        assert extract(open_store(tmp_path / "s", "a"), clips, stub_encoders()).by_feature["loudness"].failed == 2
    else:
        with pytest.raises(OSError, match="refused"):
            extract(open_store(tmp_path / "s", "a"), clips, stub_encoders())


@pytest.mark.parametrize("error", [RuntimeError("no image item"), KeyError(3), IndexError("x"), TypeError("x")])
def test_whatever_pillow_says_of_a_picture_is_the_pictures_fault(error: Exception, folder: Path) -> None:
    """Its decoders raise anything on damaged bytes; called wrongly, it is our fault."""
    clip = many(folder, "image", "still.png", 1).by_id("c0")
    view = FramesView(1, "peak", still=True)
    source = "def load(self):\n    raise copy.copy(error)\n"
    scope: dict[str, object] = {"error": error, "copy": copy}
    exec(source, scope)
    for module, expected in (("PIL.SomePlugin", MediaError), ("featurecache.media.still", type(error))):
        scope["__name__"] = module
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("PIL.PngImagePlugin.PngImageFile.load", scope["load"])
            with pytest.raises(expected):
                media.decode(clip, [view])


def test_first_clips_that_all_fail_alike_end_the_run_with_advice_and_no_record(folder: Path, tmp_path: Path) -> None:
    clips = many(folder, "video", "gone.mp4")
    for shard_clips in (2, 100):
        location = tmp_path / str(shard_clips)
        with pytest.raises(MediaError, match=r"first 8 clips.*no such file.*--media-root.*--max-failures N") as caught:
            extract(open_store(location, "a"), clips, stub_encoders(), shard_clips=shard_clips)
        assert caught.value.problems == [f"c{number}" for number in range(8)]
        assert not list(open_store(location)["loudness"].records())
        summary = extract(open_store(location, "a"), clips, stub_encoders(), max_failures=10 * NUM_CLIPS)
        assert summary.by_feature["loudness"].failed == NUM_CLIPS


def test_tokens_that_none_of_the_first_clips_can_store_end_the_run(folder: Path, tmp_path: Path) -> None:
    class Overflowing(StubEncoder):
        def pool(self, tokens):  # type: ignore[no-untyped-def]
            return super().pool(np.full_like(tokens, np.inf))

    with pytest.raises(MediaError, match="cannot be stored"):
        extract(
            open_store(tmp_path / "s", "a"), many(folder, "video", "whole.mp4"), {"x": Overflowing("x", AudioView())}
        )


@pytest.mark.parametrize(
    "rows",
    [
        [{"video": "mute.mp4"}] * NUM_CLIPS,  # absent, not failed
        [{"video": "gone.mp4"}] * 7 + [{"video": "whole.mp4"}] * 3,
        [{"video": "gone.mp4"}, {"video": "bad.mp4"}] * 5,  # of two kinds
        [{"video": "gone.mp4"}] * 7,  # too few to tell
        [{"video": "whole.mp4"}] + [{"video": "gone.mp4"}] * NUM_CLIPS,
        [{"image": "still.png"}] * NUM_CLIPS,
        [{"text": "Words alone."}] * NUM_CLIPS,
    ],
)  # fmt: skip
def test_lists_that_look_alike_and_are_sound_run_to_their_end(
    rows: list[dict[str, object]], folder: Path, tmp_path: Path
) -> None:
    clips = listed(folder, [{"id": f"c{number}", **row} for number, row in enumerate(rows)])
    summary = extract(open_store(tmp_path / "s", "a"), clips, stub_encoders(), shard_clips=2)
    assert summary.num_clips == len(rows)
    assert summary.num_left == 0
    assert len(list(open_store(tmp_path / "s")["colours"].records())) == len(rows)


def test_retrying_clips_that_all_fail_again_goes_to_its_end(folder: Path, tmp_path: Path) -> None:
    clips, some = many(folder, "video", "gone.mp4"), {"loudness": stub_encoders()["loudness"]}
    extract(open_store(tmp_path / "s", "a"), clips, some, max_failures=100)
    open_for: Callable = lambda spec: some[spec.encoder]  # noqa: E731
    assert (
        retry(open_store(tmp_path / "s", "a"), clips, ["loudness"], open_for).by_feature["loudness"].failed == NUM_CLIPS
    )


def test_the_command_says_it_in_a_few_lines(folder: Path, tmp_path: Path, whisper_folder: Path) -> None:
    many(folder, "video", "gone.mp4")
    arguments = ["extract", "--clips", str(folder / "clips.jsonl"), "--store", str(tmp_path / "s.zarr")]
    result = CliRunner().invoke(main, [*arguments, "--encoder", "whisper", "--weights", f"whisper={whisper_folder}"])
    assert result.exit_code == 1
    assert "no such file" in result.output
    assert "Traceback" not in result.output
    assert open_store(tmp_path / "s.zarr")["whisper"].counts[Status.FAILED] == 0
