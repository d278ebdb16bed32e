"""Whether a model can be captured as one graph. That is tried, never concluded from a count of graphs.

`torch._dynamo.explain` counts graphs in its default mode, in which it gives up where a capture of the whole graph
would have gone on. JetMoe was counted as 17 graphs, and captures whole. So a count explains a failure, and never
predicts one.
"""

from __future__ import annotations

import copy
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter
from types import MappingProxyType
from typing import Any

import torch
from torch import _dynamo as dynamo
from torch.utils._pytree import tree_map

from ...devices.random_states import random_states_kept
from ..nouns.record import BreakSite
from .graph_breaks import kind_of, reason_of, sites_of


@dataclass(frozen=True, slots=True)
class Capture:
    """The result of the attempt to capture a model as one graph."""

    whole: bool
    seconds: float
    sites: tuple[BreakSite, ...] = ()  # one at most: the attempt ends at the first
    kind: str = ""  # of the obstacle, as in `BreakSite`; empty where there is none
    reason: str = ""


@dataclass(frozen=True, slots=True)
class GraphCount:
    """What `torch._dynamo.explain` counted in one mode. It is only reported: no decision rests on it.

    The three figures count different things, and may all differ.
    """

    mode: str  # "default", or "scalars and shapes captured"
    graphs: int
    reasons: int  # the graph breaks that have a reason
    counter: int  # the sum of torch._dynamo.utils.counters["graph_break"]
    sites: tuple[BreakSite, ...] = ()
    problem: str = ""  # why nothing could be counted; empty where it could


@dataclass(frozen=True, slots=True)
class CapturedCall:
    """The arguments of one call of a module."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]


# The default mode leaves to eager what the second mode captures, as a capture of the whole graph does.
_MODES: Mapping[str, Mapping[str, bool]] = {
    "default": {},
    "scalars and shapes captured": {"capture_scalar_outputs": True, "capture_dynamic_output_shape_ops": True},
}


def whole_graph(model: torch.nn.Module, inputs: Mapping[str, Any]) -> Capture:
    """Try to capture `model` as one graph. That takes seconds, because no code is generated.

    It runs eagerly first, so that an error of the model itself is raised, and not taken for an obstacle. Some models
    of transformers also need that run: their first one installs hooks under a lock, which no tracer can enter.
    Other compiled functions of this process lose their caches, and compile again (`dynamo.reset`).

    Args:
        model: As it is to be run: on its own device and in its own dtype. No gradients are computed.
        inputs: Keyword arguments of its `forward`.
    """
    call = CapturedCall((), inputs)
    _run_eagerly(model, call)
    return capture(model, snapshot(call))


def capture(module: torch.nn.Module, call: CapturedCall) -> Capture:
    """Try to capture `module`, which has run before, as one graph for `call`. A cache in `call` is filled."""
    with _clean_dynamo(module):
        began = perf_counter()
        try:
            torch.compile(module, fullgraph=True, backend="eager")(*call.args, **call.kwargs)
        except Exception as error:  # noqa: BLE001  # whatever stops a capture is the finding, and torch raises anything
            return Capture(
                whole=False,
                seconds=perf_counter() - began,
                sites=sites_of(error),
                kind=kind_of(error),
                reason=reason_of(error),
            )
        return Capture(whole=True, seconds=perf_counter() - began)


def counts(model: torch.nn.Module, inputs: Mapping[str, Any]) -> tuple[GraphCount, ...]:
    """Count the graphs of `model` in both modes, for the report only: `whole_graph` says whether it captures.

    Args:
        model: As for `whole_graph`.
        inputs: Keyword arguments of its `forward`.
    """
    call = CapturedCall((), inputs)
    _run_eagerly(model, call)
    return tuple(_counted(model, snapshot(call), mode) for mode in _MODES)


def snapshot(call: CapturedCall) -> CapturedCall:
    """Return the arguments as they are now: a cache among them changes while the model goes on. Tensors are shared."""
    args, kwargs = tree_map(_kept, (call.args, dict(call.kwargs)))
    return CapturedCall(args, kwargs)


def _kept(value: Any) -> Any:
    if value is None or isinstance(value, (torch.Tensor, torch.nn.Module, bool, int, float, str, torch.dtype)):
        return value
    try:
        return copy.deepcopy(value)
    except TypeError:  # a generator of random numbers, a lock: it cannot be copied
        return value


def _run_eagerly(model: torch.nn.Module, call: CapturedCall) -> None:
    fresh = snapshot(call)
    with torch.no_grad(), random_states_kept():
        model(*fresh.args, **fresh.kwargs)


def _counted(model: torch.nn.Module, call: CapturedCall, mode: str) -> GraphCount:
    with _clean_dynamo(model, _MODES[mode]):
        try:
            explained = dynamo.explain(model)(*call.args, **call.kwargs)
        except Exception as error:  # noqa: BLE001  # a diagnosis that fails is no reason to fail
            return GraphCount(mode, 0, 0, 0, sites_of(error), reason_of(error))
        counter = sum(dynamo.utils.counters["graph_break"].values())
        return GraphCount(mode, explained.graph_count, len(explained.break_reasons), counter, sites_of(explained))


@contextmanager
def _clean_dynamo(model: torch.nn.Module, settings: Mapping[str, bool] = MappingProxyType({})) -> Iterator[None]:
    """Run a block with empty caches and counters, and leave nothing of it: no setting, no random number, no warning.

    A recompile limit that was used up, or a setting that hides errors, would falsify the next attempt.
    """
    marked = "_is_torch_compile" in vars(model)
    counters = {name: Counter(counter) for name, counter in dynamo.utils.counters.items()}
    dynamo.reset()
    dynamo.utils.counters.clear()
    try:
        with (
            warnings.catch_warnings(),
            torch.no_grad(),
            random_states_kept(),
            dynamo.config.patch({"suppress_errors": False, "disable": False, **settings}),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        if not marked:
            # Set by torch.compile on what it returns, which hands it on to the model.
            vars(model).pop("_is_torch_compile", None)
        dynamo.reset()
        dynamo.utils.counters.clear()
        for name, counter in counters.items():
            dynamo.utils.counters[name].update(counter)
