"""A model changes its dtype in place, and everything that hangs on it follows."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tiny_models import TINY, tiny_gguf
from torch import nn
from torch.distributed.tensor import DTensor, Replicate, distribute_tensor

from safe_dtype import BFLOAT16, FLOAT16, FLOAT32, NoDtypeLeft, SafeAutoModel, guard, report
from safe_dtype.models.recast import growth, main_dtype, peak_growth, recast
from safe_dtype.testing import fault

IDS = torch.arange(3, 9)[None]


BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32


def tiny(name: str = "qwen3", dtype: torch.dtype = BF16) -> Any:
    """Return a seeded tiny model as `from_pretrained` would leave it: some buffers and parameters stay float32."""
    torch.manual_seed(0)
    model = TINY[name].make().eval()
    recast(model, {FP32}, dtype)
    return model


@pytest.mark.parametrize("changed_in", [torch.inference_mode, torch.no_grad])
@pytest.mark.parametrize("made_in", [torch.inference_mode, torch.no_grad])
def test_weights_made_in_inference_mode(made_in: Any, changed_in: Any) -> None:
    """Weights that are inference tensors change their dtype as others do, wherever that happens, and multiply."""
    with made_in():
        model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).to(BF16).eval()
    with changed_in():
        recast(model, {BF16}, FP32)
    for run_in in (torch.inference_mode, torch.no_grad):
        with run_in():
            assert model(torch.ones(2, 4)).dtype is FP32


def dtypes_by_name(model: nn.Module) -> dict[str, torch.dtype]:
    """Return the dtype of every parameter and buffer."""
    return {name: one.dtype for name, one in (*model.named_parameters(), *model.named_buffers())}


@pytest.fixture
def saved(tmp_path: Path) -> Callable[..., Path]:
    """Save tiny models."""
    return lambda name, dtype, **options: TINY[name].save(tmp_path / name, dtype, **options)


@pytest.mark.parametrize("name", sorted(TINY))
@pytest.mark.parametrize("new", [FP32, FP16], ids=str)
def test_as_if_loaded(name: str, new: torch.dtype, saved: Callable[..., Path]) -> None:
    """A bfloat16 model that is recast equals, tensor by tensor, one loaded in the new dtype from the same file."""
    folder = saved(name, BF16)
    auto = getattr(transformers, TINY[name].auto_name)
    model, wanted = auto.from_pretrained(folder, dtype=BF16), auto.from_pretrained(folder, dtype=new)
    recast(model, {BF16}, new)
    assert dtypes_by_name(model) == dtypes_by_name(wanted)
    for (label, mine), theirs in zip(model.state_dict().items(), wanted.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs), label
    assert model.config.dtype == new


def test_ties_and_identity() -> None:
    """Parameters stay the same objects, so tied weights stay tied and an optimizer keeps its own."""
    model = tiny()
    before = dict(model.named_parameters())
    recast(model, {BF16}, FP32)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert all(after is before[name] for name, after in model.named_parameters())


def test_float32_buffers_stay() -> None:
    """The rotary frequencies, float32 in a bfloat16 model, keep every bit through float16 and back."""
    model = tiny()
    model.model.rotary_emb.inv_freq = model.model.rotary_emb.inv_freq.float() + 1e-5
    before = model.model.rotary_emb.inv_freq.clone()
    recast(model, {BF16}, FP16)
    recast(model, {FP16}, FP32)
    assert torch.equal(model.model.rotary_emb.inv_freq, before)


def test_lists_kept_in_float32(saved: Callable[..., Path]) -> None:
    """T5 keeps `wo` in float32 under float16, whatever the way into it; `model.half()` would lose that."""
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(saved("t5", BF16), dtype=BF16)
    recast(model, {BF16}, FP16)
    assert {one.dtype for name, one in model.named_parameters() if ".wo." in name} == {FP32}
    assert {one.dtype for name, one in model.named_parameters() if ".wo." not in name} == {FP16}


def test_configs_of_parts(saved: Callable[..., Path]) -> None:
    """Every config follows, those of the parts too."""
    model = transformers.AutoModelForImageTextToText.from_pretrained(saved("llava", BF16), dtype=BF16)
    recast(model, {BF16}, FP32)
    assert model.config.dtype == model.config.text_config.dtype == model.config.vision_config.dtype == FP32


def test_gradients_follow() -> None:
    """A gradient that is there is cast with its parameter, and training goes on."""
    model = tiny()
    model(input_ids=IDS, labels=IDS).loss.backward()
    recast(model, {BF16}, FP32)
    assert {one.grad.dtype for one in model.parameters() if one.grad is not None} == {FP32}
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    model(input_ids=IDS, labels=IDS).loss.backward()
    optimizer.step()


def test_inside_inference_mode() -> None:
    """Recast inside inference mode, the parameters are no inference tensors: they can be trained afterwards."""
    model = tiny()
    with torch.inference_mode():
        recast(model, {BF16}, FP32)
    model(input_ids=IDS, labels=IDS).loss.backward()


def test_autocast_forgets() -> None:
    """Inside autocast, whose cache holds casts of the old weights, the next product uses the new ones."""
    linear = nn.Linear(4, 4, bias=False).to(FP32)
    given = torch.randn(1, 4)
    with torch.autocast("cpu", BF16):
        linear(given)
        linear.weight.data *= 2
        recast(linear, {FP32}, BF16)
        assert torch.equal(linear(given), given.to(BF16) @ linear.weight.t())


@pytest.fixture
def mesh() -> Iterator[Any]:
    """Start a group of one process."""
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield torch.distributed.init_device_mesh("cpu", (1,))
    torch.distributed.destroy_process_group()


@pytest.mark.filterwarnings("ignore:DTensor random operators may not have complete support:UserWarning")  # torch 2.6
def test_distributed_tensors(mesh: Any) -> None:
    """A DTensor changes its local part as well, which `p.data =` would leave in the old dtype."""
    linear = nn.Linear(4, 4, bias=False).to(BF16)
    linear.weight = nn.Parameter(distribute_tensor(linear.weight.detach(), mesh, [Replicate()]))
    recast(linear, {BF16}, FP32)
    assert isinstance(linear.weight, DTensor)
    assert linear.weight.dtype == linear.weight.to_local().dtype == FP32


def test_growth_is_predicted() -> None:
    """The bytes predicted per device are those that the parameters and buffers then take more."""
    model = tiny()

    def size() -> int:
        return sum(one.numel() * one.itemsize for one in (*model.parameters(), *model.buffers()))

    before, predicted = size(), growth(model, {BF16}, FP32)
    (peak,) = peak_growth(model, {BF16}, FP32).values()
    done = recast(model, {BF16}, FP32)
    assert predicted == {torch.device("cpu"): size() - before}
    largest = max(weight.numel() for weight in model.parameters())
    assert size() - before <= peak <= size() - before + largest * 5
    assert done.grown_bytes == size() - before


@pytest.mark.filterwarnings("ignore:bfloat16 was asked for")
def test_read_again_where_bits_were_lost(tmp_path: Path, saved: Callable[..., Path]) -> None:
    """A float32 checkpoint held in bfloat16 gets its lost bits back from the files."""
    folder = saved("qwen3", FP32)
    model = SafeAutoModel.from_pretrained(folder, dtype=BF16)
    with fault(model, "model.layers.0.mlp.down_proj", "cublas"):
        model.generate(IDS, max_new_tokens=2)
    wanted = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=FP32)
    for name, mine in model.state_dict().items():
        assert torch.equal(mine, wanted.state_dict()[name]), name
    assert model.lm_head.weight is model.model.embed_tokens.weight


@pytest.mark.filterwarnings("ignore:bfloat16 was asked for")
def test_changed_weights_are_not_read_again(saved: Callable[..., Path]) -> None:
    """What the user wrote into the weights after loading is kept."""
    model = SafeAutoModel.from_pretrained(saved("qwen3", FP32), dtype=BF16)
    with torch.no_grad():
        model.model.norm.weight.fill_(3.0)
    with fault(model, "model.layers.0.mlp.down_proj", "cublas"):
        model.generate(IDS, max_new_tokens=2)
    assert model.dtype == FP32
    assert torch.equal(model.model.norm.weight, torch.full((32,), 3.0))


@pytest.mark.filterwarnings("ignore:bfloat16 was asked for")
def test_files_that_are_gone(saved: Callable[..., Path], caplog: pytest.LogCaptureFixture) -> None:
    """Where the files are gone the rounded weights are cast, the log says so, and the model goes on."""
    folder = saved("qwen3", FP32)
    model = SafeAutoModel.from_pretrained(folder, dtype=BF16)
    for file in folder.iterdir():
        file.unlink()
    caplog.set_level("INFO")
    with fault(model, "model.layers.0.mlp.down_proj", "cublas"):
        model.generate(IDS, max_new_tokens=2)
    assert model.dtype == FP32
    assert "cannot be read again" in caplog.text


def test_weights_beyond_float16() -> None:
    """A weight that float16 cannot hold keeps the model out of it; the next dtype of the ladder is taken."""
    model = guard(tiny(), policy="ladder=bf16>fp16>fp32")
    with torch.no_grad():
        model.model.layers[0].mlp.gate_proj.weight[0, 0] = 1e5
    with fault(model, "model.layers.1.mlp.down_proj", "cublas"):
        model(input_ids=IDS)
    assert [event.after for event in report(model).events] == [FLOAT32]


def test_not_enough_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without room for the growth nothing is changed, and the error names both numbers of bytes."""
    from safe_dtype.facts import MemoryFacts

    model = guard(tiny())
    monkeypatch.setattr("safe_dtype.devices.memory.memory_of", lambda device: MemoryFacts(2000, 1000, "the test"))
    with fault(model, "model.layers.1.mlp.down_proj", "cublas"), pytest.raises(NoDtypeLeft, match="1,000 are free"):
        model(input_ids=IDS)
    assert main_dtype(model) == BF16
    assert report(model).events == ()
    model(input_ids=IDS)


