"""`hf-text`: tokens of a clip's words are those of transformers, and a changed word makes them stale."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from click.testing import CliRunner
from hf_networks import SPEECH, WORDS, save, save_text
from safetensors.torch import load_file, save_file

from featurecache import load_clips, open_store
from featurecache.cli import main
from featurecache.clips.clip_list import Clip
from featurecache.encoders import encoder_class, open_encoder
from featurecache.errors import EncoderError, FingerprintError, MediaError, WeightsError
from featurecache.extract.run import extract
from featurecache.media.decode import Absent, clip_source, decode, media_files
from featurecache.media.isolated_decoding import IsolatedDecoder
from featurecache.store.protocols import Status
from featurecache.testing import encode_batch
from featurecache.views import AudioView, TextView

SENTENCE = "No! She never told me."


def words(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-8"), np.uint8)


def of_transformers(folder: Path, text: str, **options: object) -> tuple[list[np.ndarray], list[int]]:
    """Hidden states after every block, of one clip by the network of transformers, and its ids."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer(text, return_tensors="pt", return_token_type_ids=False, **options)
    network = transformers.AutoModel.from_pretrained(folder).eval()
    network = network.get_encoder() if network.config.is_encoder_decoder else network
    with torch.inference_mode():
        states = network(**inputs, output_hidden_states=True).hidden_states
    return [state[0].numpy() for state in states], inputs["input_ids"][0].tolist()


@pytest.mark.parametrize(
    ("family", "head", "changes"),
    [
        ("Bert", "Model", {}),
        ("Bert", "ForMaskedLM", {}),
        ("Roberta", "ForSequenceClassification", {}),
        ("Electra", "ForPreTraining", {"embedding_size": 8}),
        ("Llama", "ForCausalLM", {}),
        ("T5", "ForConditionalGeneration", {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 3, "num_heads": 2}),
    ],
)
def test_tokens_are_those_of_transformers(family: str, head: str, changes: dict, tmp_path: Path) -> None:
    folder = save_text(tmp_path / "network", family, head, **changes)
    states, ids = of_transformers(folder, SENTENCE)
    for layer in (None, 1, 2):
        options = {"tokens": len(ids)} | ({} if layer is None else {"layer": layer})
        encoder = open_encoder("hf-text", weights=str(folder), options=options)
        assert encoder.shape == (len(ids), 16) == encoder_class("hf-text").plan_shape(str(folder), options)
        assert np.array_equal(encode_batch(encoder, {0: words(SENTENCE)})[0], states[-1 if layer is None else layer])
    mean = open_encoder("hf-text", weights=str(folder), options={"pool": "mean", "batch": 3})
    got = encode_batch(mean, {0: words("I see."), 2: words(SENTENCE)})[2]
    assert np.allclose(got, states[-1].mean(axis=0, keepdims=True), atol=1e-6)
    first = open_encoder("hf-text", weights=str(folder), options={"pool": "cls"})
    assert np.array_equal(encode_batch(first, {0: words(SENTENCE)})[0], states[-1][:1])


def test_special_tokens_can_be_left_out_of_averages(tmp_path: Path) -> None:
    folder = save_text(tmp_path / "network")
    states, ids = of_transformers(folder, SENTENCE)
    encoder = open_encoder("hf-text", weights=str(folder), options={"special": "dropped", "tokens": len(ids) - 2})
    assert np.array_equal(encode_batch(encoder, {0: words(SENTENCE)})[0], states[-1][1:-1])


def test_words_beyond_the_length_are_cut_as_the_tokenizer_cuts_them(tmp_path: Path) -> None:
    folder, text = save_text(tmp_path / "network"), " ".join(WORDS * 5)
    states, ids = of_transformers(folder, text, truncation=True, max_length=12)
    encoder = open_encoder("hf-text", weights=str(folder), options={"length": 12, "tokens": 12})
    assert len(ids) == 12 == encoder.num_valid(words(text))
    assert np.array_equal(encode_batch(encoder, {0: words(text)})[0], states[-1])
    longest = open_encoder("hf-text", weights=str(folder))
    assert longest.num_valid(words(text)) == 64  # positions of the network, fewer than 512
    with pytest.raises(EncoderError, match=r"hf-text\.length: expected at most 64"):
        open_encoder("hf-text", weights=str(folder), options={"length": 65})
    shifted = save_text(tmp_path / "roberta", "Roberta")  # whose positions begin after that of the padding
    assert open_encoder("hf-text", weights=str(shifted)).num_valid(words(text)) == 62


