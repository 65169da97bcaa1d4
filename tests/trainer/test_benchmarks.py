"""Benches from asking to the report: resumable, exactly once, scored again from files alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
from click.testing import CliRunner
from test_train import run_training
from toy import LABELS, feature_spec, make_config, write_features

import featurecache
from featurecache.clips.clip_list import Clip, ClipList
from featurecache.encoders.perturbation import parse_perturbation
from fusion_train.cli import main
from fusion_train.errors import ConfigError
from fusion_train.evaluation import predictions as asking
from fusion_train.evaluation.append_only import read_lines
from fusion_train.evaluation.benchmarks import BenchmarkSet, benchmark_names, load_benchmark
from fusion_train.evaluation.scoring import score_set
from fusion_train.evaluation.text_models import LocalModel, read_rating
from fusion_train.metrics.metric_result import MetricSettings
from fusion_train.metrics.wheels import EmotionWheels

BENCH = """
title: Toy bench
sets:
  faces: {title: Faces, dataset: faces, metric: classification, main: UAR, vocabulary: [angry, happy, sad]}
  words: {title: Words, dataset: words, task: openset, metric: open-vocabulary}
means: {All: [faces, words], Faces alone: [faces]}
published: [{name: Baseline, source: "a paper", scores: {faces: 71.5}, means: {Faces alone: 71.5}}]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """clips.jsonl, features.zarr and bench.yaml: 12 faces with a tag on some, 6 clips of words."""
    folder = tmp_path_factory.mktemp("bench")
    labels, lines = {}, []
    for split, dataset, count in (("train", "faces", 9), ("test", "faces", 12), ("test", "words", 6)):
        for number in range(count):
            clip_id, label = f"{dataset}/{split}{number:02d}", LABELS[number % 3]
            labels[clip_id] = label
            known = {"openset": [label]} if dataset == "words" else {"emotion": label}
            entry = {
                "id": clip_id,
                "text": f"number {number}",
                "split": split,
                "dataset": dataset,
                "labels": known,
                "speaker": f"s{number % 4}",
                "tags": ["sarcasm"] if number % 4 == 0 else [],
            }
            lines.append(json.dumps(entry))
    (folder / "clips.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "bench.yaml").write_text(BENCH)
    store = write_features(folder / "features.zarr", labels)
    noisy = feature_spec("whisper", (4, 12))
    noisy = replace(noisy, preprocessing={"perturbation": parse_perturbation("noise:5").as_json()})
    for name, spec in (
        ("whisper-noise", noisy),
        ("other", replace(feature_spec("whisper", (4, 12)), implementation=2)),
    ):
        writer = featurecache.open_store(store, mode="a").writer(name, spec)
        writer.plan(list(labels))
        for shard in writer.pending():
            with writer.begin(shard) as opened:
                for slot, clip_id in enumerate(shard.ids):
                    opened.put(
                        slot, featurecache.open_store(store)["whisper"][clip_id].astype("float32"), source="1" * 64
                    )
                opened.commit()
    return folder


@pytest.fixture(scope="module")
def run(llama, folder) -> Path:
    config = make_config(llama, "optim.steps=3", "data.tasks=[emotion]", "data.eval_split=null")
    return run_training(config, folder, folder / "runs" / "toy").folder


def invoke(*arguments: object):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def rows_of(path: Path) -> list[dict]:
    return read_lines(path)


def ask(run: Path, folder: Path, out: Path, *rest: object):
    return invoke("eval", "--run", run, "--bench", folder / "bench.yaml", "--out", out, "--batch-size", 4, *rest)


def test_every_shipped_bench_is_valid():
    assert {"mer-unibench", "mmeverse", "dfew", "emer"} <= set(benchmark_names())
    for name in benchmark_names():
        load_benchmark(name)
    assert len(load_benchmark("mmeverse").means["MMEVerse-Bench"]) == 18
    baselines = {baseline.name: baseline for baseline in load_benchmark("mer-unibench").published}
    for name in ("AffectGPT", "Emotion-LLaMA"):  # the printed means are those of the printed scores
        scores = baselines[name].scores.values()
        assert sum(scores) / len(scores) == pytest.approx(baselines[name].means["MER-UniBench"], abs=0.006)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("task: emotoin", 'Did you mean "emotion"'),
        ("metrc: hit", 'Did you mean "metric"'),
        ("metric: hitt", 'Did you mean "hit"'),
        ("metric: hit, main: UAR", 'not "UAR"'),
        ("reference: label.emotion", "labels.NAME or responses.NAME"),
        ("vocabulary: [sad], relabel: {glad: happy}", "not in the vocabulary: happy"),
        ("vocabulary: [sad], relabel_answers: {cry: sadness}", "not in the vocabulary: sadness"),
        ("vocabulary: [sad, calm], unmapped: [calm]", "named as unmapped: calm"),
    ],
)
def test_a_wrong_bench_is_refused_with_the_near_name(tmp_path, change, said):
    (tmp_path / "bench.yaml").write_text(f"title: x\nsets: {{a: {{dataset: a, {change}}}}}\n")
    with pytest.raises(ConfigError, match=said):
        load_benchmark(str(tmp_path / "bench.yaml"))


