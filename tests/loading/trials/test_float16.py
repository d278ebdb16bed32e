"""An order for float16 on a checkpoint that overflows there: rescued, or refused with the reason, never silently wrong."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import factories as f
import pytest
import torch
import transformers as tf
from engineered import engineered, prompts, saved
from safetensors.torch import load_file, save_file
from tiny_models import TINY
from torch import Tensor

from safe_dtype import SafeAutoModel, SafeAutoModelForCausalLM, SafeDtypeWarning, patched, plan_of, report
from safe_dtype.errors import NoSafeDtypeError
from safe_dtype.facts import FLOAT8_E4M3, HalfRange
from safe_dtype.loading import Request, plan_request, safe_auto_class
from safe_dtype.loading import load as load_as_planned
from safe_dtype.loading.trials.float16 import half_from_dict, half_to_dict
from safe_dtype.planning import Ground
from safe_dtype.rescaling import rescaled_of
from safe_dtype.store import cache_folder, remember

MEASURING = "measuring whether float16 holds"
SafeAutoModelForSequenceClassification = safe_auto_class("SafeAutoModelForSequenceClassification")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama saved in bfloat16 whose hidden states leave float16's range; it has no tokenizer."""
    return saved("llama", tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def truth() -> Tensor:
    """What it says in float32."""
    return logits(engineered("llama"))


def logits(model: Any) -> Tensor:
    """Return the logits of a prompt that makes it overflow, in float32."""
    with torch.inference_mode():
        found: Tensor = model(**prompts("llama", count=1, tokens=24, seed=3)[0]).logits
    return found.float()


def load(source: Path, **given: Any) -> Any:
    """Order float16."""
    return SafeAutoModelForCausalLM.from_pretrained(source, dtype="float16", **given)


def assert_rescued(model: Any, truth: Tensor) -> None:
    """Assert that `model` is in float16, rescaled, and right without the guard's help."""
    assert {one.dtype for one in model.parameters()} == {torch.float16}
    assert plan_of(model).rescale is not None
    torch.testing.assert_close(logits(model), truth, rtol=0, atol=0.05)
    assert report(model).events == ()


@pytest.fixture
def unmeasured(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache that knows the device and the architecture, and nothing of any checkpoint."""
    load(folder)
    cache = tmp_path / "cache"
    shutil.copytree(cache_folder(), cache)
    for file in cache.glob("*.json"):
        if "half" in json.loads(file.read_text()):
            file.unlink()
    monkeypatch.setenv("SAFE_DTYPE_CACHE", str(cache))
    return cache


def measured(caplog: pytest.LogCaptureFixture) -> int:
    """Return how many measurements were announced."""
    return sum(MEASURING in one.message for one in caplog.records)


def test_order_is_obeyed(folder: Path, truth: Tensor) -> None:
    """Plain float16 is of no use for this checkpoint; the order gives a rescaled model that says what it should."""
    plain = tf.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float16)
    assert not torch.isfinite(logits(plain)).all()
    assert_rescued(load(folder), truth)


def test_float8_files(folder: Path, tmp_path: Path) -> None:
    """Nothing computes in float8: such files are read as float32, and the rescale is folded into that."""
    files = shutil.copytree(folder, tmp_path / "float8")
    weights = load_file(files / "model.safetensors")
    save_file({name: one.to(torch.float8_e4m3fn) for name, one in weights.items()}, files / "model.safetensors")
    rounded = tf.AutoModelForCausalLM.from_pretrained(files, dtype=torch.float32)
    plan = replace(plan_of(load(folder)), saved=FLOAT8_E4M3)
    assert_rescued(load_as_planned(tf.AutoModelForCausalLM, Request(files, {}), plan), logits(rounded))


def test_plan_says_so(folder: Path) -> None:
    """The plan prints and writes what was done to the model, and what that does to its results."""
    plan = plan_of(load(folder))
    text = " ".join(plan.explain(width=400).split())
    assert "rescaled exactly: residual 2^-" in text
    assert "nats to float32" in text
    written = json.loads(plan.to_json())
    assert written["storage"] == "float16"
    assert written["rescale"] == plan.rescale.to_dict()
    assert written["rescale"]["shifts"][0]["bits"] > 0
    assert "rescaled exactly: residual 2^-" in str(report(load(folder)))


@pytest.mark.usefixtures("unmeasured")
def test_measured_once(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The second load takes what the first one found, and is the same model."""
    caplog.clear()
    first = load(folder)
    assert measured(caplog) == 1
    assert f"{folder}: measured in float16: rescaled exactly: " in caplog.text
    second = load(folder)
    assert measured(caplog) == 1
    assert plan_of(first) == plan_of(second)
    assert all(torch.equal(one, second.get_parameter(name)) for name, one in first.named_parameters())


@pytest.mark.slow
def test_other_kernels_are_measured_on_their_own(
    folder: Path, truth: Tensor, caplog: pytest.LogCaptureFixture
) -> None:
    """What overflows may depend on the attention, so that each implementation is looked at."""
    load(folder)
    before = measured(caplog)
    model = load(folder, attn_implementation="eager")
    assert measured(caplog) == before + 1
    assert model.config._attn_implementation == "eager"
    assert_rescued(model, truth)


@pytest.mark.parametrize(
    "given",
    [
        pytest.param({"device_map": {"": "cpu"}}, id="placed"),
        pytest.param({"device_map": "cpu"}, id="placed-by-name"),
        pytest.param({"low_cpu_mem_usage": True}, id="meta-first"),
        pytest.param({"policy": "auto,prefer=memory"}, id="for-memory"),
    ],
)
def test_ways_to_load(folder: Path, truth: Tensor, given: dict[str, Any]) -> None:
    """Other arguments of the call are no obstacle."""
    assert_rescued(load(folder, **given), truth)


def test_loading_info(folder: Path, truth: Tensor) -> None:
    """With `output_loading_info=True` the pair comes back, the model in it rescued."""
    model, told = load(folder, output_loading_info=True)
    assert "missing_keys" in told
    assert_rescued(model, truth)


@pytest.mark.slow
def test_sharded(tmp_path: Path, truth: Tensor) -> None:
    """A checkpoint in shards is measured and rescued like one in a single file."""
    source = saved("llama", tmp_path, max_shard_size="300KB")
    assert (source / "model.safetensors.index.json").is_file()
    assert_rescued(load(source), truth)


def test_saved_in_float32(tmp_path: Path, truth: Tensor) -> None:
    """A checkpoint in float32 is measured in float16's stead as well, and loses nothing but bits."""
    assert_rescued(load(saved("llama", tmp_path, dtype=torch.float32)), truth)


@pytest.mark.usefixtures("unmeasured")
def test_inference_mode(folder: Path, truth: Tensor) -> None:
    """A caller in inference mode gets the same, also where it has to be measured first."""
    with torch.inference_mode():
        model = load(folder)
    assert_rescued(model, truth)


def test_model_without_its_head(folder: Path) -> None:
    """`AutoModel` of a checkpoint with a head is rescued by what was found with the head."""
    with patched():
        model = tf.AutoModel.from_pretrained(folder, dtype=torch.float16)
    full = engineered("llama").model
    batch = prompts("llama", count=1, tokens=24, seed=3)[0]
    with torch.inference_mode():
        found, expected = (one(**batch, output_hidden_states=True) for one in (model, full))
    assert plan_of(model).rescale is not None
    assert report(model).events == ()
    torch.testing.assert_close(found.last_hidden_state.float(), expected.last_hidden_state, rtol=0, atol=0.05)
    largest = max(float(one.abs().max()) for one in found.hidden_states)
    assert largest > 65504
    assert largest == pytest.approx(max(float(one.abs().max()) for one in expected.hidden_states), rel=0.01)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*newly initialized")
def test_head_that_the_checkpoint_lacks(tmp_path: Path) -> None:
    """A class with a head gets one that is new, and is rescued by what was found without."""
    engineered("llama").model.bfloat16().save_pretrained(tmp_path)
    model = load(tmp_path)
    assert type(model).__name__ == "LlamaForCausalLM"
    assert model.dtype == torch.float16
    assert rescaled_of(model) is not None
    assert torch.isfinite(logits(model)).all()
    assert report(model).events == ()


@pytest.mark.slow
def test_another_head(folder: Path) -> None:
    """A classifier made of it is rescued as well, also without a padding token."""
    config = tf.AutoConfig.from_pretrained(folder)
    config.pad_token_id = None
    source = folder.parent / "no-pad"
    shutil.copytree(folder, source, dirs_exist_ok=True)
    config.save_pretrained(source)
    model = SafeAutoModelForSequenceClassification.from_pretrained(source, dtype="float16")
    assert model.dtype == torch.float16
    assert rescaled_of(model) is not None
    assert torch.isfinite(logits(model)).all()
    assert report(model).events == ()


def test_with_its_own_config(folder: Path, truth: Tensor) -> None:
    """A config that was read from the checkpoint itself, and handed over, changes nothing."""
    assert_rescued(load(folder, config=tf.AutoConfig.from_pretrained(folder)), truth)


def test_with_another_config(folder: Path, truth: Tensor) -> None:
    """With a changed config the checkpoint cannot be loaded by name: a warning, and the guard stands by."""
    config = tf.AutoConfig.from_pretrained(folder)
    config.rms_norm_eps = 2e-6
    with pytest.warns(SafeDtypeWarning, match="did not look at its activations"):
        model = load(folder, config=config)
    assert (plan_of(model).rescale, rescaled_of(model)) == (None, None)
    torch.testing.assert_close(logits(model), truth, rtol=0, atol=0.05)
    assert [event.remedy for event in report(model).events] == ["an exact rescaling"]


@pytest.mark.parametrize(
    "loads",
    [
        pytest.param(lambda source, dtype: tf.AutoModelForCausalLM.from_pretrained(source, dtype=dtype), id="auto"),
        pytest.param(lambda source, dtype: tf.LlamaForCausalLM.from_pretrained(source, dtype=dtype), id="class"),
        pytest.param(lambda source, dtype: tf.LlamaForCausalLM.from_pretrained(source, torch_dtype=dtype), id="old"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*torch_dtype")
def test_patched(folder: Path, truth: Tensor, loads: Callable[[Path, torch.dtype], Any]) -> None:
    """A program written for plain transformers, with float16 in it, is rescued where it is patched."""
    with patched():
        assert_rescued(loads(folder, torch.float16), truth)


def test_patched_with_other_kernels(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The attention that an Auto class writes into the config is the one that is measured."""
    with patched():
        tf.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float16, attn_implementation="eager")
    load(folder, attn_implementation="eager")
    assert measured(caplog) <= 1


def test_strict(folder: Path) -> None:
    """In strict mode nothing is measured nor rescaled: the model comes as plain transformers loads it."""
    with pytest.warns(SafeDtypeWarning, match="did not look"):
        model = load(folder, policy="strict")
    plain = tf.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float16)
    assert (plan_of(model).rescale, plan_of(model).islands, rescaled_of(model)) == (None, (), None)
    assert all(torch.equal(one, model.get_parameter(name)) for name, one in plain.named_parameters())


@pytest.mark.parametrize("family", ["qwen3", "bert"])
def test_nothing_is_needed(family: str, tmp_path: Path) -> None:
    """A checkpoint that fits into float16 is loaded as it is, without a rescale or islands."""
    source = TINY[family].save(tmp_path, torch.bfloat16)
    model = SafeAutoModel.from_pretrained(source, dtype="float16")
    plan = plan_of(model)
    assert (plan.rescale, plan.islands, rescaled_of(model)) == (None, (), None)
    assert plan.chosen.accepted
    assert "activations reach" in plan.chosen.reason
    plain = getattr(tf, TINY[family].auto_name).from_pretrained(source, dtype=torch.float16)
    assert all(torch.equal(one, model.get_parameter(name)) for name, one in plain.named_parameters())


def test_rescue_that_drifts_too_far(folder: Path, truth: Tensor) -> None:
    """Further from float32 than the policy allows: rejected with the figure; an order is obeyed, rescaled, and told."""
    with pytest.warns(SafeDtypeWarning, match="further off"):
        model = load(folder, policy="auto,max_drift=1e-9")
    plan = plan_of(model)
    assert plan.rescale is not None
    decision = next(one for one in plan.decisions if str(one.candidate) == "float16")
    assert decision.ground is Ground.DRIFT
    assert "the limit is 1e-09" in decision.reason


@pytest.mark.usefixtures("unmeasured")
def test_nothing_else_on_the_ladder(folder: Path, truth: Tensor, caplog: pytest.LogCaptureFixture) -> None:
    """Where float16 alone is on the ladder it is measured before it is refused; a plan expects that, and runs nothing."""
    caplog.clear()
    request, policy = Request(folder, {}), "ladder=fp16"
    assert plan_request(request, policy).chosen.pending
    with pytest.raises(NoSafeDtypeError, match="did not look at its activations"):
        plan_request(request, policy, drifts="never")
    assert measured(caplog) == 0
    assert_rescued(SafeAutoModelForCausalLM.from_pretrained(folder, policy=policy), truth)
    assert measured(caplog) == 1
    assert not plan_request(request, policy).chosen.pending
    with pytest.raises(NoSafeDtypeError, match="the limit is 1e-09"):
        SafeAutoModelForCausalLM.from_pretrained(folder, policy=f"{policy},max_drift=1e-9")


def broken(values: Any) -> Any:
    """Return a remembered range with an eps left out of its gauges."""
    for shift in values["rescale"]["shifts"]:
        shift["moves"] = [move for move in shift["moves"] if move["part"] != "number"]
    return values


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        pytest.param(broken, "the results differ by", id="eps-left-out"),
        pytest.param(lambda values: {**values, "islands": ["model.nowhere"]}, "no module model.nowhere", id="island"),
    ],
)
def test_remembered_and_wrong(folder: Path, truth: Tensor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
                              edit: Callable[[Any], Any], said: str) -> None:  # fmt: skip
    """What is remembered is proven on the model itself: where it does not hold, that comes in float32, with a warning."""
    shutil.copytree(cache_folder(), tmp_path, dirs_exist_ok=True)
    monkeypatch.setenv("SAFE_DTYPE_CACHE", str(tmp_path))
    load(folder)
    entries = [json.loads(file.read_text()) for file in tmp_path.glob("*.json")]
    ranges = [entry for entry in entries if entry.get("half") and entry["half"]["rescale"]]
    assert ranges
    for entry in ranges:  # written as a whole: a file that was edited is measured anew
        remember(entry["key"], {"half": edit(entry["half"])})
    with pytest.warns(
        SafeDtypeWarning, match=f"cannot be rescaled: .*{said}.*It is in float32 now. Next: dtype='bfloat16'"
    ):
        model = load(folder)
    assert {one.dtype for one in model.parameters()} == {torch.float32}
    assert plan_of(model).storage.name == "float32"
    assert torch.equal(logits(model), truth)


def test_offloaded(folder: Path, truth: Tensor, tmp_path: Path) -> None:
    """Offloaded weights are not rescaled: the model comes in float32, with the reason."""
    places = {f"model.layers.{place}": "disk" if place == 2 else "cpu" for place in range(4)}
    places |= dict.fromkeys(("model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head"), "cpu")
    with pytest.warns(SafeDtypeWarning, match=r"offloaded.*It is in float32 now"):
        model = load(folder, device_map=places, offload_folder=tmp_path)
    torch.testing.assert_close(logits(model), truth, rtol=0, atol=1e-3)
    assert report(model).events == ()


@pytest.mark.parametrize(
    ("family", "said"),
    [
        ("whisper", "reads input_features, not text"),
        ("segformer", "reads pixel_values, not text"),
        ("choices", "cannot be run on a text"),
    ],
)
def test_what_cannot_be_measured(family: str, said: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What reads no plain text comes in float16, as ordered, with a warning that says why nobody knows what it does."""
    if family == "choices":  # of several texts at once
        sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
        tf.BertForMultipleChoice(tf.BertConfig(**sizes, vocab_size=96)).save_pretrained(tmp_path)
    else:
        TINY[family].save(tmp_path, torch.bfloat16)
    with pytest.warns(SafeDtypeWarning, match=said):
        model = SafeAutoModel.from_pretrained(tmp_path, dtype="float16")
    assert model.dtype == torch.float16
    assert ("loading takes longer" in caplog.text) is (
        family == "choices"
    )  # nothing is loaded to be measured on a text


def test_written_and_read() -> None:
    """What is remembered is what was measured, rescale, islands and drift."""
    half = f.rescued()
    assert half_from_dict(json.loads(json.dumps(half_to_dict(half)))) == half
    unknown = f.rescued(drift=None, problem="no")
    assert half_from_dict(json.loads(json.dumps(half_to_dict(unknown)))) == unknown


def test_drift_of_each_position_is_kept() -> None:
    """With what is not a number as infinity; a file of an earlier version has none, and is read all the same."""
    half = HalfRange(1.0, 1.0, kl=(1e-5, math.inf, 0.0))
    values = json.loads(json.dumps(half_to_dict(half), allow_nan=False))
    assert half_from_dict(values).kl == half.kl
    del values["kl"]
    assert half_from_dict(values).kl == ()
