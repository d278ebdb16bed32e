"""A step down brings back the bits that weights lost on loading, and never loses what was written into them since."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from engineered import KINDS, saved
from rescaling.folding.rounded import BF16, DOWN, FP16, FP32, IDS, load, reference, step_down, weights
from safetensors.torch import load_file, save_file
from tiny_models import TINY

from safe_dtype import BFLOAT16, FLOAT16, SafeAutoModel, SafeAutoModelForCausalLM, report
from safe_dtype.rescaling import Fold, rescaled_of
from safe_dtype.testing import fault

pytestmark = pytest.mark.filterwarnings("ignore:bfloat16 was asked for", "ignore:float16 was asked for")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint in float32, in three shards, its head tied to its embedding."""
    made = TINY["qwen3"].save(tmp_path / "model", FP32, max_shard_size="14KB")
    assert len(list(made.glob("*.safetensors"))) >= 3
    return made


def test_all_bits_are_back(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Where nobody wrote anything every weight is that of its file, in ties too, and nothing is told."""
    model = load(folder)
    step_down(model)
    for name, wanted in reference(folder).items():
        assert torch.equal(model.get_parameter(name), wanted), name
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert "cast as they are" not in caplog.text


def test_a_merged_adapter(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What PEFT merges, through `.data`, stays; the other weights are read again."""
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(target_modules=["q_proj"], r=2, init_lora_weights=False, task_type="CAUSAL_LM")
    model = peft.get_peft_model(load(folder), config).merge_and_unload()
    merged, wanted = weights(model), reference(folder)
    step_down(model)
    for name, now in model.named_parameters():
        assert torch.equal(now, merged[name] if "q_proj" in name else wanted[name]), name
    assert "2 rounded weights have changed since they were loaded" in caplog.text
    assert "model.layers.0.self_attn.q_proj.weight" in caplog.text


def test_an_adapter_in_force(folder: Path) -> None:
    """Under an adapter the weights of the base are read again, and the adapter's are cast."""
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(target_modules=["q_proj"], r=2, init_lora_weights=False, task_type="CAUSAL_LM")
    model = peft.get_peft_model(load(folder), config)
    before, wanted = weights(model), reference(folder)
    with fault(model.base_model.model, DOWN, "cublas"):
        model.generate(input_ids=IDS, max_new_tokens=2)
    for name, now in model.named_parameters():
        plain = name.removeprefix("base_model.model.").replace(".base_layer", "")
        assert torch.equal(now, before[name] if "lora" in name else wanted[plain]), name


def write_row(model: Any) -> None:
    """Write one row behind autograd's back."""
    model.lm_head.weight.data[5] = 0.25


def fill(model: Any) -> None:
    """Fill a norm through `.data`."""
    model.model.norm.weight.data.fill_(3.0)


def average(model: Any) -> None:
    """Swap in an average of the weights, as EMA does."""
    for one in model.parameters():
        one.data = (one.data.float() * 0.9).to(one.dtype)


def step_of_an_optimizer(model: Any) -> None:
    """Write as a custom optimizer does, under no_grad."""
    with torch.no_grad():
        for one in model.parameters():
            one.sub_(torch.full_like(one, 0.01))


def replace(model: Any) -> None:
    """Set another parameter."""
    model.model.layers[0].mlp.up_proj.weight = torch.nn.Parameter(torch.ones(64, 32, dtype=BF16))


def to_zero(model: Any) -> None:
    """Write 0.0 where -0.0 was."""
    model.model.norm.weight.data[0] = 0.0


@pytest.mark.parametrize("write", [write_row, fill, average, step_of_an_optimizer, replace, to_zero])
def test_what_was_written_is_kept(write: Callable[[Any], None], folder: Path) -> None:
    """A parameter with one bit that is not of its file is cast whole as it is; all others are read again."""
    wanted = reference(folder)
    model = load(folder)
    before = {name: one.detach().clone() for name, one in model.named_parameters()}
    write(model)
    written = {name: one.detach().clone() for name, one in model.named_parameters()}
    step_down(model)
    for name, now in model.named_parameters():
        is_changed = not torch.equal(written[name].view(torch.int16), before[name].view(torch.int16))
        assert torch.equal(now, written[name].float() if is_changed else wanted[name]), name


def test_a_copy_has_its_own_weights(folder: Path) -> None:
    """A deep copy is read again as well, but for what was written into it alone."""
    model = load(folder)
    copied = copy.deepcopy(model)
    fill(copied)
    step_down(copied)
    step_down(model)
    wanted = reference(folder)
    assert torch.equal(copied.model.norm.weight, torch.full((32,), 3.0))
    assert torch.equal(copied.lm_head.weight, wanted["model.embed_tokens.weight"])
    assert torch.equal(model.model.norm.weight, wanted["model.norm.weight"])


def test_a_way_over_float16(folder: Path) -> None:
    """From bfloat16 over float16 to float32: the bits of the files are back at the end."""
    model = SafeAutoModelForCausalLM.from_pretrained(folder, dtype=BF16, policy="ladder=bf16>fp16>fp32")
    for dtype in (BFLOAT16, FLOAT16):
        with fault(model, DOWN, "cublas", dtype=dtype):
            model(IDS)
    assert model.dtype == FP32
    for name, wanted in reference(folder).items():
        assert torch.equal(model.get_parameter(name), wanted), name


def test_what_a_rescale_has_moved(tmp_path: Path) -> None:
    """Weights that a rescale scales down come back from their files, scaled in float32; what was written stays."""
    made = saved("qwen3", tmp_path)
    model = load(made, FP16)
    rescaled = rescaled_of(model)
    assert rescaled is not None
    moved = set(rescaled.fold.moved())
    changed = next(name for name in moved if name.endswith("down_proj.weight"))
    model.get_parameter(changed).data[0, 1] += 1.0  # which is too little for the watch to see
    written = weights(model)
    wanted = transformers.AutoModelForCausalLM.from_pretrained(made, dtype=FP32)
    Fold(wanted).move_to(rescaled.rescale)
    step_down(model, FLOAT16)
    assert len(moved) > 1
    for name, now in model.named_parameters():
        assert torch.equal(now, written[name] if name == changed else wanted.get_parameter(name)), name


@pytest.mark.parametrize("has_files", [True, False])
def test_after_a_rescale_was_raised(has_files: bool, tmp_path: Path) -> None:
    """A weight that was moved again in float16 comes back from its file; without the file, with the bits kept of it."""
    made = saved("qwen3", tmp_path)
    model = load(made, FP16)
    rescaled = rescaled_of(model)
    assert rescaled is not None
    in_float16, before = weights(model), rescaled.fold.moved()
    rescaled.raise_bits(1)
    of_files: Any = transformers.AutoModelForCausalLM.from_pretrained(made, dtype=FP32)
    Fold(of_files).move_to(rescaled.rescale)
    if not has_files:
        next(made.glob("*.safetensors")).unlink()
    raised = {name for name, exponents in rescaled.fold.moved().items() if exponents != before.get(name)}
    assert raised
    step_down(model, FLOAT16)
    for name, now in model.named_parameters():
        is_whole = has_files or name in raised  # the raise has read its file
        assert torch.equal(now, of_files.get_parameter(name) if is_whole else in_float16[name].float()), name


def test_experts_joined_on_loading(tmp_path: Path) -> None:
    """What transformers makes one tensor of several is made so again."""
    folder = TINY["mixtral"].save(tmp_path, FP32)
    wanted = reference(folder)
    model = load(folder)
    with fault(model, "model.layers.1.self_attn.q_proj", "cublas"):
        model(IDS)
    assert model.dtype == FP32
    for name, now in model.named_parameters():
        assert torch.equal(now, wanted[name]), name


@pytest.mark.filterwarnings("ignore:You are calling .generate.. with the `input_ids` being on:UserWarning")  # 5.16
def test_offloaded_to_main_memory(folder: Path) -> None:
    """Weights that hooks keep in main memory are read again there, but for those that were changed."""
    from accelerate import cpu_offload

    wanted = reference(folder)
    model = load(folder)
    fill(model)
    cpu_offload(model, execution_device=torch.device("cpu"))
    with fault(model, DOWN, "cublas"):
        model.generate(IDS, max_new_tokens=2)
    stored = model.lm_head._hf_hook.weights_map.dataset
    for name, tensor in wanted.items():
        assert torch.equal(stored[name], torch.full((32,), 3.0) if name == "model.norm.weight" else tensor), name


@pytest.mark.parametrize(("family", "count"), [("qwen3", 0), ("mixtral", 2)])
def test_offloaded_to_disk(family: str, count: int, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What is read from the files has its bits back; what was written anew on loading is cast, and that is told."""
    made = TINY[family].save(tmp_path / "model", FP32)
    inner = dict.fromkeys(("model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head", "model.layers.0"), "cpu")
    model = SafeAutoModelForCausalLM.from_pretrained(
        made, dtype=BF16, device_map={**inner, "model.layers.1": "disk"}, offload_folder=str(tmp_path / "offload")
    )
    with fault(model, "model.layers.1.self_attn.q_proj", "cublas"):
        now = model(IDS).logits
    assert ("rounded weights" in caplog.text) == bool(count)
    assert (f"{count} rounded weights were written anew on loading" in caplog.text) == bool(count)
    if not count:
        wanted: Any = transformers.AutoModelForCausalLM.from_pretrained(made, dtype=FP32)
        assert torch.equal(now, wanted(IDS).logits)


def test_an_adapter_and_its_base(folder: Path, tmp_path: Path) -> None:
    """Where an adapter is loaded by its name the weights are those of the files of its base."""
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(target_modules=["q_proj"], r=2, init_lora_weights=False, task_type="CAUSAL_LM")
    base = transformers.AutoModelForCausalLM.from_pretrained(folder)
    peft.get_peft_model(base, config).save_pretrained(tmp_path / "adapter")
    model = load(tmp_path / "adapter")
    before, wanted = weights(model), reference(folder)
    step_down(model)
    for name, now in model.named_parameters():
        assert torch.equal(now, before[name] if "lora" in name else wanted[name.replace(".base_layer", "")]), name


@pytest.mark.parametrize("is_mapped", [True, False])
def test_pickles(is_mapped: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """PyTorch's own files are read again; weights of its old format stay rounded, and the log says why."""
    made = TINY["qwen3"].save(tmp_path, FP32)
    torch.save(
        load_file(made / "model.safetensors"), made / "pytorch_model.bin", _use_new_zipfile_serialization=is_mapped
    )
    (made / "model.safetensors").unlink()
    wanted, model = reference(made), load(made)
    before = weights(model)
    step_down(model)
    for name, now in model.named_parameters():
        assert torch.equal(now, (wanted if is_mapped else before)[name]), name
    assert ("rounded weights cannot be read again (pytorch_model.bin is of an old format" in caplog.text) != is_mapped


def test_weights_that_were_passed(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A `state_dict` is not kept: what it was rounded to is cast, and the log says why."""
    plain = transformers.AutoModelForCausalLM.from_pretrained(folder)
    model: Any = SafeAutoModel.from_pretrained(None, config=plain.config, state_dict=plain.state_dict(), dtype=BF16)
    step_down(model)
    for name, now in model.named_parameters():
        assert torch.equal(now, plain.get_parameter(name).bfloat16().float()), name
    assert "rounded weights cannot be read again (its weights were passed as `state_dict`)" in caplog.text


def test_an_island(folder: Path) -> None:
    """A module that goes to float32 alone gets its bits back, and so does the rest when it follows."""
    wanted = reference(folder)
    model = SafeAutoModelForCausalLM.from_pretrained(folder, dtype=BF16, policy="islands")
    with fault(model, DOWN, "cublas"):
        model.generate(IDS, max_new_tokens=2)
    assert (model.dtype, report(model).islands) == (BF16, (DOWN,))
    assert torch.equal(model.get_parameter(f"{DOWN}.weight"), wanted[f"{DOWN}.weight"])
    with fault(model, DOWN.replace("down", "up"), "nan", dtype=BFLOAT16):
        model(IDS)
    if model.dtype == BF16:  # that one is an island as well
        assert len(report(model).islands) == 2
    for name in report(model).islands:
        assert torch.equal(model.get_parameter(f"{name}.weight"), wanted[f"{name}.weight"]), name


@pytest.mark.parametrize(
    ("family", "kind"), [("gemma2", "norm"), pytest.param("t5", "wo.weight", marks=pytest.mark.slow)]
)
def test_float32_in_a_rescued_model(family: str, kind: str, tmp_path: Path) -> None:
    """In files that mix formats, what a rescued model has in float32 is that of the files, moved or not."""
    made = saved(family, tmp_path)
    file = next(made.glob("*.safetensors"))
    tensors = load_file(file)
    torch.manual_seed(0)
    wide = {name: one.float() * (1 + 1e-4 * torch.rand(one.shape)) for name, one in tensors.items() if kind in name}
    save_file(tensors | wide, file, metadata={"format": "pt"})
    kernels = KINDS[family].attn_implementation
    attention = {"attn_implementation": kernels} if kernels else {}
    model: Any = SafeAutoModel.from_pretrained(made, dtype=FP16, **attention)
    rescaled = rescaled_of(model)
    wanted: Any = type(model).from_pretrained(made, dtype=FP32)
    if rescaled is not None:
        Fold(wanted).move_to(rescaled.rescale)
    in_float32 = [name for name, one in model.named_parameters() if one.dtype == FP32]
    assert in_float32
    for name in in_float32:
        assert torch.equal(model.get_parameter(name), wanted.get_parameter(name)), name