def test_the_cross_dataset_bench_maps_every_label_or_names_it_as_unmapped():
    from featurecache.importers import acted_speech, dialogues, dimensional

    sets = load_benchmark("cross-dataset").sets
    labels = {
        "iemocap4": dialogues.IEMOCAP_CODES.values(),
        "omg": dimensional.OMG_LABELS,
        "ravdess": acted_speech.RAVDESS_EMOTIONS.labels,
    }
    for name, known in labels.items():
        chosen = sets[name]
        mapped = {chosen.relabel.get(label, label) for label in known if label not in chosen.unmapped}
        assert mapped == set(chosen.vocabulary), name
        assert set(chosen.unmapped) <= set(known), name
    trained = set(dialogues.MELD_EMOTIONS.labels)
    assert all(set(sets[name].vocabulary) == trained for name in ("omg", "ravdess"))
    clips = ClipList([Clip("a", dataset="ravdess", labels={"emotion": "calm"})])
    assert sets["ravdess"].chosen(clips) == list(clips)  # a dataset without splits


STAGE_BENCH = """
title: Stage
sets:
  stage:
    {dataset: stage, as_dataset: faces, split: null, metric: classification, main: accuracy,
     vocabulary: [angry, happy, sad], relabel: {glad: happy, cross: angry}, unmapped: [calm]}
"""


def test_a_dataset_that_a_run_never_saw_is_asked_as_another_and_its_labels_are_mapped(run, folder, tmp_path):
    words = {"angry": "cross", "happy": "glad", "sad": "sad"}
    lines = []
    for row in map(json.loads, (folder / "clips.jsonl").read_text().splitlines()):
        if row["dataset"] == "faces" and row.pop("split") == "test":
            emotion = "calm" if row["id"].endswith("04") else words[row["labels"]["emotion"]]
            lines.append(json.dumps({**row, "dataset": "stage", "labels": {"emotion": emotion}}))
    (tmp_path / "stage.jsonl").write_text("\n".join(lines) + "\n")
    (tmp_path / "stage.yaml").write_text(STAGE_BENCH)
    arguments = ["--bench", tmp_path / "stage.yaml", "--clips", tmp_path / "stage.jsonl", "--out", tmp_path / "out"]
    result = invoke("eval", "--run", run, *arguments)
    assert result.exit_code == 0, result.output
    rows = rows_of(tmp_path / "out/stage.jsonl")
    assert len(rows) == 11
    assert "faces/test04" not in {row["id"] for row in rows}
    assert all(sorted(row["probabilities"]) == ["angry", "happy", "sad"] for row in rows)
    assert {row["reference"] for row in rows} == {"angry", "happy", "sad"}
    scored = json.loads((tmp_path / "out/scores.json").read_text())["sets"]["stage"]
    assert "calm" in json.dumps(scored)
    assert "calm" in result.output


