"""Write the exported folder: weights, configuration, processor, tokenizer, generation defaults, code.

    DIR/
        config.json, generation_config.json, processor_config.json, tokenizer files
        model.safetensors, or model-0000N-of-0000M.safetensors of at most 5 GB with their index
            or, adapter-only: adapter_config.json, adapter_model.safetensors (peft's), fusion.safetensors
        configuration_ | modeling_ | processing_emotion_llama.py and the modules that they import
        certificate.json, CERTIFICATE.md, README.md      written by `certificate` and `card`

Weights are written in the dtype in which they computed: the language model in its own dtype, trained parts in float32,
the matrices of each encoder in the compute dtype of its features. No absolute path is written.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import GenerationConfig

from fusion_train.data.retrieval import RecalledTokens, recall_state
from fusion_train.evaluation.evaluate import MAX_NEW_TOKENS
from fusion_train.export.encoders import AttachedEncoders
from fusion_train.export.weights import align_file
from fusion_train.models.fusions import fusion_variant, taken_options
from fusion_train.models.token_streams import MODALITIES
from fusion_train.remote.adapter import TRAINED_WEIGHTS, base_files
from fusion_train.remote.configuration_emotion_llama import EmotionLlamaConfig
from fusion_train.remote.configuration_emotion_probe import EmotionProbeConfig
from fusion_train.remote.modeling_emotion_llama import EmotionLlamaForCausalLM
from fusion_train.remote.modeling_emotion_probe import EmotionProbe
from fusion_train.remote.processing_emotion_llama import EmotionLlamaProcessor
from fusion_train.remote.processing_emotion_probe import EmotionProbeProcessor
from fusion_train.remote.vendor import PROBE_ENTRY_MODULES, vendored_code
from fusion_train.run_context import RunContext

MAX_SHARD_SIZE = "5GB"
Constants = Mapping[str, Mapping[str, Tensor]]
"""Part -> name -> tensor, for `EmotionLlamaForCausalLM.constants`."""
AUTO_MAP = {
    "AutoConfig": "configuration_emotion_llama.EmotionLlamaConfig",
    "AutoModelForCausalLM": "modeling_emotion_llama.EmotionLlamaForCausalLM",
    "AutoProcessor": "processing_emotion_llama.EmotionLlamaProcessor",
}

PROBE_AUTO_MAP = {
    "AutoConfig": "configuration_emotion_probe.EmotionProbeConfig",
    "AutoModel": "modeling_emotion_probe.EmotionProbe",
    "AutoProcessor": "processing_emotion_probe.EmotionProbeProcessor",
}


def make_config(
    context: RunContext, attached: AttachedEncoders, tasks: Sequence[str], recall: Mapping[str, Any] | None = None
) -> EmotionLlamaConfig:
    """Return the exported configuration of a run.

    Args:
        tasks: tasks that the run was trained on.
        recall: settings that `retrieval.recall_state` returns; None without retrieval.
    """
    llm = context.model.llm.config
    text_config = llm.to_dict() | {"dtype": None, "_name_or_path": ""}
    return EmotionLlamaConfig(
        text_config={key: value for key, value in text_config.items() if not key.startswith("_")},
        encoders=attached.entries,
        networks=attached.settings,
        shapes=_shapes(context),
        fusion=_fusion(context),
        prompt=context.config.prompt.model_dump(),
        label_sets=_label_sets(context),
        stage=context.config.stage,
        tasks=tasks,
        recall=recall,
        absent=context.config.features.absent,
        answers_in_batches=context.model.abilities.batching,
        scores_in_rows=context.model.abilities.packing,
        tie_word_embeddings=bool(llm.tie_word_embeddings),
        architectures=["EmotionLlamaForCausalLM"],
    )


def _shapes(context: RunContext) -> dict[str, Any]:
    return {name: getattr(context.reader.shapes, name) for name in MODALITIES}


def _fusion(context: RunContext) -> dict[str, Any]:
    settings, count = context.config.model.fusion, context.model.fusion_tokens
    options = settings.model_dump(mode="json", exclude={"name"}) | {"num_tokens": count}
    return {
        "name": settings.name,
        "options": taken_options(fusion_variant(settings.name), options),
        "tokens": count,
    }


def _label_sets(context: RunContext) -> dict[str, dict[str, list[str]]]:
    return {
        dataset: {task: list(labels) for task, labels in tasks.items()} for dataset, tasks in context.label_sets.items()
    }


def make_model(
    context: RunContext, attached: AttachedEncoders, config: EmotionLlamaConfig, constants: Constants | None = None
) -> EmotionLlamaForCausalLM:
    """Return the exported model; it holds the run's own modules, no copies."""
    with torch.device("meta"):
        model = EmotionLlamaForCausalLM(config)
    for part, module in model.constants().items():
        module.load_state_dict(dict((constants or {})[part]), assign=True)
    model.emotion_llama = context.model
    model.networks = nn.ModuleDict(attached.networks)
    model.generation_config = generation_defaults(context)
    return model.eval()


