"""Which of optimum's tasks a model is for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safe_dtype.integrations.optimum import TASKS, task_of

from safe_dtype.errors import NotOptimizableError


def folder_with(config: object, folder: Path) -> Path:
    """Return a folder that holds only this config."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("config", "task"),
    [
        ({"architectures": ["BertModel"]}, "feature-extraction"),
        ({"architectures": ["BertForMaskedLM"]}, "fill-mask"),
        ({"architectures": ["Qwen3ForCausalLM"]}, "text-generation"),
        ({"architectures": ["GPT2LMHeadModel"]}, "text-generation"),
        ({"architectures": ["SegformerForSemanticSegmentation"]}, "semantic-segmentation"),
        ({"architectures": ["SegformerForImageClassification"]}, "image-classification"),
        ({"architectures": ["DetrForSegmentation"]}, "image-segmentation"),
        ({"architectures": ["BertForSequenceClassification"]}, "text-classification"),
        ({"architectures": ["Wav2Vec2ForSequenceClassification"], "conv_kernel": [10, 3]}, "audio-classification"),
        ({"architectures": ["T5ForConditionalGeneration"], "is_encoder_decoder": True}, "text2text-generation"),
        ({"architectures": ["WhisperForConditionalGeneration"], "num_mel_bins": 80}, "automatic-speech-recognition"),
        ({"architectures": ["LlavaForConditionalGeneration"], "vision_config": {}}, "image-text-to-text"),
        ({"architectures": ["MarianMTModel"]}, "text2text-generation"),
        ({"architectures": ["VisionEncoderDecoderModel"]}, "image-to-text"),
    ],
    ids=lambda value: value["architectures"][0] if isinstance(value, dict) else "",
)
def test_task(config: dict[str, object], task: str, tmp_path: Path) -> None:
    """The class that the config names, and what the model is made of, say the task."""
    assert task_of(folder_with(config, tmp_path)) == task
    assert task in TASKS


def test_task_of_a_named_class(tmp_path: Path) -> None:
    """A class that is named comes before the one of the config."""
    assert task_of(folder_with({"architectures": ["BertForMaskedLM"]}, tmp_path), "BertModel") == "feature-extraction"


@pytest.mark.parametrize(
    ("config", "said"),
    [
        pytest.param({"architectures": ["Sapiens2ForPoseEstimation"]}, "Sapiens2ForPoseEstimation", id="unknown"),
        pytest.param({"architectures": ["BarForConditionalGeneration"]}, "--task, one of ", id="generates-something"),
        pytest.param({"model_type": "bert"}, "names no class", id="no-class"),
        pytest.param([], "is no object", id="a-list"),
    ],
)
def test_no_task(config: object, said: str, tmp_path: Path) -> None:
    """Where nothing says the task, the error does, and what to do."""
    with pytest.raises(NotOptimizableError, match=said):
        task_of(folder_with(config, tmp_path))
