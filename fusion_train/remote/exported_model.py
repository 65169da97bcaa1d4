"""What exported models with and without a language model share: strict loading, and encoders that stay frozen.

    encode(present, input_features=…, image_frames=…, video_frames=…, text_tokens=…) -> modality -> features (B, K, D)

A subclass sets `networks`, which `empty_networks` makes, and `_specs`.
Shapes: B clips, M modalities in use, K tokens of width D per feature.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from featurecache.encoders import ExportableEncoder
from featurecache.encoders.network import FrozenNetwork, align, round_products
from featurecache.errors import WeightsError
from featurecache.spec import Spec
from fusion_train.remote.chosen_encoders import chosen_encoder
from fusion_train.remote.configuration_emotion_llama import parity_notice
from fusion_train.remote.encoding import INPUTS, READ_AS, encode, rebuild_encoder

logger = logging.getLogger(__name__)


class ExportedModel(PreTrainedModel):
    """A model that reads preprocessed clips through frozen encoders."""

    networks: nn.ModuleDict
    _specs: Mapping[str, Spec]
    """Modality -> spec, from the configuration."""
    _encoders_on: tuple[torch.device, dict[str, ExportableEncoder]] | None = None

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """Load strictly; transformers alone would fill missing weights with random numbers.

        A failed bound in the certificate of the folder is logged as a warning.

        Raises:
            WeightsError: weights missing, unexpected or of another shape.
        """
        if args and (notice := parity_notice(args[0])):
            logger.warning(notice)
        with_info = kwargs.pop("output_loading_info", False)
        loaded: Any = super().from_pretrained(*args, **kwargs, output_loading_info=True)
        model, info = loaded
        problems = [
            f"{kind.replace('_', ' ')}: {item}"
            for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")
            for item in sorted(map(str, info[kind]))
        ]
        if problems:
            raise WeightsError(
                "exported model",
                expected="weights for every parameter, and no others",
                got=f"{len(problems)} that differ",
                next_step="Export the run again.",
                problems=problems,
            )
        _restore_constant_buffers(model)
        align(model)
        return (model, info) if with_info else model

    def train(self, mode: bool = True) -> Any:
        """Set the mode of all modules but the encoders, which stay in evaluation mode."""
        super().train(mode)
        self.networks.eval()
        return self

    def encoders(self) -> dict[str, ExportableEncoder]:
        """Return modality -> encoder on the device of this model, rebuilt after a move.

        Raises:
            WeightsError: the spec of an encoder differs from that of training.
        """
        tensors = itertools.chain(self.networks.parameters(), self.networks.buffers())
        device = next((tensor.device for tensor in tensors), self.device)
        if self._encoders_on is None or self._encoders_on[0] != device:
            encoders = {}
            for modality, spec in self._specs.items():
                key = self.config.encoders[modality]["network"]
                network = FrozenNetwork(self.networks[key], device, spec.compute_dtype)
                encoder = rebuild_encoder(spec, self.config.networks[key], network)
                if differing := encoder.spec(spec.stored_dtype).differences(spec):
                    raise WeightsError(
                        f"{modality} encoder",
                        expected="the spec that the model was trained with",
                        got=f"{len(differing)} differing fields",
                        problems=differing,
                    )
                encoders[modality] = encoder
            self._encoders_on = (device, encoders)
        return self._encoders_on[1]

    def encode(self, present: Tensor, valid: Tensor | None = None, **inputs: Tensor | None) -> dict[str, Tensor]:
        """Encode preprocessed inputs; return modality -> features (B, K, D).

        Rows for which `present` (B, M) is False are zero and have no effect.

        Args:
            valid: (B, M) encoder tokens that each clip fills; the processor returns it if a pooling needs it.
        """
        features = {}
        for m, (modality, encoder) in enumerate(self.encoders().items()):
            spec = self._specs[modality]
            dtype = READ_AS[spec.stored_dtype]
            features[modality] = torch.zeros((len(present), *spec.shape), dtype=dtype, device=present.device)
            rows = present[:, m].nonzero().flatten()
            if len(rows):
                modality_inputs = inputs.get(INPUTS[modality])
                if modality_inputs is None:
                    raise ValueError(f"present: {modality} is marked present, but {INPUTS[modality]} is not given")
                num_valid = None if valid is None else valid[rows.to(valid.device), m].tolist()
                tokens = encode(encoder, spec, modality_inputs[rows.to(modality_inputs.device)], num_valid)
                features[modality][rows] = tokens.to(present.device)
        return features


def empty_networks(encoders: Mapping[str, Any], networks: Mapping[str, Any]) -> nn.ModuleDict:
    """Return key -> network without its weights; arguments are fields of the configuration.

    Networks are created in the dtypes of the file, not in that of the language model, so loading converts nothing.
    """
    specs = {entry["network"]: entry["spec"] for entry in encoders.values()}
    return nn.ModuleDict(
        {
            key: round_products(
                chosen_encoder(specs[key]["encoder"]).empty_network(settings).float(), specs[key]["compute_dtype"]
            )
            for key, settings in networks.items()
        }
    )


def _restore_constant_buffers(model: ExportedModel) -> None:
    """Compute buffers again that a network of an encoder's own makes when it is built and does not save.

    transformers builds the model without memory, and then fills such buffers in its own networks only.
    """
    specs = {entry["network"]: entry["spec"] for entry in model.config.encoders.values()}
    for key, network in model.networks.items():
        saved = network.state_dict().keys()
        constants = {name: buffer for name, buffer in network.named_buffers() if name not in saved}
        if constants and not isinstance(network, PreTrainedModel):
            kind = chosen_encoder(specs[key]["encoder"])
            fresh = dict(kind.empty_network(model.config.networks[key]).named_buffers())
            for name, buffer in constants.items():
                buffer.copy_(fresh[name])
