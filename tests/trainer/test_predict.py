"""`fusion-train predict`: clips in, answers out; bad clips named; a stopped run goes on."""

from __future__ import annotations

import errno
import json
import os
import shutil
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from exporting import SILENT
from recordings import sine, write_clip
from torch import nn
from toy import LABELS

from featurecache.clips.clip_list import Clip, ClipList
from featurecache.errors import MediaError
from featurecache.files.jsonl import require_objects
from featurecache.files.publish import write_error
from fusion_train.cli import main
from fusion_train.documents import write_document
from fusion_train.errors import DataError, ExportError
from fusion_train.evaluation.append_only import AppendedLines, read_lines
from fusion_train.models.attention import Attention
from fusion_train.models.conv_attention import ConvAttention
from fusion_train.predict.evidence import AudioTiming
from fusion_train.predict.opening import OpenedModel, open_model
from fusion_train.predict.picture import draw_answer
from fusion_train.predict.pipeline import PredictionLimits, predict
from fusion_train.predict.request import collect_clips, make_request
from fusion_train.predict.timing import STAGES, Timings, timing_answers
from fusion_train.remote.integrity import read_certificate

MODALITIES = ("audio", "image", "video")


@pytest.fixture(scope="module")
def opened(exported) -> OpenedModel:
    return open_model(exported, "cpu")


def invoke(*arguments: object):
    return CliRunner().invoke(main, ["predict", *map(str, arguments)])