def test_user_casts_afterwards() -> None:
    """A model that the user casts by hand after the guard stepped in is judged in the dtype it is in."""
    model = guard(tiny())
    with fault(model, "model.layers.0.mlp.down_proj", "cublas"):
        model(input_ids=IDS)
    model.half()
    with fault(model, "model.layers.0.mlp.down_proj", "nan", dtype=FLOAT16):
        assert model(input_ids=IDS).logits.dtype == FP32
    assert [(event.before, event.after) for event in report(model).events] == [(BFLOAT16, FLOAT32), (FLOAT16, FLOAT32)]


def test_saved_model_loads_anywhere(tmp_path: Path) -> None:
    """After a step down the model saves and loads as any other."""
    model = guard(tiny())
    with fault(model, "model.layers.0.mlp.down_proj", "cublas"):
        model(input_ids=IDS)
    model.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    assert {one.dtype for one in stored.values()} == {FP32}
    save_file(stored, tmp_path / "again.safetensors")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(again(input_ids=IDS).logits, model(input_ids=IDS).logits)


@pytest.mark.filterwarnings("ignore:Calling register_constant")
def test_quantized_by_torchao(saved: Callable[..., Path]) -> None:
    """Codes stay codes, what lies beside them changes, and generation goes on."""
    # Not among the test requirements: where it is installed transformers imports it, at the price of seconds.
    pytest.importorskip("torchao")
    from torchao.quantization import Int8WeightOnlyConfig

    model = guard(
        transformers.AutoModelForCausalLM.from_pretrained(
            saved("qwen3", BF16),
            dtype=BF16,
            quantization_config=transformers.TorchAoConfig(Int8WeightOnlyConfig()),
        )
    )
    codes = model.model.layers[1].mlp.down_proj.weight
    assert type(codes) is not nn.Parameter
    with fault(model, "model.layers.1.input_layernorm", "cublas", call=2) as put:
        model.generate(IDS, max_new_tokens=5)
    assert put.fired
    assert [event.after for event in report(model).events] == [FLOAT32]
    assert torch.equal(model.model.layers[1].mlp.down_proj.weight.qdata, codes.qdata)
    assert {one.dtype for one in model.parameters() if type(one) is nn.Parameter} == {FP32}