def test_answers_in_other_words_are_mapped_before_they_are_scored(tmp_path):
    bench = {"dataset": "stage", "metric": "classification", "main": "accuracy", "vocabulary": ["happy", "sad"],
             "relabel_answers": {"glee": "happy"}}  # fmt: skip
    chosen = BenchmarkSet.model_validate(bench)
    rows = [
        {"id": "a", "prediction": "Glee.", "reference": "happy"},
        {"id": "b", "prediction": "glee", "reference": "sad"},
        {"id": "c", "prediction": "sad", "reference": "sad"},
    ]
    scored = score_set("stage", chosen, rows, MetricSettings(wheels=EmotionWheels.small()))
    assert scored.scored.value == pytest.approx(2 / 3)
    assert score_set(
        "stage", chosen.model_copy(update={"relabel_answers": {}}), rows, MetricSettings(wheels=EmotionWheels.small())
    ).scored.value == pytest.approx(1 / 3)


def test_a_bench_is_asked_scored_and_reported_and_asked_only_once(run, folder, tmp_path):
    first = ask(run, folder, tmp_path / "out")
    assert first.exit_code == 0, first.output
    rows = rows_of(tmp_path / "out" / "faces.jsonl")
    assert [row["id"] for row in rows] == sorted(f"faces/test{n:02d}" for n in range(12))
    assert all(len(row["prompt_sha256"]) == 16 and len(row["by"]["model"]) == 64 for row in rows)
    assert set(rows[0]["by"]["features"]) == {"audio", "image", "video"}
    assert "All: " in first.output
    page = (tmp_path / "out" / "report.html").read_text()
    assert "the rest, without sarcasm" in page
    assert "by speaker" in page
    assert "<svg" in page
    table = (tmp_path / "out" / "scores.csv").read_text().splitlines()
    assert table[0] == "set,figure,ours,from,to,asked,Baseline"
    assert table[1].startswith("Faces,UAR,")
    assert table[1].endswith(',"choose, own wording",71.5')
    assert r"\toprule" in (tmp_path / "out" / "scores.tex").read_text()
    before = (tmp_path / "out" / "faces.jsonl").stat().st_mtime_ns
    again = ask(run, folder, tmp_path / "out")
    assert again.exit_code == 0, again.output
    assert (tmp_path / "out" / "faces.jsonl").stat().st_mtime_ns == before


def test_a_killed_evaluation_goes_on_without_losing_or_repeating_a_clip(run, folder, tmp_path, monkeypatch):
    assert ask(run, folder, tmp_path / "whole").exit_code == 0
    real = asking.AppendedLines.append
    written = []

    def torn_at_the_second_batch(lines, rows):
        rows = list(rows)
        if written:
            os.write(lines._fd, json.dumps(rows[0]).encode()[:40])
            raise KeyboardInterrupt
        written.append(rows)
        real(lines, rows)

    with monkeypatch.context() as patch:
        patch.setattr(asking.AppendedLines, "append", torn_at_the_second_batch)
        assert ask(run, folder, tmp_path / "parts").exit_code != 0
    assert not (tmp_path / "parts" / "faces.jsonl").exists()
    assert ask(run, folder, tmp_path / "parts").exit_code == 0
    for name in ("faces", "words"):
        one, two = (rows_of(tmp_path / which / f"{name}.jsonl") for which in ("whole", "parts"))
        assert [(row["id"], row["prediction"], row["prompt_sha256"]) for row in one] == [
            (row["id"], row["prediction"], row["prompt_sha256"]) for row in two
        ]
    assert not list((tmp_path / "parts").glob("*.part-*"))


@pytest.mark.slow
def test_two_processes_share_a_bench(run, folder, tmp_path):
    assert ask(run, folder, tmp_path / "one").exit_code == 0
    command = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--multi_gpu",
        "--num_processes",
        "2",
        "--num_machines",
        "1",
        "--mixed_precision",
        "no",
        "--dynamo_backend",
        "no",
        "-m",
        "fusion_train.cli",
        "eval",
        "--run",
        run,
        "--bench",
        folder / "bench.yaml",
        "--out",
        tmp_path / "two",
        "--batch-size",
        "4",
    ]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "faces: 6/6 clips" in done.stderr  # half of them
    one, two = (rows_of(tmp_path / which / "faces.jsonl") for which in ("one", "two"))
    assert [(row["id"], row["prediction"]) for row in one] == [(row["id"], row["prediction"]) for row in two]