def rows(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


def test_a_clip_list_is_answered_in_its_order_with_probabilities(exported, trained):
    result = invoke("--model", exported, trained.folder / "clips.jsonl", "--split", "val", "--json", "--batch-size", 3)
    assert result.exit_code == 0, result.output
    found = rows(result.stdout)
    assert [row["id"] for row in found] == ["v0", "v1", "v2", "v3"]
    for row in found:
        assert set(row["probabilities"]) == set(LABELS)
        assert sum(row["probabilities"].values()) == pytest.approx(1, abs=1e-4)
        assert row["answer"] == max(row["probabilities"], key=row["probabilities"].get)
        assert row["shown"] == (["image", "video"] if row["id"] == SILENT else list(MODALITIES))
    assert "4 clips in" in result.stderr
    assert all(stage in result.stderr for stage in STAGES)


def test_predict_answers_as_the_certified_model_does(opened, trained, model, processor):
    clips = trained.clips.in_split("val")
    question = make_request(opened.processor, "emotion")
    labels = processor.labels("emotion", "toy")
    for answer in predict(opened, clips, question, limits=PredictionLimits(batch_size=1)):
        inputs = processor(video=trained.video(answer.clip.id), text=answer.clip.text, task="emotion", dataset="toy")
        expected = model.label_probabilities(processor.label_ids(labels), **inputs)[0].tolist()
        assert list(answer.probabilities.values()) == expected


def test_a_folder_and_files_get_a_table(exported, trained):
    result = invoke("--model", exported, trained.folder / "clips", "--text", "Number 0!")
    assert result.exit_code == 0, result.output
    assert all(f"{clip}.mp4" in result.stdout for clip in ("t0", "v3"))
    one = invoke("--model", exported, trained.video("v0"))
    assert one.exit_code == 0
    assert "1 clip in" in one.stderr


def test_open_tasks_and_questions_are_generated(exported, trained):
    for asked in (["--task", "reason"], ["--question", "Is the person at ease?"]):
        result = invoke("--model", exported, trained.video("v0"), "--json", "--max-new-tokens", 4, *asked)
        assert result.exit_code == 0, result.output
        (row,) = rows(result.stdout)
        assert "probabilities" not in row
        assert isinstance(row["answer"], str)


def test_choices_of_ones_own_are_a_closed_set(exported, trained):
    result = invoke(
        "--model", exported, trained.video("v0"), "--json", "--choices", "yes, no", "--question", "At ease?"
    )
    (row,) = rows(result.stdout)
    assert set(row["probabilities"]) == {"yes", "no"}


def test_a_second_run_goes_on_after_the_last_whole_line(exported, trained, tmp_path):
    out = tmp_path / "answers.jsonl"
    command = ["--model", exported, trained.folder / "clips.jsonl", "--split", "val", "--out", out]
    assert invoke(*command).exit_code == 0
    whole = out.read_text()
    lines = whole.splitlines(keepends=True)
    out.write_text("".join(lines[:2]) + lines[2][:20])
    again = invoke(*command)
    assert again.exit_code == 0, again.output
    assert "2 of 4 clips were answered before" in again.stderr
    assert [row["id"] for row in rows(out.read_text())] == ["v0", "v1", "v2", "v3"]
    for row, before in zip(rows(out.read_text()), rows(whole), strict=True):
        assert row["answer"] == before["answer"]
    stamp = out.stat().st_mtime_ns
    assert invoke(*command).exit_code == 0
    assert out.stat().st_mtime_ns == stamp
    out.write_text(out.read_text().replace('"answer": "', '"answer": "no'))
    changed = invoke(*command)
    assert changed.exit_code == 2
    assert "line 1 that was changed since it was written" in changed.stderr


def test_a_clip_that_failed_is_asked_again(exported, tmp_path):
    out, clip = tmp_path / "answers.jsonl", tmp_path / "a.mp4"
    clip.write_bytes(b"")
    command = ["--model", exported, clip, "--out", out]
    assert invoke(*command).exit_code == 1
    assert "error" in rows(out.read_text())[0]
    write_clip(clip, sound=sine(1.0))
    assert invoke(*command).exit_code == 0
    (row,) = read_lines(out)  # as it is read to be scored, though the line was written anew
    assert "answer" in row


def test_answers_to_another_question_are_not_mixed(exported, trained, tmp_path):
    out = tmp_path / "answers.jsonl"
    assert invoke("--model", exported, trained.video("v0"), "--out", out).exit_code == 0
    before = out.read_bytes()
    result = invoke("--model", exported, trained.video("v1"), "--out", out, "--task", "reason")
    assert result.exit_code == 2
    assert "another task on line 1" in result.stderr
    assert out.read_bytes() == before
    out.write_text("not ours\n")
    assert "line 1 that is none" in invoke("--model", exported, trained.video("v1"), "--out", out).stderr


def test_bad_clips_are_one_line_each_and_stop_nothing(exported, trained, tmp_path):
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "notes.mp4").write_text("This is not a video, whatever its name says.\n" * 50)
    write_clip(tmp_path / "long.mp4", num_frames=12, rate=1)
    shutil.copy(trained.video("v0"), tmp_path / "good.mp4")
    write_clip(tmp_path / "silent.mp4", num_frames=6)
    write_clip(tmp_path / "dark.mp4", num_frames=0, sound=sine(1.0))
    result = invoke("--model", exported, tmp_path, "--json", "--max-seconds", 5)
    assert result.exit_code == 1
    assert "Traceback" not in result.output
    found = {row["id"]: row for row in rows(result.stdout)}
    assert {name for name, row in found.items() if "error" in row} == {"empty.mp4", "notes.mp4", "long.mp4"}
    assert found["silent.mp4"]["shown"] == ["image", "video"]
    assert found["dark.mp4"]["shown"] == ["audio"]
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 3
    assert any("at most 0:05 of sound and pictures, got 0:12" in line for line in errors)
    assert any('clip "empty.mp4"' in line for line in errors)
    assert any('clip "notes.mp4"' in line for line in errors)


def test_three_hours_are_refused_before_anything_is_decoded(opened, tmp_path):
    clip = write_clip(tmp_path / "film.mkv", num_frames=4, times=[0, 1000, 2000, 3 * 3600 * 1000])
    question = make_request(opened.processor, "emotion")
    timings = Timings()
    (answer,) = predict(opened, ClipList([Clip("film", video=clip)]), question, timings=timings)
    assert isinstance(answer.error, MediaError)
    assert "at most 10:00 of sound and pictures, got 3:00:0" in str(answer.error)
    assert timings.stages["decode"] < 1
    part = ClipList([Clip("film", video=clip, start_s=0.0, end_s=3.0)])
    assert next(predict(opened, part, question)).error is None


