"""A model multiplies by codes, with the results and the bytes that were planned."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import accelerate
import peft
import pytest
import torch
import transformers as tf
from numerics.laid_out import IDS, MARKS, MODELS, load, logits, near, save
from torch import nn

from safe_dtype.checkpoints import read_checkpoint
from safe_dtype.facts import BFLOAT16, CODES, FLOAT32, INT4, INT8, Dtype
from safe_dtype.models.block_layout import blocks_of, codes_of, lay_out_in_codes
from safe_dtype.models.recast import growth, peak_growth
from safe_dtype.planning import Candidate
from safe_dtype.planning.predict import saved_by_codes, weight_bytes

pytestmark = MARKS

BF16, FP32 = torch.bfloat16, torch.float32


def each(*names: str) -> pytest.MarkDecorator:
    """Parametrize by model and codes; in 4 bits the first model stands for all, and the others are slow."""
    cases = [
        pytest.param(
            name, codes, id=f"{name}-{codes}", marks=[pytest.mark.slow] * (codes == INT4 and name != names[0])
        )
        for name in names
        for codes in CODES
    ]
    return pytest.mark.parametrize(("name", "codes"), cases)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a tied Qwen3 is saved."""
    return save("qwen3-tied", tmp_path_factory.mktemp("qwen3"))


@pytest.fixture
def model(folder: Path) -> Any:
    """The same one, by codes."""
    model = load(folder)
    assert lay_out_in_codes(model, INT8).modules == 15
    return model


def first(model: Any) -> nn.Linear:
    """Return one linear module."""
    return model.model.layers[0].mlp.up_proj


def coded(model: nn.Module) -> int:
    """Return how many modules multiply by codes."""
    return sum(codes_of(one) is not None for one in model.modules())


def rounded(model: Any) -> Any:
    """Return a plain copy of a model whose weights are what its codes stand for, in float32."""
    copied = copy.deepcopy(model).float()
    for name, module in model.named_modules():
        codes = codes_of(module)
        if codes is not None:
            copied.get_submodule(name).weight = nn.Parameter(codes.weight())  # the embedding keeps its own
    return copied


def stored_bytes(model: nn.Module) -> int:
    """Return the bytes of all codes, scales and weights without codes, each storage once."""
    storages: dict[int, int] = {}
    with_codes = {id(one.weight) for one in model.modules() if codes_of(one) is not None}
    tensors = [one for one in model.parameters() if id(one) not in with_codes]
    for module in model.modules():
        codes = codes_of(module)
        tensors += [] if codes is None else [codes.tensor, codes.scales]
    for tensor in tensors:
        storages[tensor.data_ptr()] = tensor.nbytes
    return sum(storages.values())


@pytest.mark.parametrize("dtype", [FP32, BF16, torch.float16], ids=str)
@each("qwen3-tied", "opt")
def test_what_the_codes_stand_for(name: str, dtype: torch.dtype, codes: Dtype, tmp_path: Path) -> None:
    """Logits are those of a model with the rounded weights, by few rows and by many."""
    model = load(save(name, tmp_path, dtype))
    assert lay_out_in_codes(model, codes).modules > 6
    right = rounded(model)
    for rows in (1, 8, 9, 20):
        assert near(logits(model, rows), logits(right, rows), 0.02 if dtype == BF16 else 0.003), rows


MODULES = {"qwen3-tied": 15, "qwen3-untied": 15, "t5": 17, "gpt2": 1, "opt": 7}


@each(*MODULES)
def test_which_modules(name: str, codes: Dtype, tmp_path: Path) -> None:
    """Every linear module of a size is, the output head included; a class of transformers' own is not."""
    model = load(save(name, tmp_path))
    done = lay_out_in_codes(model, codes)
    assert done.modules == MODULES[name] == coded(model)
    assert done.given_back > 0.9 * sum(one.weight.nbytes for one in model.modules() if codes_of(one))
    assert done.bytes * 1.9 < done.given_back * 1.1
    assert not any(blocks_of(one) for one in model.modules())


