"""Which of optimum's tasks a model is for. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safe_dtype.errors import NotOptimizableError

# By the ending of the class's name. An ending stands before a shorter one that it ends with.
_BY_ENDING: Mapping[str, str] = {
    "ForSemanticSegmentation": "semantic-segmentation",
    "ForInstanceSegmentation": "image-segmentation",
    "ForUniversalSegmentation": "image-segmentation",
    "ForImageSegmentation": "image-segmentation",
    "ForSegmentation": "image-segmentation",
    "ForImageClassification": "image-classification",
    "ForImageClassificationWithTeacher": "image-classification",
    "ForMaskedImageModeling": "masked-im",
    "ForObjectDetection": "object-detection",
    "ForDepthEstimation": "depth-estimation",
    "ForKeypointDetection": "keypoint-detection",
    "ForMaskedLM": "fill-mask",
    "ForPreTraining": "fill-mask",
    "ForCausalLM": "text-generation",
    "LMHeadModel": "text-generation",
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForMultipleChoice": "multiple-choice",
    "ForQuestionAnswering": "question-answering",
    "ForAudioFrameClassification": "audio-frame-classification",
    "ForXVector": "audio-xvector",
    "ForCTC": "automatic-speech-recognition",
    "ForSpeechSeq2Seq": "automatic-speech-recognition",
    "SpeechEncoderDecoderModel": "automatic-speech-recognition",
    "VisionEncoderDecoderModel": "image-to-text",
    "EncoderDecoderModel": "text2text-generation",
    "MTModel": "text2text-generation",  # MarianMTModel
    "Model": "feature-extraction",
}
_AUDIO = "audio-classification"  # of a class ...ForSequenceClassification as well, where the model takes audio
_HEARS = ("num_mel_bins", "feat_extract_norm", "conv_kernel", "num_conv_pos_embeddings")  # keys of such configs
TASKS = tuple(sorted({*_BY_ENDING.values(), _AUDIO, "image-text-to-text"}))


def task_of(model: Path, model_class: str = "") -> str:
    """Return the task, in optimum's words, of the model in a folder for `from_pretrained`.

    Args:
        model: The folder, with its `config.json`.
        model_class: Transformers' name of the class; empty for the one that the config names.

    Raises:
        NotOptimizableError: If the name of the class tells no task of optimum.
    """
    config = config_of(model)
    name = model_class or class_of(config, model)
    hears = any(key in config for key in _HEARS)
    if name.endswith("ForConditionalGeneration"):
        if task := _of_generation(config, hears=hears):
            return task
    else:
        for ending, task in _BY_ENDING.items():
            if name.endswith(ending):
                return _AUDIO if hears and ending == "ForSequenceClassification" else task
    raise NotOptimizableError(f"optimum's task for {name} is not known", f"name it: --task, one of {', '.join(TASKS)}")


def config_of(model: Path) -> dict[str, Any]:
    """Return the config of a folder.

    Raises:
        NotOptimizableError: If there is none that can be read.
    """
    try:
        config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        advice = "optimum exports models of transformers: folders that from_pretrained reads"
        raise NotOptimizableError(f"its config.json cannot be read ({exc})", advice) from exc
    if not isinstance(config, dict):
        raise NotOptimizableError("its config.json is no object", "save the model again with save_pretrained")
    return config


def class_of(config: Mapping[str, Any], model: Path) -> str:
    """Return transformers' name of the class that a config names.

    Raises:
        NotOptimizableError: If it names none.
    """
    names = config.get("architectures") or [""]
    if not names[0]:
        advice = "save it with save_pretrained, which writes it, or name the class"
        raise NotOptimizableError(f"{model.name}/config.json names no class in `architectures`", advice)
    return str(names[0])


def _of_generation(config: Mapping[str, Any], *, hears: bool) -> str:
    """Return the task of a class ...ForConditionalGeneration, from the keys of its config; empty where they tell none."""
    if hears:
        return "automatic-speech-recognition"
    if "vision_config" in config:
        return "image-text-to-text"
    return "text2text-generation" if config.get("is_encoder_decoder") else ""