def test_a_task_about_what_a_clip_does_not_have_is_refused(exported, tmp_path):
    clip = write_clip(tmp_path / "silent.mp4", num_frames=6)
    result = invoke("--model", exported, clip, "--task", "audio")
    assert result.exit_code == 1
    assert "expected audio, which the task audio is about, got none of it" in result.stderr
    assert "was not trained on the task audio" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere.mp4"], "expected a media file, a folder or a clip list"),
        (["{video}", "--task", "emotoin"], 'Did you mean "emotion"?'),
        (["{video}", "--device", "tpu"], "a device of this machine"),
        (["{folder}"], "none in this folder"),
        (["{video}", "{video}"], "every id once"),
        ([], "Missing argument"),
    ],
)
def test_wrong_use_is_one_message_and_exit_code_2(exported, trained, tmp_path, arguments, said):
    (tmp_path / "none").mkdir()
    filled = [text.format(video=trained.video("v0"), folder=tmp_path / "none") for text in arguments]
    result = invoke("--model", exported, *filled)
    assert result.exit_code == 2, result.output
    assert said in result.stderr
    assert "Traceback" not in result.output


def test_a_folder_that_was_changed_is_not_used(exported, trained, tmp_path):
    copy = shutil.copytree(exported, tmp_path / "copy")
    weights = copy / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    result = invoke("--model", copy, trained.video("v0"))
    assert result.exit_code == 2
    assert "changed: model.safetensors" in result.stderr
    assert "certificate" in invoke("--model", tmp_path, trained.video("v0")).stderr


def test_what_a_hub_adds_is_no_change(exported, trained, tmp_path):
    copy = shutil.copytree(exported, tmp_path / "copy")
    (copy / ".gitattributes").write_text("*.safetensors filter=lfs\n")
    (copy / ".cache").mkdir()
    assert open_model(copy, "cpu").identity


@pytest.mark.parametrize(
    "edit",
    [[], "passed", {"files": 5}, {"files": {"a": 1}}, {"run": "x"}, {"run": {}}, {"figures": None}, {"passed": None}],
)
def test_an_odd_certificate_is_refused_in_one_line(exported, trained, tmp_path, edit):
    copy = shutil.copytree(exported, tmp_path / "copy")
    certificate = json.loads((copy / "certificate.json").read_text())
    del certificate["checksum"]
    odd = certificate | edit if isinstance(edit, dict) else edit
    (copy / "certificate.json").write_text(json.dumps(odd))
    result = invoke("--model", copy, trained.video("v0"))
    assert result.exit_code == 2
    assert "certificate.json: expected the certificate of an exported folder" in result.stderr