def test_quantizers_with_kernels_of_their_own() -> None:
    """A quantizer whose kernels fix the dtype beside the codes is refused by name, before anything is changed."""
    from transformers.quantizers.quantizer_awq import AwqQuantizer

    model = tiny()
    model.hf_quantizer = AwqQuantizer(transformers.AwqConfig(bits=4))
    model.model.layers[1].mlp.register_buffer("qweight", torch.zeros(4, 4, dtype=torch.int32))
    guard(model)
    with (
        fault(model, "model.layers.1.mlp.down_proj", "cublas"),
        pytest.raises(NoDtypeLeft, match="quantized with awq"),
    ):
        model.generate(IDS, max_new_tokens=2)
    assert main_dtype(model) == BF16
    assert report(model).events == ()


@pytest.mark.needs("gguf_loader")
def test_dequantized_steps_down(tmp_path: Path) -> None:
    """A quantizer that left dense weights is no reason to stop: the live modules are what is judged."""
    tiny_gguf(tmp_path / "model.gguf")
    model = guard(
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf", dtype=BF16).eval()
    )
    assert model.hf_quantizer is not None
    with fault(model, "model.layers.0.mlp.down_proj", "cublas") as put:
        model.generate(IDS, max_new_tokens=2)
    assert put.fired
    assert [event.after for event in report(model).events] == [FLOAT32]
    assert {one.dtype for one in model.parameters()} == {FP32}


PEAK = """
import re, torch, sys
from safe_dtype.models.recast import recast
from transformers import Qwen3Config, Qwen3ForCausalLM

def status(name):
    return 1024 * int(re.search(name + r":\\s+(\\d+)", open("/proc/self/status").read())[1])

torch.set_default_dtype(torch.bfloat16)
with torch.device("meta"):  # numbers that nobody looks at need no drawing, only pages
    model = Qwen3ForCausalLM(Qwen3Config(
        vocab_size=16000, hidden_size=512, intermediate_size=2048, num_hidden_layers=12, num_attention_heads=8,
        num_key_value_heads=8, head_dim=64, tie_word_embeddings=True))
torch.set_default_dtype(torch.float32)
model.to_empty(device="cpu")
model.tie_weights()
for one in model.parameters():
    one.data.fill_(0.5)
recast(torch.nn.Linear(64, 64, dtype=torch.bfloat16), {torch.bfloat16}, torch.float32)
open("/proc/self/clear_refs", "w").write("5")
before = status("VmRSS")
done = recast(model, {torch.bfloat16}, torch.float32)
largest = max(4 * one.numel() for one in model.parameters())
print(status("VmHWM") - before, done.grown_bytes, largest)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux to count the peak")
def test_peak_memory() -> None:
    """The peak of a recast is at most what the weights grow by, and the largest tensor."""
    done = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, check=True)
    peak, grown, largest = map(int, done.stdout.split())
    assert grown > 100e6
    assert peak <= 1.02 * grown + largest
