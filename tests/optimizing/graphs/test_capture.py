"""Whether a model captures whole is attempted; where it does not, the line to blame is named."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from optimizing.zoo import ZOO
from optimizing.zoo_modules import Branch
from optimizing.zoo_texts import mixtral

from safe_dtype import guard
from safe_dtype.optimizing.graphs import graph_breaks as breaks
from safe_dtype.optimizing.graphs.capture import CapturedCall, capture, counts, whole_graph

SITE_PACKAGES = Path(transformers.__file__).parent.parent


TESTS = Path(__file__).parents[2]


# Name in the zoo -> the file and the line of code at which its capture ends.
BLAMED = {
    "branch": ("optimizing/zoo_modules.py", "if y.sum() > 0:"),
    "mixtral_eager": ("transformers/models/mixtral/modeling_mixtral.py", "for expert_idx in expert_hit:"),
    "dbrx": ("transformers/models/dbrx/modeling_dbrx.py", "for expert_idx in expert_hit:"),
    "longformer": ("transformers/models/longformer/modeling_longformer.py", "if is_global_attn:"),
    "switch": (
        "transformers/models/switch_transformers/modeling_switch_transformers.py",
        "for expert_idx in expert_hit:",
    ),
    "lightglue": (
        "transformers/models/lightglue/modeling_lightglue.py",
        "if keypoints.shape[2] == 0:  # no keypoints",
    ),
    "vilt": ("transformers/models/vilt/modeling_vilt.py", "nn.functional.interpolate("),
}
QUICK = ("patches", "sapiens2", "vit", "mixtral", "superpoint")  # of the last, counts say otherwise
LONG = (
    "sapiens2_pose", "sapiens2_normal", "sapiens2_pointmap", "sapiens2_matting", "segformer", "upernet", "mask2former",
    "qwen3", "whisper", "jetmoe",
)  # fmt: skip


def source_line(file: str, line: int) -> str:
    """Return what stands in `line` of a file that is named from the package on."""
    root = TESTS if file.startswith("optimizing/") else SITE_PACKAGES
    return (root / file).read_text(encoding="utf-8").splitlines()[line - 1].strip()


@pytest.mark.needs("torch>=2.13")
@pytest.mark.parametrize("name", [*QUICK, *(pytest.param(one, marks=pytest.mark.slow) for one in LONG)])
def test_whole(name: str) -> None:
    """A model that can be captured whole is, without a word on obstacles."""
    captured = whole_graph(ZOO[name].model(), ZOO[name].inputs())
    assert captured.whole, captured.reason
    assert (captured.sites, captured.kind, captured.reason) == ((), "", "")
    assert captured.seconds > 0


@pytest.mark.needs("torch>=2.13")
@pytest.mark.parametrize("name", BLAMED)
def test_blamed_line(name: str) -> None:
    """A capture that fails on the values of tensors names the line of the model that reads them."""
    captured = whole_graph(ZOO[name].model(), ZOO[name].inputs())
    (site,) = captured.sites
    assert not captured.whole
    assert (site.file, site.code) == BLAMED[name]
    assert source_line(site.file, site.line) == site.code
    assert captured.kind == site.kind == breaks.DATA_DEPENDENT
    assert captured.reason
    assert "\n" not in captured.reason


def test_every_specimen_is_tested() -> None:
    """No model of the zoo is left out."""
    assert {*QUICK, *LONG, *BLAMED, "switch_unmasked"} == set(ZOO)


@pytest.mark.needs("torch>=2.13")
def test_bug_of_the_model() -> None:
    """An error that the model raises only when it is traced is told from one of its control flow, guards or not."""
    guard(ZOO["vit"].model())  # from here on the guard of the class PreTrainedModel is among the frames
    captured = whole_graph(ZOO["switch_unmasked"].model(), ZOO["switch_unmasked"].inputs())
    assert captured.kind == breaks.MODEL_BUG
    assert "'NoneType' object is not subscriptable" in captured.reason
    assert captured.sites[0].file.endswith("modeling_switch_transformers.py")


@pytest.mark.needs("torch>=2.13")
@pytest.mark.parametrize("experts", ["batched_mm", "grouped_mm"])
def test_remedy(experts: str) -> None:
    """Mixtral captures whole as soon as its experts are called in another way."""
    torch.manual_seed(0)
    assert whole_graph(mixtral(experts).eval(), ZOO["mixtral"].inputs()).whole


@pytest.mark.slow
def test_false_alarm() -> None:
    """Counted in the default mode, JetMoe falls into many graphs, each at the same line; counted otherwise it is one."""
    default, captured = counts(ZOO["jetmoe"].model(), ZOO["jetmoe"].inputs())
    (site,) = default.sites
    assert default.graphs > 10
    assert (site.code, site.count) == ("expert_size = expert_size.tolist()", default.reasons)
    assert default.counter >= default.reasons > 1
    assert (captured.graphs, captured.reasons, captured.sites) == (1, 0, ())


def test_counts_of_a_branch() -> None:
    """A module that goes two ways is counted as two graphs in either mode, with the line in between."""
    for count in counts(Branch().eval(), ZOO["branch"].inputs()):
        assert (count.graphs, count.reasons, count.problem) == (2, 1, "")
        assert [(site.code, site.kind) for site in count.sites] == [("if y.sum() > 0:", breaks.DATA_DEPENDENT)]


@pytest.mark.parametrize("look", [whole_graph, counts])
def test_error_of_the_model(look: Callable[..., Any]) -> None:
    """A model that does not run at all raises its own error: that is no obstacle to a capture."""
    with pytest.raises(RuntimeError, match="15"):
        look(Branch().eval(), {"x": torch.zeros(1, 2, 15)})


@pytest.mark.needs("torch>=2.13")
def test_first_run() -> None:
    """A model whose first run does what no tracer follows (Segformer installs hooks under a lock) captures whole."""
    model, inputs = ZOO["segformer"].model(), ZOO["segformer"].inputs()
    assert not capture(model, CapturedCall((), inputs)).whole
    assert whole_graph(model, inputs).whole


@pytest.mark.parametrize("name", ["branch", "patches"])
def test_nothing_is_left_behind(name: str) -> None:
    """Neither the model nor torch is another after an attempt and a count, whether it captures or not."""
    model, inputs = ZOO[name].model(), ZOO[name].inputs()
    dynamo = torch._dynamo
    before = copy.deepcopy({key: value.clone() for key, value in model.state_dict().items()})
    attributes, settings = set(vars(model)), dynamo.config.get_config_copy()
    dynamo.utils.counters.clear()
    dynamo.utils.counters["graph_break"]["somebody else's"] = 3
    drawn = torch.random.get_rng_state()
    try:
        whole_graph(model, inputs)
        counts(model, inputs)
        assert dict(dynamo.utils.counters) == {"graph_break": {"somebody else's": 3}}
    finally:
        dynamo.utils.counters.clear()
    assert set(vars(model)) == attributes
    assert model._compiled_call_impl is None
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert dynamo.config.get_config_copy() == settings
    assert not dynamo.output_graph.graph_break_reasons
    assert torch.equal(torch.random.get_rng_state(), drawn)
    assert torch.is_grad_enabled()
