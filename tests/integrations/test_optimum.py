"""Optimum gets an environment of its own, the task in its words, and a config that its transformers understands."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safe_dtype.integrations.optimum import TASKS, as_before_5, copied_for_4, environment, pins_of, task_of
from safe_dtype.integrations.optimum.inside import with_outputs
from safe_dtype.integrations.optimum.virtual_environment import MARKER, folder_of, python_of, run_python
from safetensors.torch import save_file
from transformers import (
    LlamaConfig,
    Qwen3Config,
)

from safe_dtype.errors import EnvironmentNotFitError, NotOptimizableError

VIA = "optimum-onnx"


def folder_with(config: object, folder: Path) -> Path:
    """Return a folder that holds only this config."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


# --- tasks -------------------------------------------------------------------------------------------------------


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


# --- configs of transformers 5 in the words of 4.57 ----------------------------------------------------------------


def test_default_positions() -> None:
    """The base of the positions is where version 4 looks for it: there its default would be another."""
    config = Qwen3Config(rope_parameters={"rope_type": "default", "rope_theta": 1e6}).to_dict()
    older = as_before_5(config)
    assert (older["rope_theta"], older["rope_scaling"]) == (1e6, None)
    assert "rope_parameters" not in older
    assert "rope_parameters" in config, "the caller's config is as it was"


def test_scaled_positions() -> None:
    """What scales the positions stays together, without the base."""
    rope = {"rope_type": "yarn", "rope_theta": 5e5, "factor": 4.0, "original_max_position_embeddings": 4096}
    older = as_before_5(LlamaConfig(rope_parameters=rope).to_dict())
    assert older["rope_theta"] == 5e5
    assert older["rope_scaling"]["factor"] == 4.0
    assert older["rope_scaling"]["rope_type"] == "yarn"
    assert "rope_theta" not in older["rope_scaling"]


