"""Contract of an encoder: tests that your own encoder's test class inherits.

    class TestMyEncoder(EncoderContract):
        @pytest.fixture
        def open_encoder(self):
            return lambda **options: MyEncoder.open(None, "cpu", "float32", options)

The tests hold what a store relies on: the tokens of a clip depend on the clip and the spec only, every clip has the
shape that the spec states, and the spec names what the encoder was opened with. They run the encoder on random clips on
a CPU. `tests/test_encoder_contract.py` runs them over every registered encoder.

Shapes: B clips of a batch, K pooled tokens of width D.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np

from featurecache.encoders import EXPORTING, Encoder
from featurecache.errors import FeatureCacheError
from featurecache.spec import STORED_DTYPES, Spec
from featurecache.views import AudioView, TextView, View

OpenEncoder = Callable[..., Encoder]
NUM_CLIPS = 4
FRAME_SHAPE = (40, 60, 3)
"""Height, width and channels of a random frame."""


def random_views(view: View) -> list[np.ndarray]:
    """Return what a decoder gives for four clips of different content; sounds and words differ in length too."""
    if isinstance(view, TextView):
        words = ("I see.", "No!", "She never told me that she would leave. " * 60, "What a lovely day, isn't it?")
        return [np.frombuffer(text.encode("utf-8"), np.uint8) for text in words]
    random = np.random.default_rng(0)
    if isinstance(view, AudioView):
        seconds = (1.0, 0.11, 0.4 * view.max_duration_s, view.max_duration_s)
        lengths = [round(view.sampling_rate * min(length_s, view.max_duration_s)) for length_s in seconds]
        return [(0.1 * random.standard_normal(length)).astype(np.float32) for length in lengths]
    return [random.integers(0, 256, (view.count, *FRAME_SHAPE), np.uint8) for _ in range(NUM_CLIPS)]


def encode_batch(encoder: Encoder, views: Mapping[int, np.ndarray]) -> dict[int, np.ndarray]:
    """Encode one batch as an extraction does; positions without a clip hold zeros.

    Args:
        views: position in the batch -> what the decoder gives.

    Returns:
        Position -> (K, D) float32.
    """
    inputs = {position: encoder.preprocess(view) for position, view in views.items()}
    example = next(iter(inputs.values()))
    batch = np.zeros((encoder.batch_size, *example.shape), example.dtype)
    for position, array in inputs.items():
        batch[position] = array
    tokens = encoder.forward(batch)
    if encoder.needs_valid:
        valid = [encoder.num_valid(views[at]) if at in views else 1 for at in range(encoder.batch_size)]
        pooled = encoder.pool(tokens, valid)
    else:
        pooled = encoder.pool(tokens)
    return {position: pooled[position].cpu().numpy() for position in views}


class EncoderContract:
    """Tests of one encoder. A subclass has the fixture `open_encoder`, a function of the encoder's options."""

    batch_options: ClassVar[Mapping[str, Any]] = {"batch": 3}
    """Options that make batches of several clips; empty for an encoder whose batch size is fixed."""
    changed_options: ClassVar[Mapping[str, Any]] = {}
    """Option -> a value other than the default; each must change the fingerprint."""

    def test_every_clip_has_the_stated_shape_and_finite_tokens(self, open_encoder: OpenEncoder) -> None:
        encoder = open_encoder()
        for view in random_views(encoder.view):
            tokens = encode_batch(encoder, {0: view})[0]
            assert tokens.shape == tuple(encoder.shape)
            assert tokens.dtype == np.float32
            assert np.isfinite(tokens).all()

    def test_preprocessing_gives_one_shape_for_all_clips(self, open_encoder: OpenEncoder) -> None:
        encoder = open_encoder()
        inputs = [encoder.preprocess(view) for view in random_views(encoder.view)]
        assert len({(array.shape, array.dtype) for array in inputs}) == 1

    def test_a_copy_for_other_processes_preprocesses_alike(self, open_encoder: OpenEncoder) -> None:
        encoder = open_encoder()
        without_network = encoder.without_network()
        if without_network is None:  # clips are decoded in threads
            return
        copy = pickle.loads(pickle.dumps(without_network))
        assert (copy.view, copy.needs_valid) == (encoder.view, encoder.needs_valid)
        for view in random_views(encoder.view):
            original, other = encoder.preprocess(view), copy.preprocess(view)
            assert (original.dtype, original.shape, original.tobytes()) == (other.dtype, other.shape, other.tobytes())
            assert not encoder.needs_valid or copy.num_valid(view) == encoder.num_valid(view)

    def test_clips_that_differ_have_different_tokens(self, open_encoder: OpenEncoder) -> None:
        encoder = open_encoder()
        rows = [encode_batch(encoder, {0: view})[0].tobytes() for view in random_views(encoder.view)]
        assert len(set(rows)) == len(rows)

    def test_tokens_do_not_depend_on_the_other_clips_of_the_batch(self, open_encoder: OpenEncoder) -> None:
        encoder = open_encoder(**self.batch_options)
        views = random_views(encoder.view)
        for position in range(encoder.batch_size):
            alone = encode_batch(encoder, {position: views[0]})[position]
            for offset in range(1, len(views)):
                batch = {at: views[(at + offset) % len(views)] for at in range(encoder.batch_size)}
                assert np.array_equal(encode_batch(encoder, batch | {position: views[0]})[position], alone)

    def test_two_encoders_that_were_opened_alike_give_equal_tokens(self, open_encoder: OpenEncoder) -> None:
        first, second = open_encoder(), open_encoder()
        view = random_views(first.view)[0]
        assert np.array_equal(encode_batch(first, {0: view})[0], encode_batch(second, {0: view})[0])
        assert first.spec("float16").fingerprint == second.spec("float16").fingerprint

    def test_the_spec_states_the_encoder_and_survives_its_file(self, open_encoder: OpenEncoder) -> None:
        encoder = open_encoder()
        for stored_dtype in STORED_DTYPES:
            spec = encoder.spec(stored_dtype)
            assert spec.encoder == encoder.name
            assert spec.shape == tuple(encoder.shape)
            assert spec.stored_dtype == stored_dtype
            assert Spec.from_json(spec.to_json()).fingerprint == spec.fingerprint
        assert len({encoder.spec(stored_dtype).fingerprint for stored_dtype in STORED_DTYPES}) == len(STORED_DTYPES)

    def test_every_changed_option_changes_the_fingerprint(self, open_encoder: OpenEncoder) -> None:
        usual = open_encoder().spec("float16").fingerprint
        unchanged = [
            option
            for option, value in self.changed_options.items()
            if open_encoder(**{option: value}).spec("float16").fingerprint == usual
        ]
        assert unchanged == []

    def test_the_batch_size_is_part_of_the_fingerprint(self, open_encoder: OpenEncoder) -> None:
        if self.batch_options:
            usual = open_encoder().spec("float16").fingerprint
            assert open_encoder(**self.batch_options).spec("float16").fingerprint != usual

    def test_an_exportable_encoder_is_rebuilt_from_its_spec_and_its_weights(self, open_encoder: OpenEncoder) -> None:
        """Nothing to hold for an encoder whose class lacks a member of `ExportableEncoder`."""
        encoder: Any = open_encoder(**self.changed_options)
        kind: Any = type(encoder)
        if not all(hasattr(kind, member) for member in EXPORTING):
            return
        from featurecache.encoders.network import FrozenNetwork

        spec, settings = encoder.spec("float16"), json.loads(json.dumps(encoder.settings))
        network = kind.empty_network(settings)
        network.load_state_dict(encoder.network.module.state_dict())
        frozen = FrozenNetwork(network, encoder.network.device, spec.compute_dtype)
        rebuilt, without_network = kind.from_spec(spec, settings, frozen), kind.from_spec(spec, settings, None)
        assert rebuilt.spec("float16") == spec
        view = random_views(encoder.view)[0]
        assert np.array_equal(encode_batch(rebuilt, {0: view})[0], encode_batch(encoder, {0: view})[0])
        for member in ("view", "shape", "needs_valid"):
            assert getattr(without_network, member) == getattr(encoder, member)
        assert np.array_equal(without_network.preprocess(view), encoder.preprocess(view), equal_nan=True)
        assert open_encoder(**kind.options_of(spec)).spec("float16").fingerprint == spec.fingerprint

    def test_an_unknown_option_is_refused(self, open_encoder: OpenEncoder) -> None:
        refusal: FeatureCacheError | None = None
        try:
            open_encoder(no_such_option="1")
        except FeatureCacheError as error:
            refusal = error
        assert refusal is not None
        assert "no_such_option" in str(refusal)
