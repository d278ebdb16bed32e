"""A model multiplies by 8-bit codes, and nothing else about it changes: its parameters are those of its files."""

from __future__ import annotations

import copy
import io
import subprocess
import sys
from collections.abc import Callable
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
from safe_dtype.facts import BFLOAT16, FLOAT32, INT8
from safe_dtype.models.block_layout import blocks_of, codes_of, lay_out, lay_out_in_int8, take_back
from safe_dtype.models.recast import growth, peak_growth
from safe_dtype.planning import Candidate
from safe_dtype.planning.predict import saved_by_codes, weight_bytes

pytestmark = MARKS

BF16, FP32 = torch.bfloat16, torch.float32


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a tied Qwen3 is saved."""
    return save("qwen3-tied", tmp_path_factory.mktemp("qwen3"))


@pytest.fixture
def plain(folder: Path) -> Any:
    """The model as it is loaded."""
    return load(folder)


@pytest.fixture
def model(folder: Path) -> Any:
    """The same one, by codes."""
    model = load(folder)
    assert lay_out_in_int8(model).modules == 15
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
@pytest.mark.parametrize("rows", [1, 8, 9, 20])
@pytest.mark.parametrize("name", ["qwen3-tied", "opt"])
def test_what_the_codes_stand_for(name: str, rows: int, dtype: torch.dtype, tmp_path: Path) -> None:
    """Logits are those of a model with the rounded weights, by few rows and by many."""
    model = load(save(name, tmp_path, dtype))
    assert lay_out_in_int8(model).modules > 6
    assert near(logits(model, rows), logits(rounded(model), rows), 0.02 if dtype == BF16 else 0.003)


@pytest.mark.parametrize(
    ("name", "modules"), [("qwen3-tied", 15), ("qwen3-untied", 15), ("t5", 17), ("gpt2", 1), ("opt", 7)]
)
def test_which_modules(name: str, modules: int, tmp_path: Path) -> None:
    """Every linear module of a size is, the output head included; a class of transformers' own is not."""
    model = load(save(name, tmp_path))
    done = lay_out_in_int8(model)
    assert done.modules == modules == coded(model)
    assert done.given_back > 0.9 * sum(one.weight.nbytes for one in model.modules() if codes_of(one))
    assert done.bytes * 1.9 < done.given_back * 1.1
    assert not any(blocks_of(one) for one in model.modules())


@pytest.mark.parametrize("dtype", [FP32, BF16], ids=str)
@pytest.mark.parametrize("name", ["qwen3-tied", "qwen3-untied", "opt", "t5"])
def test_predicted_bytes(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """What a plan predicts of the weights is what their storages take, within a hundredth."""
    folder = save(name, tmp_path, dtype)
    model, facts = load(folder), read_checkpoint(folder)
    lay_out_in_int8(model)
    storage = FLOAT32 if dtype == FP32 else BFLOAT16
    predicted = weight_bytes(storage, facts) - saved_by_codes(storage, facts)
    assert predicted == pytest.approx(stored_bytes(model), rel=0.01)


IN_A_PROCESS = """
import sys, torch, transformers as tf, pathlib, re
torch.set_num_threads(1)
def anonymous():
    return int(re.search(r"RssAnon:\\s+(\\d+)", pathlib.Path("/proc/self/status").read_text())[1]) * 1024
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", pathlib.Path("/proc/self/status").read_text())[1]) * 1024
from safe_dtype.models.block_layout import lay_out_in_int8
model = tf.Qwen3ForCausalLM.from_pretrained(sys.argv[1], dtype="auto").eval()
small = torch.nn.Linear(128, 128)
lay_out_in_int8(torch.nn.Sequential(small))
with torch.no_grad():
    model.model.layers[0].input_layernorm(torch.ones(1, 1024, dtype=model.dtype))
pathlib.Path("/proc/self/clear_refs").write_text("5")  # forgets the peak
before, high = anonymous(), peak()
done = lay_out_in_int8(model)
print(anonymous() - before - done.bytes, peak() - high - done.bytes, done.bytes, done.given_back)
"""


@pytest.mark.parametrize("saved", [BF16, pytest.param(FP32, marks=pytest.mark.slow)], ids=str)
def test_memory_is_that_of_the_codes(saved: torch.dtype, tmp_path: Path) -> None:
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
        [sys.executable, "-c", IN_A_PROCESS, str(tmp_path)], capture_output=True, text=True, check=False
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    anonymous, peak, codes, given_back = map(int, run.stdout.split())
    assert codes > 100e6
    assert given_back > 0.95 * codes * saved.itemsize
    assert anonymous < 45e6  # what a weight passes through, which malloc may keep
    assert peak < 80e6  # and the pages of one weight


@pytest.mark.parametrize("name", MODELS)
def test_generation(name: str, tmp_path: Path) -> None:
    """Greedy tokens are those of the rounded model, as long as no two logits are a rounding apart."""
    model = load(save(name, tmp_path, FP32))
    lay_out_in_int8(model)
    options = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False, "attention_mask": torch.ones(1, 6)}
    answer = model.generate(IDS[:, :6], **options)
    assert torch.equal(answer, rounded(model).generate(IDS[:, :6], **options))