@pytest.mark.parametrize("dtype", [FP32, BF16], ids=str)
@each("qwen3-tied", "qwen3-untied", "opt", "t5")
def test_predicted_bytes(name: str, dtype: torch.dtype, codes: Dtype, tmp_path: Path) -> None:
    """What a plan predicts of the weights is what their storages take, within a hundredth."""
    folder = save(name, tmp_path, dtype)
    model, facts = load(folder), read_checkpoint(folder)
    lay_out_in_codes(model, codes)
    storage = FLOAT32 if dtype == FP32 else BFLOAT16
    predicted = weight_bytes(storage, facts) - saved_by_codes(storage, codes, facts)
    assert predicted == pytest.approx(stored_bytes(model), rel=0.01)


def test_what_stays_in_8_bits(folder: Path) -> None:
    """Of a model in 4 bits the output head is in 8."""
    model = load(folder)
    lay_out_in_codes(model, INT4)
    bits = {name: codes.coding.bits for name, one in model.named_modules() if (codes := codes_of(one))}
    assert bits.pop("lm_head") == 8
    assert set(bits.values()) == {4}


IN_A_PROCESS = """
import sys, torch, transformers as tf, pathlib, re
torch.set_num_threads(1)
def anonymous():
    return int(re.search(r"RssAnon:\\s+(\\d+)", pathlib.Path("/proc/self/status").read_text())[1]) * 1024
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", pathlib.Path("/proc/self/status").read_text())[1]) * 1024
from safe_dtype.facts import coding_for, dtype_named
from safe_dtype.kernels.weights.coded_weight import CodedWeight
from safe_dtype.models.block_layout import lay_out_in_codes
to = dtype_named(sys.argv[2])
model = tf.Qwen3ForCausalLM.from_pretrained(sys.argv[1], dtype="auto").eval()
CodedWeight.of(torch.ones(1024, 1024, dtype=model.dtype), coding_for(to, 1024, 1024))  # what the first one loads stays
with torch.no_grad():
    model.model.layers[0].input_layernorm(torch.ones(1, 1024, dtype=model.dtype))
pathlib.Path("/proc/self/clear_refs").write_text("5")  # forgets the peak
before, high = anonymous(), peak()
done = lay_out_in_codes(model, to)
print(anonymous() - before - done.bytes, peak() - high - done.bytes, done.bytes, done.given_back)
"""