def test_tokenizer_files_weights_and_settings_are_in_the_fingerprint(tmp_path: Path) -> None:
    folder = save_text(tmp_path / "network")
    spec = open_encoder("hf-text", weights=str(folder)).spec("float16")
    assert set(spec.preprocessing["tokenizer"]) == {path.name for path in folder.glob("tokenizer*.json")}
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["normalizer"]["lowercase"] = not tokenizer["normalizer"]["lowercase"]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    config = json.loads((folder / "config.json").read_text())
    other = open_encoder("hf-text", weights=str(folder)).spec("float16")
    (folder / "config.json").write_text(json.dumps({**config, "transformers_version": "1.0", "_name_or_path": "/x"}))
    same = open_encoder("hf-text", weights=str(folder)).spec("float16")
    (folder / "config.json").write_text(json.dumps({**config, "layer_norm_eps": 1e-5}))
    third = open_encoder("hf-text", weights=str(folder)).spec("float16")
    assert len({spec.fingerprint, other.fingerprint, third.fingerprint}) == 3
    assert same.fingerprint == other.fingerprint
    (difference,) = spec.differences(other)
    assert difference.startswith("preprocessing.tokenizer.tokenizer.json")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop("encoder.layer.1.output.dense.weight"), r"missing: encoder\.layer\.1\.output"),
        (lambda tensors: tensors.update({"encoder.layer.3.x": torch.ones(2)}), r"unexpected: encoder\.layer\.3\.x"),
        (
            lambda tensors: tensors.update({"embeddings.LayerNorm.bias": torch.ones(2)}),
            r"shape of embeddings\.LayerNorm\.bias: expected \(16,\), got \(2,\)",
        ),
    ],
    ids=["missing", "unexpected", "shape"],
)
def test_weights_load_strictly(change, message: str, tmp_path: Path) -> None:
    folder = save_text(tmp_path / "network")
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(WeightsError, match=message):
        open_encoder("hf-text", weights=str(folder))


def test_a_checkpoint_that_reads_no_words_or_has_no_tokenizer_is_refused(tmp_path: Path) -> None:
    sound = save(tmp_path / "sound", "Hubert", SPEECH, {})
    with pytest.raises(WeightsError, match=r"a network of AutoModel that reads words.*got model_type 'hubert'"):
        open_encoder("hf-text", weights=str(sound))
    folder = save_text(tmp_path / "network")
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(WeightsError, match=r"expected tokenizer\.json to be JSON"):
        open_encoder("hf-text", weights=str(folder))
    for file in folder.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(WeightsError, match="expected a tokenizer"):
        open_encoder("hf-text", weights=str(folder))


def test_options_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    folder = str(save_text(tmp_path / "network"))
    with pytest.raises(EncoderError, match=r"hf-text\.tokens: expected to be left out, since pool=mean"):
        open_encoder("hf-text", weights=folder, options={"pool": "mean", "tokens": 4})
    with pytest.raises(EncoderError, match=r"hf-text\.special: expected kept, with pool=cls"):
        open_encoder("hf-text", weights=folder, options={"pool": "cls", "special": "dropped"})


def test_words_that_give_no_token_are_the_clips_fault(tmp_path: Path) -> None:
    folder = str(save_text(tmp_path / "network"))
    encoder = open_encoder("hf-text", weights=folder, options={"special": "dropped"})
    with pytest.raises(MediaError, match="at least one token"):
        encoder.preprocess(words("\u200b"))