def test_state_and_files(model: Any, plain: Any, tmp_path: Path) -> None:
    """State dict and saved files have the bits of the checkpoint, and nothing of the codes."""
    state = model.state_dict()
    assert list(state) == list(plain.state_dict())
    assert all(torch.equal(state[name], tensor) for name, tensor in plain.state_dict().items())
    model.save_pretrained(tmp_path / "coded")
    plain.save_pretrained(tmp_path / "plain")
    for file in (tmp_path / "plain").iterdir():
        assert (tmp_path / "coded" / file.name).read_bytes() == file.read_bytes(), file.name
    assert coded(model) == 15


def test_lookups_keep_their_bits(model: Any, plain: Any) -> None:
    """An embedding that shares its weight with the head is looked up in the weight as it was saved."""
    assert codes_of(model.lm_head) is not None
    assert model.lm_head.weight is model.model.embed_tokens.weight
    ids = torch.tensor([[0, 999, 5]])
    assert torch.equal(model.model.embed_tokens(ids), plain.model.embed_tokens(ids))


def test_taking_back(model: Any, plain: Any) -> None:
    """Without its codes it is the model of its files, bit for bit, and holds none of their memory."""
    assert take_back(model) == 15
    assert coded(model) == 0
    assert torch.equal(logits(model), logits(plain))


def test_a_second_layout(model: Any) -> None:
    """What multiplies by codes is not laid out again."""
    assert lay_out(model).modules == lay_out_in_int8(model).modules == 0


COPIES: dict[str, Callable[[Any], Any]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: _pickled(model),
}


def _pickled(model: Any) -> Any:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("made", COPIES)
def test_copies_are_plain(model: Any, plain: Any, made: str) -> None:
    """A copy has the weights of the files, and no codes."""
    copied = COPIES[made](model)
    assert coded(copied) == 0
    assert coded(model) == 15
    assert torch.equal(logits(copied), logits(plain))


CHANGES: dict[str, Callable[[Any], object]] = {
    "to-float32": lambda model: model.to(FP32),
    "half": lambda model: model.half(),
    "float": lambda model: model.float(),
    "moved-to-a-list": lambda model: model.load_state_dict(
        {name: one + 1 for name, one in model.state_dict().items()}
    ),
    "all-written": lambda model: [one.data.mul_(-1) for one in model.parameters()],
}


@pytest.mark.parametrize("change", CHANGES)
def test_changed_weights(change: str, model: Any, plain: Any) -> None:
    """A cast, and whatever is written to the weights, is computed with at the next step, from the plain weights."""
    CHANGES[change](model)
    CHANGES[change](plain)
    assert torch.equal(logits(model), logits(plain))
    assert coded(model) == 0


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


def test_a_merged_adapter(model: Any, plain: Any) -> None:
    """What is merged is merged into the weights of the files: they are exact, and have no codes any more."""
    config = peft.LoraConfig(target_modules=["up_proj", "q_proj"], init_lora_weights=False, r=4)
    merged = []
    for base in (model, plain):
        torch.manual_seed(0)
        merged.append(peft.get_peft_model(base, config).eval().merge_and_unload())
    assert all(torch.equal(one, other) for one, other in zip(*(one.parameters() for one in merged), strict=True))
    logits(merged[0])
    assert codes_of(first(merged[0])) is None
    assert codes_of(merged[0].lm_head) is not None  # no page of its weight holds a part of one that was merged into


@pytest.mark.parametrize("reentrant", [None, True, False], ids=["plain", "checkpoints", "checkpoints-anew"])
def test_training(model: Any, plain: Any, *, reentrant: bool | None) -> None:
    """A step of training is that of the plain model, bit for bit, and lets go of the codes; also with checkpoints of gradients."""
    losses = []
    for one in (model, plain):
        one.train()
        if reentrant is not None:
            one.gradient_checkpointing_enable({"use_reentrant": reentrant})
        optimizer = torch.optim.SGD(one.parameters(), lr=0.1)
        losses.append(one(input_ids=IDS, labels=IDS, use_cache=False).loss)
        losses[-1].backward()
        optimizer.step()
        one.eval()
    assert torch.equal(*losses)
    assert coded(model) == 0
    assert torch.equal(logits(model), logits(plain))


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
    assert lay_out_in_int8(model).modules == 0


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
    assert lay_out_in_int8(model).modules == 0


def test_not_finite(tmp_path: Path) -> None:
    """A weight with NaN in it stays as it is, and its module computes what the plain one does."""
    folder = save("qwen3-tied", tmp_path)
    broken = load(folder)
    first(broken).weight.data[3, 5] = float("nan")
    broken.save_pretrained(tmp_path / "broken")
    model = load(tmp_path / "broken")
    assert lay_out_in_int8(model).modules == 14
    assert codes_of(first(model)) is None


def test_candidates_by_name() -> None:
    """A way to run a model says what its weights are in."""
    assert str(Candidate(BFLOAT16, BFLOAT16, INT8)) == "int8, rest bfloat16"
    assert str(Candidate(BFLOAT16, FLOAT32, INT8)) == "int8, rest bfloat16 stored, float32 computed"