def constants_of(context: RunContext) -> tuple[dict[str, Any] | None, Constants]:
    """Return the settings of the retrieval, None for a run without it; and the constants of the model."""
    absent_constants = context.reader.absent_constants
    constants = {} if absent_constants is None else {"stand_ins": dict(absent_constants)}
    recall = getattr(context.collator, "recall", None)
    if not isinstance(recall, RecalledTokens):
        return None, constants
    settings, memory = recall_state(recall)
    return settings, constants | {"recall": memory}


def generation_defaults(context: RunContext) -> GenerationConfig:
    """Return settings for greedy decoding, as in evaluation."""
    eos = context.tokenizer.eos_token_id
    settings = copy.deepcopy(context.model.llm.generation_config)
    settings.update(max_new_tokens=MAX_NEW_TOKENS, eos_token_id=eos, pad_token_id=eos)
    return settings


def write_folder(
    folder: Path,
    context: RunContext,
    attached: AttachedEncoders,
    tasks: Sequence[str],
    required: Collection[str] = (),
) -> None:
    """Write everything but the certificate and the model card.

    A model whose adapters are not merged is written in the adapter-only form.

    Args:
        required: encoders whose package the folder names in place of its code.
    """
    encoders = [spec.encoder for spec in context.reader.specs.values()]
    if context.config.model.llm is None:
        _write_probe(folder, context, attached, tasks)
        code = vendored_code(context.config.model.fusion.name, encoders, required, PROBE_ENTRY_MODULES)
    else:
        _write_language_model(folder, context, attached, tasks)
        code = vendored_code(context.config.model.fusion.name, encoders, required)
    for name, text in code.items():
        (folder / name).write_text(text, encoding="utf-8")


def _write_probe(folder: Path, context: RunContext, attached: AttachedEncoders, tasks: Sequence[str]) -> None:
    """Write weights, configuration and processor of a run without a language model."""
    config = EmotionProbeConfig(
        encoders=attached.entries,
        networks=attached.settings,
        shapes=_shapes(context),
        fusion=_fusion(context) | ({} if context.model.normalisation is None else {"normalised": True}),
        label_sets=_label_sets(context),
        stage=context.config.stage,
        tasks=tasks,
        architectures=["EmotionProbe"],
        dtype="float32",
    )
    config.auto_map = PROBE_AUTO_MAP
    with torch.device("meta"):
        model = EmotionProbe(config)
    model.probe, model.networks = context.model, nn.ModuleDict(attached.networks)
    model.eval().save_pretrained(folder, max_shard_size=MAX_SHARD_SIZE)
    for shard in folder.glob("*.safetensors"):
        align_file(shard)
    processor = EmotionProbeProcessor(config.encoders, config.networks, config.label_sets, config.tasks)
    processor.auto_map = {"AutoProcessor": PROBE_AUTO_MAP["AutoProcessor"]}  # type: ignore[attr-defined]  # as below
    processor.save_pretrained(folder)


def _write_language_model(folder: Path, context: RunContext, attached: AttachedEncoders, tasks: Sequence[str]) -> None:
    recall, constants = constants_of(context)
    config = make_config(context, attached, tasks, recall)
    config.auto_map = AUTO_MAP
    if isinstance(context.model.llm, PeftModel):
        _write_adapter(folder, context, config, constants)
    else:
        make_model(context, attached, config, constants).save_pretrained(folder, max_shard_size=MAX_SHARD_SIZE)
    for shard in folder.glob("*.safetensors"):
        align_file(shard)
    processor = EmotionLlamaProcessor(
        context.tokenizer,
        encoders=config.encoders,
        networks=config.networks,
        soft_counts=context.model.soft_counts,
        prompt=config.prompt,
        label_sets=config.label_sets,
        tasks=config.tasks,
        recall_keys=list(recall["keys"]) if recall else [],
        absent=config.absent,
        max_prompt_tokens=context.collator.limits.answering,
        too_long=context.collator.limits.too_long,
    )
    processor.auto_map = {"AutoProcessor": AUTO_MAP["AutoProcessor"]}  # type: ignore[attr-defined]  # transformers writes it
    processor.save_pretrained(folder)


def _write_adapter(folder: Path, context: RunContext, config: EmotionLlamaConfig, constants: Constants) -> None:
    """Write only the trained parts; base and encoders are referred to by name and sha256."""
    name = context.config.model.llm
    assert name is not None  # a probe is refused before
    base_name = Path(name).resolve().name if Path(name).exists() else name  # no path is written
    config.base_reference = {"name": base_name, "files": base_files(name), "dtype": context.config.model.llm_dtype}
    config.dtype = context.config.model.llm_dtype
    llm = context.model.llm
    for settings in llm.peft_config.values():
        settings.base_model_name_or_path = base_name
    llm.save_pretrained(folder, save_embedding_layers=False)
    trained = {key: tensor.contiguous() for key, tensor in context.model.state_dict().items() if key[:4] != "llm."}
    trained |= {
        f"{part}.{key}": tensor.contiguous() for part, tensors in constants.items() for key, tensor in tensors.items()
    }
    save_file(trained, folder / TRAINED_WEIGHTS, metadata={"format": "pt"})
    config.save_pretrained(folder)
    generation_defaults(context).save_pretrained(folder)
