"""How held-out clips are asked: the released evaluation byte for byte, instructions of one's own, what scores say."""

from __future__ import annotations

import json

import pytest
from test_benchmarks import ask, folder, invoke, rows_of, run  # noqa: F401 -- fixtures

from featurecache.clips.clip_list import Clip, ClipList
from fusion_train.data.samples import SampleStream
from fusion_train.errors import ConfigError
from fusion_train.evaluation.benchmarks import BenchmarkSet, load_benchmark
from fusion_train.evaluation.scoring import score_set
from fusion_train.evaluation.wording import asked_in_training, asking_as, wording_of
from fusion_train.metrics.metric_result import MetricSettings
from fusion_train.presets import load_config
from fusion_train.prompts.prompt import PromptFormat, find_task

SENTENCE = "Say it."
LABELS = ("happy", "sad")


def released(asked: BenchmarkSet, *overrides: str, stage: str = "cognition"):
    return wording_of(load_config("released", stage, overrides), asked, [asked.dataset])


@pytest.mark.parametrize("stage", ["perception", "cognition"])
@pytest.mark.parametrize("name", list(load_benchmark("mmeverse").sets))
def test_released_evaluation_prompts_byte_for_byte(name, stage):
    asked = load_benchmark("mmeverse").sets[name].model_copy(update={"instruction": SENTENCE})
    wording = released(asked, stage=stage)
    prompt = wording.prompts[asked.dataset]
    before, after = prompt.render("Oh, no!", prompt.worded(find_task(asked.task), asked.dataset))
    gap = " " if asked.dataset in ("mer2023", "mer2024") else "  "
    period = "" if asked.dataset == "ov_merd_plus" else "."
    task = "multi-label" if asked.dataset == "ov_merd_plus" else asked.task
    assert before == "[INST] <Vid>"
    assert after == f"</Vid>{gap}The person in video says: Oh, no!{period}  [{task}] {SENTENCE}  [/INST]"
    assert wording.answer == "generate"


def test_the_released_evaluation_says_who_speaks_in_e3_and_keeps_every_space():
    wording = released(load_benchmark("mmeverse").sets["e3"])
    _, after = wording.prompts["e3"].render(" Oh  no ", find_task("emotion"), person="the woman")
    assert after.startswith("</Vid>  the woman in video says:  Oh  no .  [emotion] ")
    _, silent = (
        released(load_benchmark("mmeverse").sets["mosi"]).prompts["cmu_mosi"].render(None, find_task("sentiment"))
    )
    assert silent.startswith("</Vid>  The person in video says: .  [sentiment] ")


def test_other_configurations_keep_their_prompt_and_choose():
    wording = wording_of(load_config(None, "perception"), BenchmarkSet(dataset="x"), ["x"])
    assert (wording.answer, wording.source) == ("choose", "own")
    assert wording.prompts == {"x": load_config(None, "perception").prompt.format()}


def test_the_more_specific_instruction_is_asked_and_said_to_be_whose_it_is():
    task = find_task("emotion")
    set_here = ["prompt.instructions.emotion='General {labels}.'", "prompt.instructions.faces/emotion=For faces."]
    config = load_config(None, "perception", set_here)
    plain, faces = (wording_of(config, BenchmarkSet(dataset=name), [name]) for name in ("words", "faces"))
    assert plain.source == faces.source == "configuration"
    assert plain.prompts["words"].worded(task, "words").instruction == "General {labels}."
    assert faces.instructions == {"faces": "For faces."}
    benchmark = wording_of(config, BenchmarkSet(dataset="faces", instruction="Of the bench."), ["faces"])
    assert (benchmark.source, benchmark.instructions) == ("benchmark", {"faces": "Of the bench."})
    _, after = plain.prompts["words"].render("hi", plain.prompts["words"].worded(task, "words"), LABELS)
    assert after.endswith("[emotion] General happy, sad.  [/INST]")
    assert plain.as_json()["format"] == plain.as_json()["format"] != benchmark.as_json()["format"]


def test_of_several_instructions_training_draws_and_evaluation_asks_the_first():
    prompt = PromptFormat(instructions={"emotion": ["One?", "Two?"]})
    task = find_task("emotion")
    assert [prompt.worded(task, "x", draw).instruction for draw in (0, 1, 2)] == ["One?", "Two?", "One?"]
    clips = ClipList([Clip(id="a", labels={"emotion": "happy"})])
    stream = SampleStream(clips, ["emotion"], {"": {"emotion": ["happy"]}}, seed=0, modalities=["audio"])
    asked = [prompt.worded(task, None, stream.draw(index).draw).instruction for index in range(40)]
    assert 8 < asked.count("One?") < 32
    assert asked == [prompt.worded(task, None, stream.draw(index).draw).instruction for index in range(40)]


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("prompt.instructions={emotoin: x}", 'Did you mean "emotion"'),
        ("prompt.instructions={faces/emotion: ''}", "empty text"),
        ("evaluation.prompt={sayd: x}", "evaluation"),
        ("evaluation.datasets={faces: {instructions: {emotoin: x}}}", "evaluation"),
    ],
)
def test_wrong_instructions_are_refused(override, said):
    with pytest.raises(ConfigError, match=said):
        load_config(None, "perception", [override])