@pytest.mark.parametrize(
    ("saved", "to"),
    [
        (BF16, INT8),
        pytest.param(FP32, INT8, marks=pytest.mark.slow),
        pytest.param(BF16, INT4, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_memory_is_that_of_the_codes(saved: torch.dtype, to: Dtype, tmp_path: Path) -> None:
    """A process that loads and codes a model has not more anonymous memory than before but for the codes, also at its peak."""
    config = tf.Qwen3Config(
        vocab_size=2000, hidden_size=1024, intermediate_size=4096, num_hidden_layers=8, num_attention_heads=8,
        num_key_value_heads=8, head_dim=64, tie_word_embeddings=True,
    )  # fmt: skip
    with torch.device("meta"):
        large = tf.Qwen3ForCausalLM(config).to(saved)
    for weight in large.to_empty(device="cpu").parameters():
        weight.data.fill_(0.01)  # drawn numbers would take longer than all the rest
    large.tie_weights()
    large.save_pretrained(tmp_path, max_shard_size="40MB")
    del large
    run = subprocess.run(
        [sys.executable, "-c", IN_A_PROCESS, str(tmp_path), to.name], capture_output=True, text=True, check=False
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    anonymous, peak, codes, given_back = map(int, run.stdout.split())
    assert codes > (100e6 if to == INT8 else 60e6)
    assert given_back > (0.95 * saved.itemsize if to == INT8 else 3.4) * codes
    assert anonymous < 16e6  # what a weight passes through is kept for the next
    assert peak < (40e6 if to == INT8 else 80e6)  # and the pages of one weight, in 4 bits what it is tried with too


@each(*MODELS)
def test_generation(name: str, codes: Dtype, tmp_path: Path) -> None:
    """Greedy tokens are those of the rounded model, as long as no two logits are a rounding apart."""
    model = load(save(name, tmp_path, FP32))
    lay_out_in_codes(model, codes)
    options = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False, "attention_mask": torch.ones(1, 6)}
    answer = model.generate(IDS[:, :6], **options)
    assert torch.equal(answer, rounded(model).generate(IDS[:, :6], **options))


def test_one_changed_weight(model: Any) -> None:
    """One number that is written lets go of the codes of its module alone."""
    first(model).weight.data[3, 5] = 100
    logits(model)
    assert coded(model) == 14


def test_an_adapter_on_top(model: Any, plain: Any) -> None:
    """LoRA layers add to what the codes give, as to a model with the rounded weights."""
    config = peft.LoraConfig(target_modules=["up_proj", "q_proj"], init_lora_weights=False, r=4)
    reference = rounded(model)
    answers = []
    for base in (model, reference):
        torch.manual_seed(0)
        adapted = peft.get_peft_model(base, config).eval()
        answers.append(logits(adapted))
    assert coded(model) == 15
    assert near(*answers)
    assert not near(answers[0], logits(plain), 0.05)


def test_gradients_in_evaluation(model: Any, plain: Any) -> None:
    """Where gradients are asked for they are the plain model's; without them its codes multiply as before."""
    before = logits(model)
    for one in (model, plain):
        one(input_ids=IDS, labels=IDS).loss.backward()
    assert torch.equal(first(model).weight.grad, first(plain).weight.grad)
    assert coded(model) == 15
    assert torch.equal(logits(model), before)


def test_compiled(model: Any, plain: Any) -> None:
    """A compiled graph holds the plain weights."""
    torch._dynamo.reset()
    x = torch.randn(3, 512, dtype=BF16)
    with torch.no_grad():
        answer = torch.compile(model.model.layers[0].mlp, backend="eager", fullgraph=True)(x)
        assert torch.equal(answer, plain.model.layers[0].mlp(x))
    torch._dynamo.reset()


def test_offloaded(folder: Path) -> None:
    """What accelerate brings to its device for a moment is left as it lies."""
    model = load(folder)
    accelerate.cpu_offload(model, torch.device("cpu"))
    assert lay_out_in_codes(model, INT8).modules == 0


def test_spread_after(model: Any) -> None:
    """A model by codes to which accelerate offloads afterwards goes on, by codes where its weights lie as they did."""
    expected = logits(rounded(model))
    accelerate.cpu_offload(model, torch.device("cpu"))
    assert near(logits(model), expected)


def test_room_for_a_step_down(model: Any, plain: Any) -> None:
    """What a change of dtype needs counts the weights whole, for of them only codes are in memory."""
    (more,) = growth(model, {BF16}, FP32).values()
    (less,) = growth(plain, {BF16}, FP32).values()
    assert more - less == sum(one.nbytes for one in {one.weight for one in model.modules() if codes_of(one)})
    peaks = [peak_growth(one, {BF16}, FP32)[torch.device("cpu")] for one in (model, plain)]
    assert peaks[0] >= more
    assert peaks[0] > peaks[1]


def test_not_of_files() -> None:
    """Weights that are no view of a file are left alone: codes would take memory, and give none back."""
    model = nn.Sequential(nn.Linear(512, 512))
    assert lay_out_in_codes(model, INT8).modules == 0


def test_not_finite(tmp_path: Path) -> None:
    """A weight with NaN in it stays as it is, and its module computes what the plain one does."""
    folder = save("qwen3-tied", tmp_path)
    broken = load(folder)
    first(broken).weight.data[3, 5] = float("nan")
    broken.save_pretrained(tmp_path / "broken")
    model = load(tmp_path / "broken")
    assert lay_out_in_codes(model, INT8).modules == 14
    assert codes_of(first(model)) is None


def test_candidates_by_name() -> None:
    """A way to run a model says what its weights are in."""
    assert str(Candidate(BFLOAT16, BFLOAT16, INT8)) == "int8, rest bfloat16"
    assert str(Candidate(BFLOAT16, FLOAT32, INT4)) == "int4, rest bfloat16 stored, float32 computed"