def test_answers_by_another_run_are_refused_and_left_alone(run, folder, tmp_path):
    assert ask(run, folder, tmp_path).exit_code == 0
    path = tmp_path / "faces.jsonl"
    write_rows(path, [row | {"by": row["by"] | {"model": "0" * 64}} for row in rows_of(path)])
    kept = path.read_bytes()
    refused = ask(run, folder, tmp_path)
    assert refused.exit_code == 2
    assert "answers by this run" in refused.output
    assert path.read_bytes() == kept
    assert ask(run, folder, tmp_path, "--again").exit_code == 0
    assert path.read_bytes() != kept


def test_modalities_streams_and_features_can_be_taken_away(run, folder, tmp_path):
    for number, rest in enumerate(
        (
            ["--modalities", "none"],
            ["--without", "fusion"],
            ["--without", "image:zero"],
            ["--feature", "audio=whisper-noise"],
        )
    ):
        result = ask(run, folder, tmp_path / str(number), *rest)
        assert result.exit_code == 0, result.output
    hidden, omitted, zeroed, noisy = (rows_of(tmp_path / str(n) / "faces.jsonl")[0] for n in range(4))
    assert hidden["hidden"] == ["audio", "image", "video"]
    assert omitted["by"]["ablated"] == {"fusion": "omit"}
    assert zeroed["by"]["ablated"] == {"image": "zero"}
    assert noisy["by"]["features"]["audio"] != hidden["by"]["features"]["audio"]
    assert len({row["prompt_sha256"] for row in (hidden, omitted, zeroed)}) == 3


@pytest.mark.parametrize(
    ("rest", "said"),
    [
        (["--without", "fushion"], 'Did you mean "fusion"'),
        (["--without", "fusion:nil"], "STREAM:zero"),
        (["--feature", "audio=other"], "perturbed"),
        (["--feature", "smell=other"], "audio, image, video"),
        (["--wheels", "nowhere"], "no such folder"),
        (["--bench", "mer-unibensh"], 'Did you mean "mer-unibench"'),
        (["--bench", "emer"], "none in the clip list"),
    ],
)
def test_wrong_use_is_one_message(run, folder, tmp_path, rest, said):
    result = ask(run, folder, tmp_path, *rest)
    assert result.exit_code == 2
    assert said in result.output
    assert "Traceback" not in result.output


def test_answers_side_by_side_show_differences_on_the_same_clips(run, folder, tmp_path):
    assert ask(run, folder, tmp_path / "whole").exit_code == 0
    assert ask(run, folder, tmp_path / "none", "--modalities", "none").exit_code == 0
    rest = ["--bench", folder / "bench.yaml", "--out", tmp_path / "c"]
    alone = invoke("contrast", tmp_path / "whole", *rest)
    assert alone.exit_code == 2
    assert "two or more" in alone.output
    result = invoke("contrast", tmp_path / "whole", tmp_path / "none", *rest)
    assert result.exit_code == 0, result.output
    table = (tmp_path / "c" / "contrast.csv").read_text().splitlines()
    assert table[0] == "set,figure,answers,score,difference,from,to,asked"
    scores = [json.loads((tmp_path / name / "scores.json").read_text())["sets"]["faces"] for name in ("whole", "none")]
    less = 100 * (scores[1]["figures"]["UAR"] - scores[0]["figures"]["UAR"])
    assert table[1].startswith("Faces,UAR,whole,")
    assert float(table[2].split(",")[4]) == pytest.approx(less)
    path = tmp_path / "none" / "faces.jsonl"
    path.write_text("".join(line + "\n" for line in path.read_text().splitlines()[1:]))
    result = invoke("contrast", tmp_path / "whole", tmp_path / "none", *rest)
    assert result.exit_code == 2
    assert "the same clips" in result.output