def test_a_view_of_words_is_decoded_and_hashed_by_the_text_only(tmp_path: Path) -> None:
    clip = Clip("a", text="Ça va ?", video=tmp_path / "none.mp4", start_s=1.0)
    (decoded,) = decode(clip, [TextView()])
    assert bytes(decoded).decode() == "Ça va ?"
    assert media_files(clip, TextView()) == []
    assert clip_source(clip, TextView()) == clip_source(Clip("b", text="Ça va ?"), TextView())
    assert clip_source(clip, TextView()) != clip_source(Clip("b", text="Ca va ?"), TextView())
    for text in (None, "", " \n"):
        assert decode(Clip("a", text=text), [TextView()]) == [Absent("no text in the clip list")]
    apart = IsolatedDecoder()
    (isolated,) = apart.decode_each(clip, [TextView()])
    apart.close()
    assert bytes(isolated) == bytes(decoded)
    sound = tmp_path / "a.wav"
    sound.write_bytes(b"RIFF")
    spoken = (Clip("a", audio=sound, text=text) for text in ("one", "two"))
    assert len({clip_source(each, AudioView()) for each in spoken}) == 1


def listed(folder: Path, texts: dict[str, str | None]) -> Path:
    rows = [{"id": name, "audio": "a.wav", "text": text} for name, text in texts.items()]
    (folder / "clips.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "clips.jsonl"


def test_a_clip_without_words_is_absent_and_a_changed_text_is_encoded_anew(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    weights = str(save_text(tmp_path / "network"))
    texts: dict[str, str | None] = {"a": "I see.", "b": "No!", "c": None, "d": "What a day!"}
    listed(tmp_path, texts)
    command = ("--weights", weights)
    fcache = CliRunner().invoke
    first = fcache(main, ["extract", "--encoder", "words=hf-text", *command])
    assert first.exit_code == 0, first.output
    feature = open_store("features.zarr")["words"]
    statuses = {record.id: record.status for record in feature.records()}
    assert statuses == {"a": Status.OK, "b": Status.OK, "c": Status.ABSENT, "d": Status.OK}
    assert feature.record("c").reason == "no text in the clip list"
    before = {clip_id: feature[clip_id].tobytes() for clip_id in "abd"}
    listed(tmp_path, texts | {"b": "No, never!", "c": "Told me."})
    refused = fcache(main, ["extract", "--encoder", "words=hf-text", *command])
    assert refused.exit_code == 2
    assert "peak_frame or text for 2 clips" in " ".join(refused.output.split())
    assert "fcache retry --name words" in " ".join(refused.output.split())
    again = fcache(main, ["retry", "--name", "words", *command])
    assert again.exit_code == 0, again.output
    after = open_store("features.zarr")["words"]
    encoder = open_encoder("hf-text", weights=weights)
    for clip_id, text in {"b": "No, never!", "c": "Told me."}.items():
        expected = encode_batch(encoder, {0: words(text)})[0].astype(np.float16)
        assert np.array_equal(after[clip_id], expected)
    assert {clip_id: after[clip_id].tobytes() for clip_id in "ad"} == {clip_id: before[clip_id] for clip_id in "ad"}
    assert fcache(main, ["extract", "--encoder", "words=hf-text", *command]).exit_code == 0


def test_decode_processes_give_the_bytes_of_threads(tmp_path: Path) -> None:
    weights = str(save_text(tmp_path / "network"))
    clips = load_clips(listed(tmp_path, {f"c{n}": " ".join(WORDS[: 1 + n % 7]) for n in range(12)}))
    rows = []
    for place, decode_in in enumerate(("threads", "processes")):
        encoders = {"words": open_encoder("hf-text", weights=weights, options={"batch": 4})}
        store = open_store(tmp_path / str(place), "a")
        extract(store, clips, encoders, workers=2, decode_in=decode_in)  # type: ignore[arg-type]
        rows.append([open_store(tmp_path / str(place))["words"][clip_id].tobytes() for clip_id in clips.ids])
    assert rows[0] == rows[1]
    assert len(set(rows[0])) == 7


def test_another_tokenizer_is_refused(tmp_path: Path) -> None:
    clips = load_clips(listed(tmp_path, {"a": "I see."}))
    folder = save_text(tmp_path / "network")
    extract(open_store(tmp_path / "s", "a"), clips, {"words": open_encoder("hf-text", weights=str(folder))})
    (folder / "special_tokens_map.json").write_text("{}")
    with pytest.raises(FingerprintError, match="special_tokens_map"):
        extract(open_store(tmp_path / "s", "a"), clips, {"words": open_encoder("hf-text", weights=str(folder))})
