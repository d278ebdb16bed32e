"""Casts at the border of one module: what goes in, what comes out, and which modules can have them."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing  # which registers how tensors are sent
from tiny_models import TINY
from torch import Tensor, nn

from safe_dtype.models.islands import CastInputs, Island, can_be_island, islands_in

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32


class Seen(nn.Module):
    """Returns what it was given, and tells in which dtypes it came."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.dtypes: list[torch.dtype] = []

    def forward(self, first: Tensor, second: tuple[Tensor, Tensor], *, third: Tensor) -> tuple[Tensor, Tensor]:
        """Tensors of any shape; the first and the third are returned."""
        self.dtypes += [first.dtype, second[0].dtype, second[1].dtype, third.dtype]
        return first, third


def called(module: Any, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Call it with floats of a dtype at every place, and with integers."""
    floats = torch.ones(3, dtype=dtype)
    returned: tuple[Tensor, Tensor] = module(floats, (floats, torch.arange(3)), third=floats)
    return returned


def test_island() -> None:
    """Inside everything floating is float32, outside it is what the model around it computes in."""
    module = Seen()
    Island(BF16).attach(module)
    assert [one.dtype for one in called(module, BF16)] == [BF16, BF16]
    assert module.dtypes == [FP32, FP32, torch.int64, FP32]


def test_island_computes_in_float32() -> None:
    """A product that overflows float16 inside is finite where the island's own output brings it back."""
    torch.manual_seed(0)
    inside = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    with torch.no_grad():
        inside[0].weight *= 1e6
        inside[1].weight *= 1e-6
    inputs = torch.randn(2, 4).half()
    truth = inside(inputs.float()).half()
    assert not copy.deepcopy(inside).half()(inputs).isfinite().all()
    Island(FP16).attach(inside)
    torch.testing.assert_close(inside(inputs), truth, rtol=0.02, atol=0.02)


def test_island_follows() -> None:
    """When the model goes to another dtype, the island brings its output to that one."""
    module, island = Seen(), Island(BF16)
    island.attach(module)
    island.outside_is_now(FP16)
    assert [one.dtype for one in called(module, FP16)] == [FP16, FP16]
    assert module.dtypes[0] == FP32


def test_inputs_of_another_float_are_left_alone() -> None:
    """An island casts what the model computes in, and nothing that came in another float."""
    module = Seen()
    Island(BF16).attach(module)
    called(module, FP16)
    assert module.dtypes == [FP16, FP16, torch.int64, FP16]


def test_island_comes_first() -> None:
    """A hook that was there before sees float32: it stands for the module, not for the model around it."""
    module, seen = Seen(), []
    module.register_forward_pre_hook(lambda _, args: seen.append(args[0].dtype))
    Island(BF16).attach(module)
    called(module, BF16)
    assert seen == [FP32]


def test_cast_inputs() -> None:
    """Inputs of any of the three floats come in the dtype of the weights; float64 and integers stay."""
    module = Seen().to(BF16)
    module.register_forward_pre_hook(CastInputs(), with_kwargs=True)
    for dtype in (FP32, FP16, BF16, torch.float64):
        called(module, dtype)
    assert module.dtypes == [BF16, BF16, torch.int64, BF16] * 3 + [
        torch.float64, torch.float64, torch.int64, torch.float64,
    ]  # fmt: skip


def test_cast_inputs_skips_integer_weights() -> None:
    """The dtype is that of the first floating weight: quantized codes stand before it."""
    module = Seen().half()
    weight = module.weight
    del module.weight
    module.codes = nn.Parameter(torch.zeros(1, dtype=torch.int8), requires_grad=False)
    module.weight = weight
    module.register_forward_pre_hook(CastInputs(), with_kwargs=True)
    called(module, FP32)
    assert module.dtypes[0] == FP16


def test_which_are_islands() -> None:
    """Islands are named as modules are; other hooks, and inputs that are cast, make none."""
    model = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Sequential(nn.Linear(2, 2), nn.ReLU())})
    assert list(islands_in(model)) == []
    model["a"].register_forward_pre_hook(CastInputs(), with_kwargs=True)
    model["a"].register_forward_hook(lambda *_: None)
    island = Island(BF16)
    island.attach(model["b"][0])
    assert list(islands_in(model)) == ["b.0"]
    island.outside_is_now(FP32)  # the whole model is in float32: it is overtaken
    assert list(islands_in(model)) == []


