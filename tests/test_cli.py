"""`fcache` as a user meets it: defaults, messages, exit codes."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import recordings as rec
from checkpoints import save_eva
from click.testing import CliRunner, Result

from featurecache import open_store
from featurecache.cli import main
from featurecache.terminal import duration, show_progress


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whisper_folder: Path, eva_folder: Path) -> Path:
    """A folder with a clip list of three clips and both checkpoints, which is the working directory."""
    for number in range(2):
        rec.write_clip(tmp_path / f"c{number}.mp4", sound=rec.sine(1.0, 300 + 100 * number))
    rec.write_clip(tmp_path / "mute.mp4", num_frames=3)
    names = ("c0", "c1", "mute")
    (tmp_path / "clips.jsonl").write_text("".join(json.dumps({"id": n, "video": f"{n}.mp4"}) + "\n" for n in names))
    shutil.copytree(whisper_folder, tmp_path / "whisper")
    shutil.copytree(eva_folder, tmp_path / "eva")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def fcache(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


EXTRACT = ("extract", "--encoder", "whisper", "--weights", "whisper")
ALL = ("--encoder", "whisper", "--encoder", "eva-global", "--encoder", "eva-temporal")
ALL += ("--weights", "eva", "--weights", "whisper=whisper")


def test_extract_works_with_its_defaults_in_a_folder_with_a_clip_list(folder: Path) -> None:
    result = fcache(*EXTRACT)
    assert result.exit_code == 0, result.output
    assert "3 clips in" in result.output
    feature = open_store("features.zarr")["whisper"]
    assert list(feature.ids) == ["c0", "c1"]
    assert feature.dtype == "float16"
    again = fcache(*EXTRACT)
    assert again.exit_code == 0
    assert "Nothing to do" in again.output


def test_all_three_encoders_in_one_run_and_what_plan_said_before(folder: Path) -> None:
    planned = fcache("plan", *ALL)
    assert planned.exit_code == 0, planned.output
    assert "1025 × 24" in planned.output
    assert not Path("features.zarr").exists()
    assert fcache("extract", *ALL).exit_code == 0
    assert open_store("features.zarr").names == ["eva-global", "eva-temporal", "whisper"]
    assert "0 B to write" in fcache("plan", *ALL).output


def test_info_and_show_say_what_is_stored_and_why_something_is_not(folder: Path) -> None:
    (folder / "c1.mp4").write_bytes(b"nonsense" * 10)
    result = fcache(*EXTRACT)
    assert result.exit_code == 1
    assert "whisper: 1 failed: expected its video file to be readable" in result.output
    assert "(c1)" in result.output
    assert fcache(*EXTRACT).exit_code == 1  # counted, though not tried again
    listed = fcache("info", "--failed")
    assert re.search(r"^c1 +whisper +expected its video file", listed.output, re.MULTILINE)
    (feature,) = json.loads(fcache("info", "--json").stdout)["features"]
    assert list(feature["failed_ids"].values()) == [["c1"]]
    info = fcache("info")
    assert info.exit_code == 0
    assert "1 failed: expected its video file to be readable" in info.output
    good, silent, unknown = fcache("show", "c0"), fcache("show", "mute"), fcache("show", "c9")
    assert "whisper: ok, shard 0 slot 0" in good.output
    assert open_store("features.zarr")["whisper"].fingerprint in good.output
    assert "no audio stream" in silent.output
    (described,) = json.loads(fcache("show", "c0", "--json").stdout)["features"]
    assert (described["feature"], described["status"], described["slot"]) == ("whisper", "ok", 0)
    assert unknown.exit_code == 2
    assert "not in features.zarr" in unknown.output


def test_the_help_of_extract_lists_the_installed_encoders() -> None:
    text = " ".join(fcache("extract", "--help").output.split())
    assert "Installed: eva-global, eva-temporal, hf-audio, hf-image, hf-text, hf-video, whisper" in text
    assert "--encoder" in fcache("plan", "--help").output


def test_verify_finds_a_flipped_byte_and_leaves_a_sound_store_alone(folder: Path) -> None:
    assert fcache(*EXTRACT).exit_code == 0
    sound = fcache("verify")
    assert sound.exit_code == 0, sound.output
    assert "1 shard, 2 rows" in sound.output
    assert "sound" in sound.output
    shard = next(path for path in Path("features.zarr/whisper/c").rglob("*") if path.is_file())
    data = bytearray(shard.read_bytes())
    data[100] ^= 1
    shard.write_bytes(data)
    assert fcache("verify").exit_code == 1


def test_mistakes_are_one_message_and_exit_code_2(folder: Path) -> None:
    cases = {
        ("extract", "--encoder", "wisper"): 'Did you mean "whisper"?',
        ("extract", "--encoder", "whisper", "--weights", "nowhere"): "--weights whisper=FOLDER",
        ("extract", "--encoder", "whisper", "--clips", "none.jsonl"): "expected a clip list, got no such file",
        ("extract", "--encoder", "whisper", "--rank", "2/2"): "I from 0 to N - 1",
        ("extract", *ALL, "--name", "x"): "expected a single --encoder",
        (*EXTRACT, "--weights", "eva-global=eva"): "one of the encoders asked for",
        (*EXTRACT, "--option", "tokens=3"): "NAME.KEY=VALUE",
        ("info", "--store", "none.zarr"): "no such folder",
        ("gc", "--store", "none.zarr"): "no such folder",
        ("repair", "--store", "none.zarr"): "no such folder",
        ("retry", "--store", "whisper"): "expected a store, got a folder without one",
        ("info", "--store", "whisper"): "expected a store, got a folder without one",
    }
    for arguments, message in cases.items():
        result = fcache(*arguments)
        assert result.exit_code == 2, (arguments, result.output)
        assert message in result.output, (arguments, result.output)
        assert "Traceback" not in result.output
    # Newer releases of click suggest by themselves, in quotes of their own.
    assert re.search("No such command 'extrat'. Did you mean ['\"]extract['\"]\\?", fcache("extrat").output)
    assert not Path("features.zarr").exists()


def test_another_spec_needs_another_name(folder: Path) -> None:
    assert fcache(*EXTRACT).exit_code == 0
    short = (*EXTRACT, "--option", "whisper.tokens=8")
    refused = fcache(*short)
    assert refused.exit_code == 2
    assert "pooling.tokens: 64 != 8" in refused.output
    assert "--name" in refused.output
    assert fcache(*short, "--name", "whisper-8").exit_code == 0
    assert open_store("features.zarr")["whisper-8"].shape == (8, 16)


def test_media_may_lie_elsewhere(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    for path in folder.glob("*.mp4"):
        path.rename(elsewhere / path.name)
    assert fcache(*EXTRACT).exit_code == 1
    assert fcache(*EXTRACT, "--media-root", str(elsewhere), "--store", "other.zarr").exit_code == 0


def test_the_first_signal_stops_the_run_and_says_how_to_go_on(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from featurecache.extract import run as extraction

    prepare = extraction.prepare
    signals = iter([signal.SIGTERM])

    def interrupted(*given, **options):  # type: ignore[no-untyped-def]
        for number in signals:
            os.kill(os.getpid(), number)
        return prepare(*given, **options)

    monkeypatch.setattr(extraction, "prepare", interrupted)
    stopped = fcache(*EXTRACT, "--shard-clips", "1", "--workers", "1")
    assert stopped.exit_code == 1
    assert "Run the same command to go on." in stopped.output
    assert len(open_store("features.zarr")["whisper"].ids) < 2
    assert fcache(*EXTRACT).exit_code == 0
    assert list(open_store("features.zarr")["whisper"].ids) == ["c0", "c1"]


def test_every_command_has_help_with_an_example() -> None:
    assert main.commands
    for name, command in main.commands.items():
        assert command.help, name
        assert "Example" in command.help, f"fcache {name} --help shows no example"
        assert fcache(name, "--help").exit_code == 0


def test_progress_is_plain_lines_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with show_progress("extract") as progress:
        for done in range(1, 101):
            progress(done, 100, "2 failed")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("extract: 100/100 clips, ")
    assert lines[0].endswith("2 failed")


def test_progress_says_no_rate_where_no_time_has_passed_and_nothing_of_no_work(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with show_progress("predict") as progress:
        progress(1, 1)
    with show_progress("extract") as progress:
        progress(0, 0)
    assert capsys.readouterr().err == "predict: 1/1 clips, 0:00 left\n"


def test_a_mistyped_command_is_answered_with_one_suggestion(folder: Path) -> None:
    assert fcache("verfy").output.count("Did you mean") == 1


def test_durations_are_written_as_clocks_show_them() -> None:
    assert [duration(s) for s in (0, 59.6, 61, 3661)] == ["0:00", "1:00", "1:01", "1:01:01"]


def test_version_and_help_import_no_torch() -> None:
    program = "import sys; from featurecache.cli import main; main(['--help'], standalone_mode=False)"
    command = [sys.executable, "-c", program + "; sys.exit('torch' in sys.modules)"]
    assert subprocess.run(command, check=False, capture_output=True).returncode == 0


def test_extract_ends_with_a_table_of_times_and_the_same_as_json(folder: Path) -> None:
    result = fcache(*EXTRACT, "--devices", "cpu,cpu", "--json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert "the bottleneck: " in fcache(*EXTRACT, "--store", "again.zarr").output
    assert (document["clips"], document["devices"], document["left"]) == (3, 2, 0)
    assert set(document["parts"]) == {"hash", "decode", "preprocess", "encode", "write"}
    assert document["features"]["whisper"] == {
        "ok": 2,
        "failed": 0,
        "absent": 1,
        "earlier": 0,
        "reasons": {},
        "failed_ids": {},
    }
    assert document["memory_bound_bytes"] > 0


def test_plan_says_that_blip2_is_not_the_published_eva_and_where_that_is(folder: Path) -> None:
    save_eva(folder / "blip2", blocks=39)
    command = ["plan", "--encoder", "eva-temporal", "--weights", "blip2", "--calibrate", "0", "--headers", "0"]
    result = fcache(*command)
    assert result.exit_code == 0, result.output
    said = " ".join(result.output.split())
    assert "39 blocks and BLIP-2's own post-norm" in said
    assert "--weights eva-temporal=eva_vit_g.pth" in said
    assert "39 blocks" in json.loads(fcache(*command, "--json").output.splitlines()[-1])["notices"][0]


def test_plan_tells_hours_and_the_files_that_cannot_be_opened(folder: Path) -> None:
    (folder / "c1.mp4").write_bytes(b"nonsense" * 10)
    command = ("plan", "--encoder", "whisper", "--weights", "whisper", "--calibrate", "2")
    result = fcache(*command)
    assert result.exit_code == 0, result.output
    assert "the files of 3 of 3 clips opened: 1 would fail" in result.output
    assert "clips/s in a trial of 2 clips" in result.output
    document = json.loads(fcache(*command, "--json").stdout)
    assert list(document["unreadable"]) == ["c1"]
    assert document["hours"] is not None
    assert document["features"]["whisper"]["bytes_to_write"] == 3 * 64 * 16 * 2
    assert not Path("features.zarr").exists()
    quick = fcache(
        "plan", "--encoder", "whisper", "--weights", "whisper", "--calibrate", "0", "--headers", "0", "--json"
    )
    assert json.loads(quick.stdout.splitlines()[-1])["hours"] is None


def test_an_encoder_named_with_its_checkpoint_gives_a_feature_of_the_checkpoints_name(folder: Path) -> None:
    named = ("extract", "--encoder", "hf-audio:./whisper")
    assert fcache(*named, "--option", "hf-audio.tokens=8").exit_code == 0
    assert open_store("features.zarr")["whisper"].shape == (8, 16)


def test_engines_refuse_each_others_options(folder: Path) -> None:
    result = fcache(*EXTRACT, "--engine", "ray", "--rank", "0/2")
    assert result.exit_code == 2
    assert "--rank: expected --engine local" in result.output


def test_plan_refuses_what_extract_would_refuse(folder: Path) -> None:
    assert fcache(*EXTRACT).exit_code == 0
    same = fcache("plan", *EXTRACT[1:], "--calibrate", "0")
    assert same.exit_code == 0, same.output
    for command in (["plan", *EXTRACT[1:]], EXTRACT):
        refused = fcache(*command, "--dtype", "float32")
        assert refused.exit_code == 2, refused.output
        assert "stored_dtype: float16 != float32" in refused.output.replace("'", "").replace('"', "")


def test_a_time_limit_a_clip_is_a_reason(folder: Path) -> None:
    result = fcache(*EXTRACT, "--clip-limit", "0.000001")
    assert result.exit_code == 1
    assert "whisper: 3 failed: expected decoding to take at most 1e-06 s" in result.output, result.output


def test_several_token_counts_of_one_encoder_are_extracted_by_one_forward(folder: Path) -> None:
    both = ("extract", "--encoder", "short=whisper", "--encoder", "whisper", "--weights", "whisper")
    result = fcache(*both, "--option", "whisper.norm=none", "--option", "short.tokens=4", "--json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout.splitlines()[-1])
    assert document["forwards"] == 2  # of two clips with sound
    store = open_store("features.zarr")
    assert (store["short"].shape, store["whisper"].shape) == ((4, 16), (64, 16))
    assert store["short"].spec.tap == store["whisper"].spec.tap
    twice = fcache("extract", "--encoder", "whisper", "--encoder", "whisper", "--weights", "whisper")
    assert twice.exit_code == 2
    assert "--encoder whisper-2=whisper" in twice.output
