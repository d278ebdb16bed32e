"""Where a model does not capture whole, its largest parts that do are found."""

from __future__ import annotations

import pytest
import torch
from optimizing.zoo import ZOO
from optimizing.zoo_modules import Branch
from torch import nn
from transformers import DynamicCache

from safe_dtype.optimizing.graphs.capture import whole_graph
from safe_dtype.optimizing.graphs.regions import Survey, coverage, regions, survey


@pytest.fixture(scope="module")
def surveyed() -> tuple[nn.Module, Survey]:
    """A Dbrx that was surveyed, and its parts."""
    model = ZOO["dbrx"].model()
    return model, survey(model, ZOO["dbrx"].inputs())


@pytest.fixture(scope="module")
def dbrx(surveyed: tuple[nn.Module, Survey]) -> Survey:
    """The parts of Dbrx."""
    return surveyed[1]


@pytest.fixture(scope="module")
def in_mixtral() -> tuple[str, ...]:
    """The regions of Mixtral in eager form."""
    return regions(ZOO["mixtral_eager"].model(), ZOO["mixtral_eager"].inputs())


@pytest.mark.needs("torch>=2.13")
def test_whole_model() -> None:
    """Of a model that captures whole the only region is the model, whatever a count says of it."""
    found = survey(ZOO["jetmoe"].model(), ZOO["jetmoe"].inputs())
    assert (found.names, found.coverage, found.varying, found.refused) == (("",), 1.0, (), {})


def test_no_part_to_compile() -> None:
    """A module that consists of itself and of leaves of torch.nn has no region."""
    found = survey(Branch().eval(), ZOO["branch"].inputs())
    assert (found.names, found.coverage) == ((), 0.0)
    assert list(found.refused) == [""]
    assert found.finished


@pytest.mark.needs("torch>=2.13")
def test_attention_and_router(dbrx: Survey) -> None:
    """The parts of Dbrx around the loop over its experts are regions, the loop and what holds it are refused."""
    parts = ("norm_attn_norm", "ffn.router")
    assert dbrx.names == tuple(f"transformer.blocks.{layer}.{part}" for layer in (0, 1) for part in parts)
    assert {f"transformer.blocks.{layer}.ffn.experts" for layer in (0, 1)} <= dbrx.refused.keys()


@pytest.mark.needs("torch>=2.13")
def test_experts_vary(dbrx: Survey) -> None:
    """The experts hold most of Dbrx and capture whole, but are listed apart: how many tokens they get, values decide."""
    model = ZOO["dbrx"].model()
    assert dbrx.varying == tuple(f"transformer.blocks.{layer}.ffn.experts.mlp" for layer in (0, 1))
    assert 0 < dbrx.coverage < 0.2
    assert coverage(model, dbrx.names + dbrx.varying) > 0.8


def test_regions_run_as_before(dbrx: Survey) -> None:
    """With its regions and varying parts compiled Dbrx answers as before, also to inputs of other values and sizes."""
    model, compiled = ZOO["dbrx"].model(), ZOO["dbrx"].model()
    for name in dbrx.names + dbrx.varying:
        compiled.get_submodule(name).compile(fullgraph=True, backend="eager")
    try:
        with torch.no_grad():
            for inputs in (ZOO["dbrx"].inputs(), ZOO["dbrx"].held_out()):
                torch.testing.assert_close(compiled(**inputs).logits, model(**inputs).logits)
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    finally:
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()


@pytest.mark.needs("torch>=2.13")
def test_loop_over_experts_is_refused(in_mixtral: tuple[str, ...]) -> None:
    """Of Mixtral in eager form all but the experts is covered; they hold the loop themselves."""
    assert "model.layers.0.self_attn" in in_mixtral
    assert not any("experts" in name for name in in_mixtral)


def test_caches_are_as_they_were(in_mixtral: tuple[str, ...]) -> None:
    """Layers that fill a cache are tried with the cache that they were given, not with the one that the run left."""
    inputs = ZOO["mixtral_eager"].inputs() | {"use_cache": True}
    assert regions(ZOO["mixtral_eager"].model(), inputs) == in_mixtral


@pytest.mark.needs("torch>=2.13")
def test_cache_of_the_caller() -> None:
    """A cache among the inputs is as empty afterwards as it was before."""
    model, cache = ZOO["qwen3"].model(), DynamicCache()
    inputs = ZOO["qwen3"].inputs() | {"past_key_values": cache, "use_cache": True}
    assert whole_graph(model, inputs).whole
    assert regions(model, inputs) == ("",)
    assert cache.get_seq_length() == 0


def test_regions_capture() -> None:
    """No region lies within another, and each has parameters."""
    model = ZOO["longformer"].model()
    names = regions(model, ZOO["longformer"].inputs())
    assert not [(one, other) for one in names for other in names if other.startswith(f"{one}.")]
    assert all(any(True for _ in model.get_submodule(name).parameters()) for name in names)
    assert coverage(model, names) > 0.9


@pytest.mark.slow
@pytest.mark.parametrize(("name", "share"), [("lightglue", 0.95), ("switch", 0.3)])
def test_coverage(name: str, share: float) -> None:
    """Most of LightGlue, and of Switch all but its experts, is covered."""
    found = survey(ZOO[name].model(), ZOO[name].inputs())
    assert found.coverage > share
    assert not any("expert_" in one for one in found.names)


class Alike(nn.Module):
    """Two equal layers and one with another setting, then a branch."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Scaled(factor, at) for at, factor in enumerate((1.0, 1.0, -1.0)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Take and return shape (batch, length, 16)."""
        for layer in self.layers:
            x = layer(x)
        return x if x.sum() > 0 else -x


class Scaled(nn.Module):
    """A layer that goes two ways where its factor is negative."""

    def __init__(self, factor: float, layer_idx: int) -> None:
        super().__init__()
        self.linear, self.factor, self.layer_idx = nn.Linear(16, 16), factor, layer_idx

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Take and return shape (batch, length, 16)."""
        if self.factor < 0 and x.sum() > 0:
            return x
        return self.linear(x) * self.factor


def test_alike() -> None:
    """Layers that differ in a setting are judged apart, though their weights have the same shapes."""
    found = survey(Alike().eval(), ZOO["branch"].inputs())
    assert found.names == ("layers.0", "layers.1")
    assert "layers.2" in found.refused


def test_out_of_time() -> None:
    """Without time nothing is tried, and the survey says that it did not finish."""
    found = survey(ZOO["dbrx"].model(), ZOO["dbrx"].inputs(), seconds=0)
    assert (found.names, found.finished) == ((), False)


def test_shared_parameters_count_once() -> None:
    """Parameters that two regions share are counted once."""
    linear = nn.Linear(4, 4)
    model = nn.ModuleDict({"a": nn.Sequential(linear), "b": nn.Sequential(linear), "c": nn.Linear(4, 4)})
    assert coverage(model, ("a", "b")) == 0.5


def test_nothing_is_left_behind(surveyed: tuple[nn.Module, Survey]) -> None:
    """The model has no hook, no compiled call and no other weights afterwards, and gradients are on again."""
    model, before = surveyed[0], ZOO["dbrx"].model().state_dict()
    for module in model.modules():
        assert not module._forward_pre_hooks
        assert not module._forward_hooks
        assert module._compiled_call_impl is None
        assert "_is_torch_compile" not in vars(module)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert torch.is_grad_enabled()
    assert not whole_graph(model, ZOO["dbrx"].inputs()).whole
