"""The exact rescalings of a model's architecture: discovered and proved on a tiny twin, then transferred."""

from __future__ import annotations

import hashlib
import inspect
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import PreTrainedModel

from ..devices.cache import recall, remember
from ..gauges import Gauge, gauge_from_dict, gauge_to_dict
from .interior import interior_gauges
from .jacobian import System, system_of
from .knobs import knobs_of
from .proof import Proof, Prover
from .residual import never_run, obstacles, residual_gauge
from .trace import Stack, Trace, trace
from .transfer import TransferError, transfer
from .twin import Twin, TwinError, make_twin

logger = logging.getLogger(__name__)

# What modelling code raises, in a run or in the derivative of one.
_FAILURES = (
    ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, NotImplementedError, OSError,
    RuntimeError, TypeError, ValueError,
)  # fmt: skip
_CACHE = 1  # another number where what is found becomes different


@dataclass(frozen=True, slots=True)
class Proved:
    """A gauge of a twin, and its proof."""

    gauge: Gauge
    proof: Proof
    stack: Stack | None = None  # whose hidden state becomes smaller, None if none does

    @property
    def is_good(self) -> bool:
        """Whether it is exact, and makes smaller what it is for in every block."""
        return self.proof.exact and (self.stack is None or self.proof.coverage == "all")


@dataclass(frozen=True, slots=True)
class Discovery:
    """What was found out about an architecture on its twin."""

    traced: Trace
    proved: tuple[Proved, ...]
    problems: tuple[str, ...]
    trivial: bool = False  # every hidden state is what a norm returns: none grows from block to block


@dataclass(frozen=True, slots=True)
class Found:
    """The exact rescalings of a model."""

    gauges: tuple[Gauge, ...]  # first those of hidden states, then those inside of blocks
    problem: str = ""  # why there are not more, where there are not


def gauges_for(model: PreTrainedModel) -> Found:
    """Return the exact rescalings of `model`, by names of its own; remembered on disk.

    Only its class, its config, and names and shapes of its parameters are looked at; it may be on the meta device.
    """
    key = _key(model)
    if key is None:
        return Found((), f"{type(model).__name__} is not written in a file")
    if (found := recall(key, _from_dict)) is not None:
        return found
    found = _find(model)
    remember(key, {"gauges": [gauge_to_dict(one) for one in found.gauges], "problem": found.problem})
    return found


def discover(twin: Twin) -> Discovery:
    """Return the exact rescalings of a twin, proved."""
    traced = trace(twin.model, twin.batches[0])
    if not traced.stacks:
        return Discovery(traced, (), ("it has no stack of blocks that hand a hidden state on",))
    knobs = knobs_of(twin.model, traced, twin.batches[0])
    system = system_of(twin, knobs, traced.stacks)
    prover = Prover(twin, [block for stack in traced.stacks for block in stack.blocks])
    proved: list[Proved] = []
    problems: list[str] = []
    for stack, name in zip(traced.stacks, _names(traced.stacks), strict=True):
        if stack.normalised:
            continue
        found = _residual(system, stack, name, traced, prover, twin)
        if isinstance(found, str):
            problems.append(f"{name}: {found}")
        else:
            proved.append(found)
    for gauge in interior_gauges(twin, system, traced.stacks, traced.order):
        one = Proved(gauge, prover.prove(gauge))
        proved.append(one)
        if not one.is_good:
            logger.info("%s of %s: %s", gauge.name, type(twin.model).__name__, one.proof.problem)
    return Discovery(traced, tuple(proved), tuple(problems), all(stack.normalised for stack in traced.stacks))


def _residual(system: System, stack: Stack, name: str, traced: Trace, prover: Prover, twin: Twin) -> Proved | str:
    """Return the proved gauge of a stack, or why there is none."""
    if idle := never_run(system, stack, traced, twin.model):
        return f"nobody knows what {idle[0]} does, which its inputs do not reach"
    gauge = residual_gauge(system, stack, name, twin.model)
    if gauge is None:
        blocks = obstacles(system, stack)
        kinds = dict.fromkeys(type(twin.model.get_submodule(block)).__name__ for block in blocks)
        return f"nothing makes up for a smaller hidden state in {', '.join(kinds) or ' and '.join(stack.lists)}"
    found = Proved(gauge, prover.prove(gauge, blocks=stack.blocks), stack)
    if found.is_good:
        return found
    return found.proof.problem or f"only {found.proof.covered} of {found.proof.blocks} blocks return less"


def _names(stacks: Sequence[Stack]) -> list[str]:
    if len(stacks) == 1:
        return ["residual"]
    words = [
        next((part for part in stack.lists[0].split(".") if part in ("encoder", "decoder")), "") for stack in stacks
    ]
    if len(set(words)) < len(stacks) or not all(words):
        words = [" and ".join(stack.lists) for stack in stacks]
    return [f"{word} residual" for word in words]


def _find(model: PreTrainedModel) -> Found:
    try:
        # Whatever the caller is in the midst of: loading onto another device, inference, a mixed-precision block.
        with torch.device("cpu"), torch.inference_mode(mode=False), torch.autocast("cpu", enabled=False):
            twin = make_twin(type(model), model.config)
            found = discover(twin)
    except TwinError as exc:
        return Found((), str(exc))
    except _FAILURES as exc:
        return Found((), f"the twin of {type(model).__name__} cannot be analysed: {type(exc).__name__}: {exc}")
    gauges: list[Gauge] = []
    problems = list(found.problems)
    for one in found.proved:
        if not one.is_good:
            continue
        try:
            gauges.append(transfer(one.gauge, found.traced.stacks, twin.model, model, whole=one.stack is not None))
        except TransferError as exc:
            problems.append(f"{one.gauge.name}: {exc.reason}")
    if found.trivial:
        problems.append("every block ends in a norm, so that its hidden states do not grow")
    if idle := _idle_parts(twin.model, found.traced):
        problems.append(f"not proved with inputs for {', '.join(idle)}, which are not used for text")
    return Found(tuple(gauges), "; ".join(problems))


def _idle_parts(model: nn.Module, traced: Trace) -> tuple[str, ...]:
    """Return the outermost modules with matrices of which nothing ran."""
    used = {id(one) for name in traced.order for one in model.get_submodule(name).parameters(recurse=False)}
    found: list[str] = []
    for name, module in model.named_modules():
        matrices = [one for one in module.parameters() if one.dim() > 1]
        inside = any(name.startswith(f"{other}.") for other in (*found, *traced.order))
        if matrices and not inside and not any(id(one) in used for one in module.parameters()):
            found.append(name)
    return tuple(found)


def _key(model: PreTrainedModel) -> dict[str, Any] | None:
    """Return everything that what is found depends on."""
    try:
        source = Path(inspect.getfile(type(model))).read_bytes()
    except (OSError, TypeError):
        return None
    config = json.dumps(model.config.to_dict(), sort_keys=True, default=str)
    shapes = json.dumps([(name, list(one.shape)) for name, one in model.named_parameters()])
    return {
        "gauges": _CACHE,
        "class": f"{type(model).__module__}.{type(model).__qualname__}",
        "source": hashlib.sha256(source).hexdigest(),
        "config": hashlib.sha256(config.encode()).hexdigest(),
        "shapes": hashlib.sha256(shapes.encode()).hexdigest(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def _from_dict(values: Mapping[str, Any]) -> Found:
    return Found(tuple(gauge_from_dict(one) for one in values["gauges"]), str(values["problem"]))