def test_what_can_be_one() -> None:
    """Not the model itself, nor a module that shares a weight with another; one that holds both can."""
    model = TINY["qwen3"].make()
    assert can_be_island(model, model.model.layers[0].mlp) is None
    assert can_be_island(model, model) == "it is the whole model"
    for module in (model.lm_head, model.model.embed_tokens, model.model):
        assert can_be_island(model, module) == "its weights are tied to another module's"
    around = nn.Sequential(model)
    assert can_be_island(around, model) is None


WITHOUT_US = """
import sys
sys.modules["safe_dtype"] = None
import torch
model = torch.load(sys.argv[1], weights_only=False)
with torch.no_grad():
    torch.save(model(torch.ones(2, 4, dtype=torch.bfloat16)), sys.argv[1])
"""


def with_island() -> nn.Sequential:
    """Return a model in bfloat16 with an island in it."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))).to(BF16)
    model[1].float()
    Island(BF16).attach(model[1])
    return model


def read_without_us(model: nn.Module, tmp_path: Path) -> Tensor:
    """Save a model, and return what it computes in a process where safe_dtype is not installed."""
    file = tmp_path / "model.pt"
    torch.save(model, file)
    subprocess.run([sys.executable, "-c", WITHOUT_US, str(file)], check=True, timeout=120)
    result: Tensor = torch.load(file)
    return result


@torch.no_grad()
def test_an_island_read_without_us(tmp_path: Path) -> None:
    """A pickled model with an island is the plain one where safe_dtype is not installed, in one dtype."""
    model = with_island()
    plain = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))).to(BF16)
    plain.load_state_dict(model.state_dict())
    inputs = torch.ones(2, 4, dtype=BF16)
    for saved in (model, copied(model, inputs)):
        assert torch.equal(read_without_us(saved, tmp_path), plain(inputs))
    assert model[1][0].weight.dtype is FP32
    assert pickle.loads(pickle.dumps(model))[1][0].weight.dtype is BF16
    assert model.state_dict()["1.0.weight"].dtype is FP32


def copied(model: nn.Module, inputs: Tensor) -> nn.Module:
    """Return a deep copy that has run: its island is one, with weights of its own."""
    twin = copy.deepcopy(model)
    assert torch.equal(twin(inputs), model(inputs))
    assert list(islands_in(twin)) == ["1"]
    return twin


@torch.no_grad()
def test_aligned_inputs_read_without_us(tmp_path: Path) -> None:
    """So is a model with inputs cast by a hook; where we are, the hook casts in what was read too."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)).to(BF16)
    model[1].register_forward_pre_hook(CastInputs(), with_kwargs=True)
    inputs = torch.ones(2, 4, dtype=BF16)
    assert torch.equal(read_without_us(model, tmp_path), model(inputs))
    read = pickle.loads(pickle.dumps(model))
    read[1].float()
    assert read(inputs).dtype is FP32


@torch.no_grad()
def test_an_island_sent_to_another_process() -> None:
    """Sent to another process of torch's the weights are shared, and the island stays one."""
    model, inputs = with_island(), torch.ones(2, 4, dtype=BF16)
    read = pickle.loads(ForkingPickler.dumps(model))
    assert torch.equal(read(inputs), model(inputs))
    assert read[1][0].weight.dtype is FP32


def test_numbers_that_do_not_fit_stay() -> None:
    """A weight beyond the range of the dtype around it is pickled as it is."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)).half()
    model[1].float()
    with torch.no_grad():
        model[1].weight[0, 0] = 1e6
    island = Island(FP16)
    island.attach(model[1])
    read = pickle.loads(pickle.dumps(model))
    assert (read[1].weight.dtype, read[1].bias.dtype) == (FP32, FP16)
    island.detach(model[1])
    assert not model[1]._forward_hooks
    assert pickle.loads(pickle.dumps(model))[1].bias.dtype is FP32
