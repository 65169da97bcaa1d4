"""An exported model: encoders, fusion, projectors and language model in one, from raw clips to answers.

    processor(video="clip.mp4", text="I see.", task="emotion")
        -> input_ids (B, L) with -1 at soft places, attention_mask (B, L), present (B, M)
           input_features (B, mel bins, mel frames), image_frames (B, 1, H, W, 3), video_frames (B, F, H, W, 3),
           text_tokens (B, 2, text length) for a fusion that reads a text feature
        -> generate: new token ids · label_probabilities: (B, C) · forward: logits (B, L, V)

A modality that a clip does not have is False in `present`; the content of its row has no effect. If the run made
absence visible, the language model sees a constant in its place, else nothing. Encoders stay frozen and in evaluation
mode. The language model keeps its dtype, trained parts are float32, and the matrix products of each encoder run in the
compute dtype of its features.
Shapes: B clips, L tokens, M modalities in use, C labels, V vocabulary, K tokens of width D per feature.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM, GenerationMixin
from transformers.modeling_outputs import CausalLMOutputWithPast

from fusion_train.models.answering import label_log_probabilities, pad_left, positions
from fusion_train.models.emotion_llama import Abilities, AbsentConstants, EmotionLlama, llm_width
from fusion_train.models.packed_attention import attending_by_layout
from fusion_train.models.recall import Recall
from fusion_train.models.token_streams import IGNORED_LABEL, SOFT_TOKEN
from fusion_train.remote.adapter import is_adapter_folder, load_adapter_model
from fusion_train.remote.chosen_fusion import chosen_fusion
from fusion_train.remote.configuration_emotion_llama import EmotionLlamaConfig, parity_notice
from fusion_train.remote.exported_model import ExportedModel, empty_networks

logger = logging.getLogger(__name__)
PASSED_ON = (
    "_keep_in_fp32_modules",
    "_keep_in_fp32_modules_strict",
    "_no_split_modules",
    "_skip_keys_device_placement",
    "_keys_to_ignore_on_load_unexpected",
    "_keys_to_ignore_on_load_missing",
)
"""Class attributes by which a model tells transformers how to load and place it."""


class EmotionLlamaForCausalLM(ExportedModel, GenerationMixin):
    """Frozen encoders, fusion, projectors and the language model, with merged adapters or adapters of peft."""

    config_class = EmotionLlamaConfig
    main_input_name = "input_ids"
    input_modalities = ("audio", "image", "video", "text")  # type: ignore[assignment]  # any sequence will do
    _keep_in_fp32_modules_strict = [  # noqa: RUF012
        "emotion_llama.fusion",
        "emotion_llama.projectors",
        "recall",
        "stand_ins",
    ]
    _supports_sdpa = True
    _supports_flash_attn = True

    def __init__(self, config: EmotionLlamaConfig) -> None:
        super().__init__(config)
        shapes = config.feature_shapes
        fusion = chosen_fusion(config.fusion["name"], shapes.fusion_dims(), **config.fusion["options"])
        llm = AutoModelForCausalLM.from_config(config.text_config)
        self.emotion_llama = EmotionLlama(
            llm,
            fusion,
            shapes,
            fusion_width=config.fusion["options"].get("out_dim", 0),
            llm_width=llm_width(llm),
            fusion_tokens=config.fusion.get("tokens"),
            abilities=Abilities(packing=config.scores_in_rows, batching=config.answers_in_batches),
        )
        self.networks = empty_networks(config.encoders, config.networks)
        self.recall = Recall(config.recall) if config.recall else None
        self.stand_ins = AbsentConstants(shapes) if config.absent == "visible" else None
        self._specs = config.specs
        self._announce_language_model()
        self.post_init()

    def _announce_language_model(self) -> None:
        """Copy attributes of the language model to `emotion_llama`: transformers reads them from direct children
        only."""
        network: Any = self.emotion_llama  # given attributes that its class does not have
        llm = network.llm
        tied = {f"llm.{target}": f"llm.{source}" for target, source in llm.all_tied_weights_keys.items()}
        network.all_tied_weights_keys = tied
        for name in PASSED_ON:
            setattr(network, name, getattr(llm, name, None))

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """Load strictly, as `ExportedModel`.

        Args:
            base, encoder_weights: for a folder of the adapter-only form, see `adapter.load_adapter_model`.

        Raises:
            WeightsError: weights missing, unexpected or of another shape.
        """
        places = {name: kwargs.pop(name, None) for name in ("base", "encoder_weights")}
        if args and is_adapter_folder(args[0]):
            if notice := parity_notice(args[0]):
                logger.warning(notice)
            kwargs.pop("output_loading_info", None)
            return load_adapter_model(cls, Path(args[0]), **places)
        return super().from_pretrained(*args, **kwargs)

    def constants(self) -> dict[str, nn.Module]:
        """Return name -> module for the constants of the model, which are neither trained nor part of an encoder."""
        modules = {"recall": self.recall, "stand_ins": self.stand_ins}
        return {name: module for name, module in modules.items() if module is not None}

    @property
    def fusion_tokens(self) -> int:
        """The number of tokens of the fusion."""
        return self.emotion_llama.fusion_tokens

    @property
    def _llm(self) -> Any:
        """The causal language model of transformers."""
        return self.emotion_llama.llm

    def get_input_embeddings(self) -> nn.Module:
        return self._llm.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self._llm.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module | None:
        return self._llm.get_output_embeddings()

    def seen(self, features: Mapping[str, Tensor], present: Tensor) -> tuple[Mapping[str, Tensor], Tensor]:
        """Return the features that the language model sees, and which modalities these are, (B, M).

        Args:
            present: (B, M) modalities that the clips have.
        """
        return (features, present) if self.stand_ins is None else self.stand_ins(features, present)

    def fill_recall(
        self, input_ids: Tensor, attention_mask: Tensor, features: Mapping[str, Tensor], present: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Insert recalled texts of the nearest training clips into prompts with a place for them; return ids and
        mask."""
        if self.recall is None:
            return input_ids, attention_mask
        return self.recall.fill(input_ids, attention_mask, features, present, list(self._specs))

    def embed(
        self, input_ids: Tensor, present: Tensor, features: Mapping[str, Tensor] | None = None, **inputs: Tensor | None
    ) -> Tensor:
        """Embed prompts with raw inputs, or with features from a store; return (B, L, H) for the language model."""
        features, present = self.seen(features or self.encode(present, **inputs), present)
        return self.emotion_llama.embed(input_ids, features, present)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        present: Tensor | None = None,
        input_features: Tensor | None = None,
        image_frames: Tensor | None = None,
        video_frames: Tensor | None = None,
        text_tokens: Tensor | None = None,
        valid: Tensor | None = None,
        features: Mapping[str, Tensor] | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Return logits (B, L, V) of prompts (B, L), and the loss if `labels` (B, L) are given.

        Args:
            features: modality -> features; replaces the raw inputs.
            labels: token ids at supervised positions, -100 elsewhere.
        """
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        present = self._none_present(input_ids) if present is None else present
        features = features or self.encode(
            present,
            valid,
            input_features=input_features,
            image_frames=image_frames,
            video_frames=video_frames,
            text_tokens=text_tokens,
        )
        filled, mask = self.fill_recall(input_ids, mask, features, present)
        if labels is not None and filled is not input_ids:
            raise ValueError("labels: expected those of a prompt that `fill_recall` has filled in")
        input_ids = filled
        embedded = self.embed(input_ids, present, features)
        out = self._llm(
            inputs_embeds=embedded,
            attention_mask=mask,
            position_ids=positions(mask),
            logits_to_keep=logits_to_keep,
            **kwargs,
        )
        if labels is not None:
            targets = F.pad(labels[:, 1:], (0, 1), value=IGNORED_LABEL)
            out.loss = F.cross_entropy(out.logits.float().flatten(0, 1), targets.flatten(), ignore_index=IGNORED_LABEL)
        return out

    @torch.inference_mode()
    def generate(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        present: Tensor | None = None,
        features: Mapping[str, Tensor] | None = None,
        input_features: Tensor | None = None,
        image_frames: Tensor | None = None,
        video_frames: Tensor | None = None,
        text_tokens: Tensor | None = None,
        valid: Tensor | None = None,
        **options: Any,
    ) -> Tensor:
        """Generate new token ids (B, T) after the prompts; greedily, unless `options` of `generate` say otherwise."""
        present = self._none_present(input_ids) if present is None else present
        features = features or self.encode(
            present,
            valid,
            input_features=input_features,
            image_frames=image_frames,
            video_frames=video_frames,
            text_tokens=text_tokens,
        )
        input_ids, attention_mask = self.fill_recall(input_ids, attention_mask, features, present)
        embedded = self.embed(input_ids, present, features)
        settings = copy.deepcopy(options.pop("generation_config", self.generation_config))
        model_options = settings.update(**options)  # those that are no settings of generation
        generate = partial(self._llm.generate, generation_config=settings, **model_options)
        if self.config.answers_in_batches or len(embedded) == 1:
            return generate(inputs_embeds=embedded, attention_mask=attention_mask)
        rows = [
            generate(inputs_embeds=row[mask.bool()][None])[0]
            for row, mask in zip(embedded, attention_mask, strict=True)
        ]
        return pad_sequence(rows, batch_first=True, padding_value=settings.pad_token_id)

    @torch.inference_mode()
    def label_probabilities(
        self,
        label_ids: Sequence[Sequence[int]],
        input_ids: Tensor,
        attention_mask: Tensor,
        present: Tensor | None = None,
        features: Mapping[str, Tensor] | None = None,
        **inputs: Tensor | None,
    ) -> Tensor:
        """Return the probability of every label of a closed set, (B, C) float32, without generation.

        Args:
            label_ids: C lists of token ids, from `processor.label_ids`.
        """
        present = self._none_present(input_ids) if present is None else present
        features = features or self.encode(present, **inputs)
        input_ids, attention_mask = self.fill_recall(input_ids, attention_mask, features, present)
        prompts = [row[mask.bool()].tolist() for row, mask in zip(input_ids, attention_mask, strict=True)]
        seen = self.seen(features, present)
        with attending_by_layout(self.emotion_llama.llm, self.config.scores_in_rows):
            scores = label_log_probabilities(self.emotion_llama, prompts, *seen, label_ids)
        return scores.softmax(dim=1)

    @torch.inference_mode()
    def modality_weights(self, features: Mapping[str, Tensor], present: Tensor) -> Tensor | None:
        """Return weights (B, K or 1, M) of the attention branch of the fusion, in the order of `present`; None without
        one."""
        return self.emotion_llama.modality_weights(*self.seen(features, present))

    def leave_out(self, modality: str, input_ids: Tensor, attention_mask: Tensor, present: Tensor) -> dict[str, Tensor]:
        """Return the prompts as if the clips did not have `modality`; features stay as they are.

        The places of the modality leave the prompt, unless absence is visible. The change of the answer shows how much
        it relied on the modality.
        """
        column = list(self._specs).index(modality)
        reduced = present.clone()
        reduced[:, column] = False
        prompts = []
        for row, mask, before, after in zip(input_ids, attention_mask, present, reduced, strict=True):
            ids = row[mask.bool()].tolist()
            num_soft = self._num_soft(before)
            start = ids.index(SOFT_TOKEN) if num_soft else 0
            prompts.append([*ids[:start], *[SOFT_TOKEN] * self._num_soft(after), *ids[start + num_soft :]])
        ids, mask = pad_left(prompts, input_ids.device)
        return {"input_ids": ids, "attention_mask": mask, "present": reduced}

    def _num_soft(self, present: Tensor) -> int:
        """Return the number of soft tokens in the prompt of a clip with these modalities (M,)."""
        counts = self.emotion_llama.soft_counts
        if self.stand_ins is not None:
            return sum(counts.values())
        shown = {name for name, is_present in zip(self._specs, present.tolist(), strict=True) if is_present}
        return sum(count for stream, count in counts.items() if stream in shown or (stream == "fusion" and shown))

    def _none_present(self, input_ids: Tensor) -> Tensor:
        """Return `present` of clips without any modality."""
        return torch.zeros(len(input_ids), len(self._specs), dtype=torch.bool, device=input_ids.device)