def test_only_how_clips_are_asked_can_be_set_for_a_run():
    config = load_config(None, "perception")
    changed = asking_as(config, "released", ["evaluation.answer=choose"])
    assert changed.prompt == load_config("released", "perception").prompt
    assert changed.evaluation.answer == "choose"
    assert changed.optim == config.optim
    with pytest.raises(ConfigError, match="one of optim"):
        asking_as(config, None, ["optim.lr=1"])


def test_scores_say_how_clips_were_asked(run, folder, tmp_path):  # noqa: F811
    path = folder / "worded.yaml"
    path.write_text(
        (folder / "bench.yaml")
        .read_text()
        .replace("task: openset,", "task: openset, instruction: 'Which words?',")
        .replace('source: "a paper",', 'source: "a paper", answer: generate,')
    )
    done = invoke("eval", "--run", run, "--bench", path, "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    said = " ".join(done.output.split())
    assert "asked: choose, own wording (Faces) asked: generate, wording of the benchmark (Words)" in said
    assert "published (generate, free text): Baseline" in said
    row = rows_of(tmp_path / "out" / "words.jsonl")[0]
    assert row["by"]["answer"] == "generate"
    assert (row["by"]["wording"]["from"], row["by"]["wording"]["instruction"]) == ("benchmark", "Which words?")
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert scores["sets"]["faces"]["asked"]["answer"] == "choose"
    assert scores["sets"]["words"]["asked"]["instructions"] == ["Which words?"]
    assert scores["published"][0]["answer"] == "generate"
    assert (tmp_path / "out" / "scores.csv").read_text().splitlines()[0].endswith(",Baseline (generate)")
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Asked (generate, wording of the benchmark): Which words?" in page
    assert "Baseline: a paper. Its answers: generate, free text." in page

    other = invoke("eval", "--run", run, "--bench", path, "--out", tmp_path / "out", "--answer", "generate")
    assert other.exit_code == 2
    assert "answer is 'choose', here 'generate'" in other.output
    again = invoke("eval", "--run", run, "--bench", path, "--out", tmp_path / "released", "--config", "released")
    assert again.exit_code == 0, again.output
    assert rows_of(tmp_path / "released" / "faces.jsonl")[0]["by"]["answer"] == "generate"


def test_scores_of_training_and_of_sweeps_say_how_clips_were_asked():
    config = load_config(None, "perception")
    assert asked_in_training(config, "emotion") == "labels chosen among the closed set, own wording"
    worded = load_config(None, "perception", ["prompt.instructions.faces/emotion=Which?"])
    assert asked_in_training(worded, "emotion").endswith(", wording of the configuration")
    assert asked_in_training(worded, "openset") == "answers generated, own wording"
    assert "by a probe" in asked_in_training(load_config(None, "probe"), "emotion")


def test_answers_of_an_earlier_release_are_taken_up_by_the_hash_of_their_prompt(run, folder, tmp_path):  # noqa: F811
    assert ask(run, folder, tmp_path / "out").exit_code == 0
    for path in (tmp_path / "out").glob("*.jsonl"):
        rows = rows_of(path)
        for row in rows:
            del row["by"]["wording"]
            row.pop("crc32c", None)
            row["by"]["answer"] = "choose"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    again = ask(run, folder, tmp_path / "out")
    assert again.exit_code == 0, again.output


def test_the_two_ground_truths_of_iemocap_have_names_and_sizes():
    mmeverse = {"neutral": 386, "happiness": 300, "excited": 312, "sadness": 311, "anger": 187, "frustration": 400}
    agreed = {"neutral": 384, "happiness": 143, "excited": 299, "sadness": 245, "anger": 170, "surprise": 9}
    for counts, name, other, size in (
        (mmeverse, "mer-unibench-released", "mer-unibench", 1496),
        (agreed, "mer-unibench", "mer-unibench-released", 1241),
    ):
        labels = [label for label, count in counts.items() for _ in range(count)]
        clips = [
            Clip(id=f"c{n}", dataset="iemocap", split="test", labels={"emotion": label})
            for n, label in enumerate(labels)
        ]
        clips.append(Clip(id="session1", dataset="iemocap", split="train", labels={"emotion": "anger"}))
        for benchmark, noted in ((name, False), (other, True)):
            asked = load_benchmark(benchmark).sets["iemocap4"]
            references = asked.references(asked.chosen(ClipList(clips)))
            assert len(references) == size
            rows = [{"id": clip, "reference": label, "prediction": label} for clip, label in references.items()]
            notes = score_set("iemocap4", asked, rows, MetricSettings()).notes
            assert bool(notes) == noted
            if noted:
                assert f"{size:,} clips, where {sum(asked.counts.values()):,} were scored by others" in notes[0]