def write_rows(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_predictions_of_another_system_are_scored_against_the_clip_list(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")  # so that no cell is folded
    theirs = [{"id": f"faces/test{n:02d}", "prediction": ["anger", "joy", "sadness"][n % 3]} for n in range(12)]
    path = write_rows(tmp_path / "theirs.jsonl", theirs)
    result = invoke(
        "score", path, "--bench", folder / "bench.yaml", "--set", "faces", "--clips", folder / "clips.jsonl"
    )
    assert result.exit_code == 0, result.output
    scores = json.loads((tmp_path / "theirs-scores" / "scores.json").read_text())
    assert scores["sets"]["faces"]["figures"]["UAR"] == 1.0  # other spellings of the same labels
    interval = scores["sets"]["faces"]["interval"]
    assert (interval["clusters"], interval["low"], interval["high"]) == (4, None, None), "four are too few"
    assert "no interval is possible from 4" in " ".join(result.output.replace("│", " ").split())
    alone = write_rows(tmp_path / "alone.jsonl", [{**row, "reference": "angry"} for row in theirs])
    result = invoke("score", alone, "--metric", "hit")
    assert result.exit_code == 0, result.output
    assert "not comparable" in result.output
    assert "labels per clip" in " ".join(result.output.split())


def candidates(folder: Path, count: int, clips: int) -> list[Path]:
    """Answers of equally good candidates, right on two clips of three."""
    folder.mkdir()
    random = np.random.default_rng(0)
    return [
        write_rows(
            folder / f"epoch-{number:02d}.jsonl",
            [
                {"id": f"c{n}", "reference": "happy", "prediction": "happy" if random.random() < 2 / 3 else "sad"}
                for n in range(clips)
            ],
        )
        for number in range(count)
    ]


def test_the_best_of_several_candidates_is_corrected_for_the_choice(tmp_path):
    files = candidates(tmp_path / "epochs", 20, 100)
    result = invoke("score", tmp_path / "epochs", "--selected-from", 20, "--out", tmp_path / "all")
    assert result.exit_code == 0, result.output
    scores = json.loads((tmp_path / "all" / "scores.json").read_text())["sets"]["emotion"]
    selection = scores["selection"]
    assert selection["naive"] == scores["figures"]["accuracy"] > 0.72
    assert 2 / 3 - 0.1 < selection["corrected"] < selection["naive"] - 0.02
    assert selection["interval"]["low"] < 2 / 3 < selection["interval"]["high"]
    assert f"{100 * selection['corrected']:.2f}" in result.output
    header, row = (tmp_path / "all" / "scores.csv").read_text().splitlines()
    assert header.startswith("set,figure,ours,from,to,corrected,corrected from,corrected to,best of")
    assert row.startswith(f"emotion (epoch-{selection['best']:02d}),accuracy,{100 * selection['naive']:g}")
    page = (tmp_path / "all" / "report.html").read_text()
    assert "Chosen and scored on the same clips" in page

    best = files[selection["best"]]
    result = invoke("score", best, "--selected-from", 20, "--correlation", 0.5, "--out", tmp_path / "one")
    assert result.exit_code == 0, result.output
    alone = json.loads((tmp_path / "one" / "scores.json").read_text())["sets"]["emotion"]["selection"]
    error = (selection["naive"] * (1 - selection["naive"]) / 99) ** 0.5
    assert alone["corrected"] == pytest.approx(selection["naive"] - error * 0.5**0.5 * 1.867475, abs=1e-6)
    assert "errors correlate with 0.50" in " ".join(result.output.split())


@pytest.mark.parametrize(
    ("rest", "said"),
    [
        ([], "several candidates need --selected-from"),
        (["--selected-from", 5], "expected 3, the number of candidates"),
        (["--selected-from", 3, "--correlation", 0.5], "which show the correlation themselves"),
    ],
)
def test_candidates_that_are_not_those_named_are_refused(tmp_path, rest, said):
    result = invoke("score", *candidates(tmp_path / "epochs", 3, 10), *rest)
    assert result.exit_code == 2
    assert said in " ".join(result.output.split())


def test_candidates_of_other_clips_are_refused(tmp_path):
    files = candidates(tmp_path / "epochs", 2, 10)
    files[1].write_text("".join(files[1].read_text().splitlines(keepends=True)[1:]))
    result = invoke("score", *files, "--selected-from", 2)
    assert result.exit_code == 2
    assert "the same clips" in result.output
    assert "c0" in result.output


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda rows: rows[:-1], "missing: faces/test11"),
        (lambda rows: [*rows, rows[0]], "predicted twice"),
        (lambda rows: [{**rows[0], "id": "faces/test99"}, *rows[1:]], "not asked: faces/test99"),
        (lambda rows: [{"id": rows[0]["id"]}, *rows[1:]], "expected a prediction"),
        (lambda rows: [{"prediction": "sad"}, *rows[1:]], "expected an id"),
        (lambda rows: [], "an empty file"),
    ],
)
def test_predictions_that_do_not_fit_are_named(folder, tmp_path, spoil, said):
    rows = [{"id": f"faces/test{n:02d}", "prediction": "sad"} for n in range(12)]
    path = write_rows(tmp_path / "rows.jsonl", spoil(rows))
    result = invoke(
        "score", path, "--clips", folder / "clips.jsonl", "--bench", folder / "bench.yaml", "--set", "faces"
    )
    assert result.exit_code == 2
    assert said in result.output