def test_no_flip_of_a_certificate_is_read_as_something_else(exported, tmp_path):
    data, sound = (exported / "certificate.json").read_bytes(), read_certificate(exported)
    for bit in range(0, 8 * len(data), max(1, 8 * len(data) // 150) | 1):
        (tmp_path / "certificate.json").write_bytes(
            data[: bit // 8] + bytes([data[bit // 8] ^ (1 << bit % 8)]) + data[bit // 8 + 1 :]
        )
        with suppress(ExportError):
            assert read_certificate(tmp_path) == sound


def test_no_code_of_the_folder_runs(exported, trained, tmp_path, monkeypatch):
    copy = shutil.copytree(exported, tmp_path / "copy")
    for path in copy.glob("*.py"):
        path.write_text("raise SystemExit('this ran')\n")
    certificate = json.loads((copy / "certificate.json").read_text())
    from fusion_train.remote.integrity import file_hashes

    write_document(copy / "certificate.json", certificate | {"files": file_hashes(copy)})
    assert invoke("--model", copy, trained.video("v0")).exit_code == 0


def test_leaving_out_a_modality_equals_a_clip_that_never_had_it(opened, trained, tmp_path):
    """The drop is against the prompt of a clip without sound, not against zeros."""
    silent = tmp_path / "v0.mp4"
    write_clip(silent, num_frames=6)
    heard = tmp_path / "heard.mp4"
    write_clip(heard, num_frames=6, sound=sine(0.6))
    question = make_request(opened.processor, "emotion")
    clips = ClipList([Clip("heard", video=heard, text="I see.", dataset="toy")])
    (answer,) = predict(opened, clips, question, look=True)
    (without,) = predict(opened, ClipList([Clip("silent", video=silent, text="I see.", dataset="toy")]), question)
    assert answer.evidence.without["audio"] == pytest.approx(without.probabilities, abs=1e-6)
    drops = answer.evidence.drops(answer.probabilities, answer.text)
    assert set(drops) == set(MODALITIES)
    assert drops["audio"] == pytest.approx(
        answer.probabilities[answer.text] - without.probabilities[answer.text], abs=1e-6
    )


def test_what_a_clip_lacks_cannot_be_left_out(opened, trained):
    clips = ClipList([clip for clip in trained.clips if clip.id in ("v1", SILENT)])
    question = make_request(opened.processor, "emotion")
    answers = {answer.clip.id: answer for answer in predict(opened, clips, question, look=True)}
    assert set(answers[SILENT].evidence.without) == {"image", "video"}
    assert set(answers[SILENT].evidence.weights) == {"image", "video"}
    assert set(answers["v1"].evidence.without) == set(MODALITIES)


@pytest.mark.parametrize("variant", [ConvAttention, Attention])
def test_the_weights_shown_are_those_that_the_fusion_uses(variant):
    torch.manual_seed(0)
    fusion = variant((6, 5), hidden=(8, 4), out_dim=3, dropout=0.0).eval()
    features = [torch.randn(2, 7, 6), torch.randn(2, 7, 5)]
    prepared = torch.stack(fusion.prepare(features), dim=-1)
    weights = fusion.modality_weights(features)
    mixed = (prepared * weights[:, :, None]).sum(dim=-1)
    if variant is ConvAttention:
        mixed = mixed + fusion.conv_branch(torch.cat(fusion.prepare(features), dim=-1))
    torch.testing.assert_close(fusion.output(mixed), fusion(features))


def test_a_picture_is_drawn_of_every_answer(exported, trained, tmp_path):
    result = invoke("--model", exported, trained.video("v0"), trained.video(SILENT), "--look", tmp_path / "look")
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in (tmp_path / "look").iterdir()) == ["v0.mp4.png", f"{SILENT}.mp4.png"]
    assert "drop without" in result.stdout


def test_an_answer_in_words_is_drawn_without_probabilities(opened, trained, tmp_path):
    question = make_request(opened.processor, "reason", max_new_tokens=4)
    clips = ClipList([Clip("v0", video=Path(trained.video("v0")))])
    (answer,) = predict(opened, clips, question, look=True)
    draw_answer(answer, tmp_path / "one.png")
    assert (tmp_path / "one.png").stat().st_size > 10_000


def test_audio_tokens_are_counted_to_the_one_in_which_the_sound_ends():
    sound = AudioTiming(16_000, 64, 30 / 64)
    assert [sound.num_filled(n) for n in (1, 7_500, 7_501, 480_000, 600_000)] == [1, 1, 2, 64, 64]


def test_names_are_kinds_of_media_by_their_endings(tmp_path):
    for name in ("a.mp4", "b.WAV", "c.png", "d.txt"):
        (tmp_path / name).write_bytes(b"x")
    clips = collect_clips([tmp_path])
    assert [(clip.id, clip.video is not None, clip.audio is not None, clip.image is not None) for clip in clips] == [
        ("a.mp4", True, False, False),
        ("b.WAV", False, True, False),
        ("c.png", False, False, True),
    ]


def test_every_stage_is_timed(opened, trained):
    timings = Timings()
    question = make_request(opened.processor, "reason", max_new_tokens=4)
    list(predict(opened, trained.clips.in_split("val"), question, timings=timings))
    assert all(timings.stages[stage] > 0 for stage in STAGES)
    assert timings.num_clips == 4
    assert 0 < timings.first_answer_s <= timings.wall_s


def test_the_first_pass_of_the_language_model_is_the_prefix():
    class Slow(nn.Module):
        def forward(self, seconds: float) -> None:
            time.sleep(seconds)

    llm, timings = Slow(), Timings()
    with timing_answers(llm, timings):
        llm(0.05)
        llm(0.1)
        llm(0.1)
    assert 0.05 <= timings.stages["prefix"] < 0.1
    assert timings.stages["text"] >= 0.2
    assert not llm._forward_hooks


def test_any_file_name_is_answered_and_a_stopped_prediction_goes_on_after_it(exported, tmp_path):
    folder, out = tmp_path / "clips", tmp_path / "answers.jsonl"
    folder.mkdir()
    names = ["a\u2028b", "a\x85b", os.fsdecode(b"caf\xe9"), "\x1b[31mred", "[laughs] [bold]", "plain"]
    write_clip(tmp_path / "one.mp4", sound=sine(1.0))
    for name in names:
        shutil.copy(tmp_path / "one.mp4", os.fsencode(folder / f"{name}.mp4"))
    command = ["--model", exported, folder, "--out", out]
    first = invoke(*command)
    assert first.exit_code == 0, first.output
    before = out.read_bytes()
    assert {row["id"] for row in require_objects(out, DataError)} == {f"{name}.mp4" for name in names}
    again = invoke(*command)
    assert again.exit_code == 0, again.output
    assert "6 of 6 clips were answered before" in again.stderr
    assert out.read_bytes() == before
    table = invoke("--model", exported, folder)
    assert table.exit_code == 0
    assert "\x1b" not in table.stdout + table.stderr
    assert "[laughs] [bold].mp4" in table.stdout
    assert r"\x1b[31mred.mp4" in table.stdout
    assert r"caf\udce9.mp4" in table.stdout


def test_a_picture_that_does_not_fit_costs_no_answer_and_is_drawn_by_the_next_run(
    exported, trained, tmp_path, monkeypatch
):
    from fusion_train.predict import picture

    written, drawn = picture.replace_bytes, []

    def full(path: Path, data: bytes) -> None:
        drawn.append(path)
        if len(drawn) == 2:
            raise write_error(path, OSError(errno.ENOSPC, "full"))
        written(path, data)

    given = ["--model", exported, trained.video("v0"), trained.video("v1"), trained.video("v2")]
    given += ["--out", tmp_path / "answers.jsonl", "--look", tmp_path / "look"]
    with monkeypatch.context() as patched:
        patched.setattr(picture, "replace_bytes", full)
        result = invoke(*given)
    assert result.exit_code == 1, result.output
    assert "error:" in result.stderr
    assert "the disk is full" in result.stderr
    assert [row["id"] for row in require_objects(tmp_path / "answers.jsonl", DataError)] == ["v0.mp4"]
    result = invoke(*given)
    assert result.exit_code == 0, result.output
    assert [row["id"] for row in require_objects(tmp_path / "answers.jsonl", DataError)] == [
        "v0.mp4",
        "v1.mp4",
        "v2.mp4",
    ]
    assert len(list((tmp_path / "look").iterdir())) == 3


@pytest.mark.parametrize("option", ["--out", "--look"])
def test_a_place_that_cannot_be_written_is_told_before_the_model_is_opened(tmp_path, option):
    (tmp_path / "file").write_text("mine")
    result = invoke("--model", tmp_path / "no-model", tmp_path / "a.mp4", option, tmp_path / "file" / "answers")
    assert result.exit_code == 1, result.output
    assert "a file where a folder should be" in result.stderr
    assert (tmp_path / "file").read_text() == "mine"


def test_answers_may_go_to_a_pipe(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    received: list[bytes] = []
    reader = threading.Timer(0.2, lambda: received.append(pipe.read_bytes()))  # comes after the writer
    reader.daemon = True
    reader.start()
    with AppendedLines(pipe) as lines:
        lines.append([{"id": "a"}])
        lines.append([{"id": "b"}])
    reader.join(timeout=30)
    assert received == [b'{"id": "a"}\n{"id": "b"}\n']