def test_positions_by_kind_of_layer() -> None:
    """Two bases, for layers that see all and for layers that see a window, get the names of Gemma 3 and ModernBERT."""
    rope = {
        "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }
    older = as_before_5({"model_type": "gemma3_text", "rope_parameters": rope})
    assert (older["rope_theta"], older["rope_local_base_freq"]) == (1e6, 1e4)
    assert (older["global_rope_theta"], older["local_rope_theta"]) == (1e6, 1e4)
    assert older["rope_scaling"] == {"rope_type": "linear", "factor": 8.0}


def test_config_inside_of_a_config() -> None:
    """The text part of a larger model is put into older words, too; other dicts are left alone."""
    text = {"model_type": "llama", "rope_parameters": {"rope_type": "default", "rope_theta": 7.0}}
    older = as_before_5({"model_type": "llava", "text_config": text, "id2label": {"0": "rope_parameters"}})
    assert older["text_config"]["rope_theta"] == 7.0
    assert older["id2label"] == {"0": "rope_parameters"}


def test_copy(tmp_path: Path) -> None:
    """The copy shares its weights with the original, has another config, and leaves the original as it was."""
    original = folder_with({"rope_parameters": {"rope_theta": 3.0, "rope_type": "default"}}, tmp_path / "original")
    save_file({"w": torch.ones(3)}, original / "model.safetensors")
    (original / "tokenizer.json").write_text("{}")
    before = (original / "config.json").read_bytes()
    copied = copied_for_4(original, tmp_path / "copied")
    assert (copied / "model.safetensors").read_bytes() == (original / "model.safetensors").read_bytes()
    assert json.loads((copied / "config.json").read_text())["rope_theta"] == 3.0
    assert (original / "config.json").read_bytes() == before
    assert sorted(one.name for one in copied.iterdir()) == ["config.json", "model.safetensors"]


# --- the environment ---------------------------------------------------------------------------------------------


def test_pins() -> None:
    """Torch and onnxruntime are those of this process, optimum and transformers the last that go together."""
    pins = pins_of(VIA)
    assert {"optimum-onnx==0.1.0", "optimum==2.1.0", "transformers==4.57.6"} < set(pins)
    assert f"torch=={torch.__version__.partition('+')[0]}" in pins
    assert all("+" not in one for one in pins), "an index of its own has these"


def test_unknown_via() -> None:
    """Another way to export is refused with those that there are."""
    with pytest.raises(EnvironmentNotFitError, match="--via takes optimum-onnx"):
        environment("optimum-tflite")


@pytest.mark.slow
def test_environment_that_cannot_be_made(no_index: Path) -> None:
    """Without an index the error has what pip said, pip's log stays, and nothing that looks complete is left."""
    told: list[str] = []
    with pytest.raises(EnvironmentNotFitError) as caught:
        environment(VIA, progress=told.append)
    assert "No matching distribution found for optimum-onnx==0.1.0" in str(caught.value)
    assert "pip config list" in str(caught.value)
    assert len(told) == 1
    assert not [one for one in no_index.iterdir() if one.is_dir()]
    assert folder_of(VIA).with_suffix(".log").exists()


def test_no_place_for_an_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache folder that cannot be written is said to be one, with the setting that moves it."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("SAFE_DTYPE_CACHE", str(tmp_path / "file"))
    with pytest.raises(EnvironmentNotFitError, match="set SAFE_DTYPE_CACHE"):
        environment(VIA)


def test_environment_is_made_once(no_index: Path) -> None:
    """A complete one is taken as it is, without pip."""
    folder = folder_of(VIA)
    python_of(folder).parent.mkdir(parents=True)
    python_of(folder).touch()
    (folder / MARKER).write_text(json.dumps({"pins": list(pins_of(VIA))}))
    told: list[str] = []
    assert environment(VIA, progress=told.append) == folder
    assert not told


@pytest.mark.parametrize("marker", ["", '{"pins": ["transformers==1"]}'], ids=["interrupted", "of-other-packages"])
def test_environment_that_is_not_complete(marker: str, no_index: Path) -> None:
    """One without its marker, or with another, is not used."""
    folder = folder_of(VIA)
    python_of(folder).parent.mkdir(parents=True)
    python_of(folder).touch()
    (folder / MARKER).write_text(marker)

    def stop(text: str) -> None:
        raise InterruptedError(text)

    with pytest.raises(EnvironmentNotFitError, match="making an environment"):
        environment(VIA, progress=stop)


def test_starts_without_torch() -> None:
    """Importing the package imports no torch: a parent of attempts does without."""
    code = "import sys, safe_dtype.integrations.optimum; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- another Python ----------------------------------------------------------------------------------------------


def test_other_python_is_isolated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Packages that this process was told to look for are not seen there; the user's settings for pip are."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("PIP_TIMEOUT", "77")
    code = f"import os, sys; print({str(tmp_path)!r} in sys.path, os.environ['PIP_TIMEOUT'])"
    status = run_python(Path(sys.executable), "-c", code, log=tmp_path / "log", end=time.monotonic() + 30)
    assert (status, (tmp_path / "log").read_text().split()) == (0, ["False", "77"])


def test_other_python_is_stopped(tmp_path: Path) -> None:
    """At its time limit it is ended, and what it had said is kept."""
    code = "import time; print('begun', flush=True); time.sleep(60)"
    end = time.monotonic() + 2
    assert run_python(Path(sys.executable), "-c", code, log=tmp_path / "log", end=end) is None
    assert (tmp_path / "log").read_text() == "begun\n"


def test_all_outputs() -> None:
    """Outputs that optimum's table lacks are added, in the model's order; axes that it names stay so named."""

    class Config:
        outputs = {"last_hidden_state": {0: "batch_size"}}  # noqa: RUF012

    found = with_outputs(Config(), {"last_hidden_state": 3, "pooler_output": 2}).outputs
    assert list(found.items()) == [
        ("last_hidden_state", {0: "batch_size"}),
        ("pooler_output", {0: "pooler_output_0", 1: "pooler_output_1"}),
    ]