def test_a_reference_outside_the_vocabulary_is_named(folder, tmp_path):
    rows = [{"id": "a", "prediction": "sad", "reference": "bored"}]
    result = invoke("score", write_rows(tmp_path / "r.jsonl", rows), "--bench", folder / "bench.yaml", "--set", "faces")
    assert result.exit_code == 2
    assert 'a: "bored"' in result.output


class Served(BaseHTTPRequestHandler):
    asked: list[dict] = []  # noqa: RUF012  (one server, one test)

    def do_POST(self) -> None:
        document = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append(document)
        prompt = document["messages"][0]["content"]
        reply = "sad, tired" if prompt.startswith("Which emotions") else "Rating: 7/10"
        body = json.dumps({"choices": [{"message": {"content": reply}}]}).encode()
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *rest: object) -> None:
        pass


@pytest.fixture
def served():
    server = HTTPServer(("127.0.0.1", 0), Served)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    Served.asked.clear()
    yield f"http://127.0.0.1:{server.server_port}/v1#judge-1"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_served_judge_rates_at_temperature_0_and_its_replies_are_kept(served, tmp_path):
    rows = [{"id": str(n), "prediction": f"The voice {n} is low.", "reference": "A low voice."} for n in range(3)]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    for _ in range(2):
        result = invoke("score", path, "--metric", "overlap", "--judge", served)
        assert result.exit_code == 0, result.output
    assert len(Served.asked) == 6  # clue and label of three clips, not asked again
    assert {asked["temperature"] for asked in Served.asked} == {0}
    kept = rows_of(tmp_path / "rows-scores" / "judge-replies.jsonl")
    assert {row["model"] for row in kept} == {"judge-1"}
    assert all(len(row["prompt_sha256"]) == 64 and row["reply"] == "Rating: 7/10" for row in kept)
    scores = json.loads((tmp_path / "rows-scores" / "scores.json").read_text())
    assert next(iter(scores["sets"].values()))["figures"] == {"clue": 7.0, "label": 7.0}


def test_labels_can_be_read_by_a_model(served, tmp_path):
    rows = [{"id": "1", "prediction": "She sounds low.", "reference": "sad"}]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    result = invoke("score", path, "--metric", "hit", "--labels-by", served)
    assert result.exit_code == 0, result.output
    assert "100.00" in result.output
    assert Served.asked[0]["messages"][0]["content"].endswith('Text: """She sounds low."""')


def test_a_judge_that_is_not_there_is_named(tmp_path):
    path = write_rows(tmp_path / "rows.jsonl", [{"id": "1", "prediction": "x", "reference": "y"}])
    result = invoke("score", path, "--metric", "overlap", "--judge", "http://127.0.0.1:9/v1#none")
    assert result.exit_code == 2
    assert "expected a server" in result.output


def test_a_local_model_replies_the_same_each_time(llama):
    model = LocalModel(str(llama))
    assert model.reply("What?") == model.reply("What?")


@pytest.mark.parametrize(
    ("reply", "rating"),
    [("7", 7), ("Rating: 8/10.", 8), ("10", 10), ("I give 3, for 3 clues", 3), ("between 3 and 5", None), ("0", None),
     ("7.5", None), ("none", None), ("42", None)],
)  # fmt: skip
def test_a_rating_is_read_only_where_there_is_one(reply, rating):
    assert read_rating(reply) == rating
