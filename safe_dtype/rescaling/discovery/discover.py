"""The exact rescalings of a model's architecture: discovered and proved on a tiny twin, then transferred."""

from __future__ import annotations

import hashlib
import inspect
import json
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from ...facts import Gauge, gauge_from_dict, gauge_to_dict
from ...store import recall, remember
from ...store.typed import listed
from .embedding_scale import embedding_gauges
from .interior import interior_gauges
from .jacobian import System, system_of
from .knobs import knobs_of
from .proof import Proof, Prover
from .residual import obstacles, residual_gauge
from .trace import Stack, Trace, trace, unchanged
from .transfer import TransferError, transfer
from .twin import Twin, TwinError, make_twin, run_twin
from .unused_weights import completed, idle_parts, idle_weights, never_run

logger = logging.getLogger(__name__)

# What modelling code raises, in a run or in the derivative of one.
_FAILURES = (
    ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, NotImplementedError, OSError,
    RuntimeError, TypeError, ValueError,
)  # fmt: skip
_NOT_OF_THE_ARCHITECTURE = ("_name_or_path", "dtype", "torch_dtype", "transformers_version")
_CACHE = 3  # another number where what is found becomes different


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
    proved: tuple[Proved, ...]  # good ones: first those of hidden states
    problems: tuple[str, ...]
    not_run: tuple[str, ...] = ()  # modules that the twin's inputs do not reach
    trivial: bool = False  # every hidden state is what a norm returns: none grows from block to block


@dataclass(frozen=True, slots=True)
class Found:
    """The exact rescalings of a model."""

    gauges: tuple[Gauge, ...]  # first those of hidden states, then those inside of blocks
    problem: str = ""  # why there are not more, where there are not
    not_run: tuple[str, ...] = ()  # modules that the twin's inputs do not reach: with theirs, nothing is proved


def gauges_for(model: PreTrainedModel) -> Found:
    """Return the exact rescalings of `model`, by names of its own; remembered on disk.

    Only its class, its config, and names and shapes of its parameters are looked at; it may be on the meta device.
    """
    if not isinstance(model, PreTrainedModel):
        return Found((), f"{type(model).__name__} is no model of transformers")
    key = _key(model)
    if key is None:
        return Found((), f"{type(model).__name__} is not written in a file")
    if (discovery := recall(key, _from_dict)) is not None:
        return discovery
    discovery = _find(model)
    gauges = [gauge_to_dict(one) for one in discovery.gauges]
    remember(key, {"gauges": gauges, "problem": discovery.problem, "not_run": discovery.not_run})
    return discovery


def discover(twin: Twin) -> Discovery:
    """Return the exact rescalings of a twin, proved."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # over numbers for which tensors stand, of what is never trained
        return _discover(twin)


def _discover(twin: Twin) -> Discovery:
    traced = trace(twin.model, twin.batches)
    if not traced.stacks:
        return Discovery(traced, (), ("it has no stack of blocks that hand a hidden state on",))
    system = system_of(twin, knobs_of(twin.model, traced, twin.batches[0]), traced.stacks)
    idle = idle_weights(system)
    unknown = [name for stack in traced.stacks for name in never_run(stack, idle, traced, twin.model)]
    if unknown and (wider := _with_encoder_states(twin, unknown[0])) is not None:
        return _discover(wider)
    prover = Prover(twin, [block for stack in traced.stacks for block in stack.blocks])
    proved: list[Proved] = []
    problems: list[str] = []
    for outcome in _residuals(twin.model, traced, system, prover):
        if isinstance(outcome, Proved) and outcome.is_good:
            proved += [outcome, *_before(outcome, twin, prover)]
        else:
            problems.append(
                outcome if isinstance(outcome, str) else f"{outcome.gauge.name}: {_not_good(outcome.proof)}"
            )
    for gauge in interior_gauges(twin, system, traced):
        whole = completed(gauge, traced.stacks, idle, twin.model)
        inside = Proved(whole, prover.prove(whole))
        if inside.is_good:
            proved.append(inside)
        else:
            logger.info("%s of %s: %s", gauge.name, type(twin.model).__name__, _not_good(inside.proof))
    not_run = idle_parts(traced, idle, twin.model)
    trivial = all(stack.normalised for stack in traced.stacks)
    return Discovery(traced, tuple(proved), tuple(problems), not_run, trivial)


def _residuals(model: nn.Module, traced: Trace, system: System, prover: Prover) -> Iterator[Proved | str]:
    """Yield the gauge of every stack with its proof, or why there is none."""
    idle = idle_weights(system)
    for stack, name in zip(traced.stacks, _names(traced.stacks), strict=True):
        if stack.normalised:
            continue
        if unknown := never_run(stack, idle, traced, model):
            yield f"{name}: nobody knows what {unknown[0]} does, for it does not run on the twin's inputs"
        elif (gauge := residual_gauge(system, stack, name)) is None:
            yield f"{name}: {_no_gauge(system, stack, model)}"
        else:
            whole = completed(gauge, traced.stacks, idle, model)
            yield Proved(whole, prover.prove(whole, blocks=stack.blocks), stack)


def _before(residual: Proved, twin: Twin, prover: Prover) -> Iterator[Proved]:
    """Yield the gauge of what the embeddings are multiplied by before a rescaled stack, if there is one."""
    name = residual.gauge.name.replace("residual", "embedding scale")
    blocks = residual.stack.blocks if residual.stack is not None else ()
    for gauge in embedding_gauges(twin.model, blocks[0], name, twin.batches) if blocks else ():
        scaled = Proved(gauge, prover.prove(gauge))
        if scaled.is_good:
            yield scaled
            return


def _with_encoder_states(twin: Twin, unused: str) -> Twin | None:
    """Return the twin of a decoder with something to attend to in most of its batches; None where it takes nothing.

    Args:
        twin: It was given nothing.
        unused: The name of a module in it that did not run: what reads the states of an encoder, if it takes them.
    """
    taken = inspect.signature(twin.model.forward).parameters
    if twin.model.config.is_encoder_decoder:
        return None
    name = next((one for one in ("encoder_hidden_states", "encoder_outputs") if one in taken), None)
    weight = getattr(twin.model.get_submodule(unused), "weight", None)
    if name is None or name in twin.batches[0] or not isinstance(weight, torch.Tensor) or weight.dim() != 2:
        return None
    random = torch.Generator().manual_seed(1)
    shape = (2, 8, weight.shape[1]) if name == "encoder_hidden_states" else (1, 2, 8, weight.shape[1])
    states = [torch.randn(shape, generator=random, dtype=torch.float64) for _ in twin.batches[:-1]]
    with_states = [{**batch, name: one} for batch, one in zip(twin.batches, states, strict=False)]
    try:
        with torch.no_grad(), unchanged(twin.model):
            run_twin(twin.model, with_states[0])
    except _FAILURES:
        return None
    return Twin(twin.model, (*with_states, twin.batches[-1]))


def _no_gauge(system: System, stack: Stack, model: nn.Module) -> str:
    kinds = dict.fromkeys(type(model.get_submodule(block)).__name__ for block in obstacles(system, stack))
    return f"nothing makes up for a smaller hidden state in {', '.join(kinds) or ' and '.join(stack.lists)}"


def _not_good(proof: Proof) -> str:
    return proof.problem or f"only {proof.covered} of {proof.blocks} blocks return less"


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
        with _on_cpu(), torch.inference_mode(mode=False), torch.autocast("cpu", enabled=False):
            twin = make_twin(type(model), model.config)
            discovery = discover(twin)
    except TwinError as exc:
        return Found((), str(exc))
    except _FAILURES as exc:
        return Found((), f"the twin of {type(model).__name__} cannot be analysed: {type(exc).__name__}: {exc}")
    gauges: list[Gauge] = []
    problems = list(discovery.problems)
    for proved in discovery.proved:
        real = fitted(proved, discovery.traced, twin.model, model)
        if isinstance(real, Gauge):
            gauges.append(real)
        elif proved.stack is not None:
            problems.append(real)
        else:
            logger.info("%s: %s", type(model).__name__, real)
    if discovery.trivial:
        problems.append("every block ends in a norm, so that its hidden states do not grow")
    if discovery.not_run:
        problems.append(f"nothing is proved with inputs for {', '.join(discovery.not_run)}")
    return Found(tuple(gauges), "; ".join(problems), discovery.not_run)


def _on_cpu() -> AbstractContextManager[object]:
    # A device context costs something for every operation. Of one around this call get_default_device of torch 2.6 knows nothing.
    return nullcontext() if torch.empty(0).device.type == "cpu" else torch.device("cpu")


def fitted(proved: Proved, traced: Trace, twin: PreTrainedModel, model: PreTrainedModel) -> Gauge | str:
    """Return the gauge of the real model, or why it has none like it."""
    in_rows = any(move.rows is not None and twin.get_parameter(move.target).dim() <= 2 for move in proved.gauge.moves)
    if in_rows and _one_head_for_several(twin.config, model.config):
        return f"{proved.gauge.name}: nobody knows how the rows of several heads lie"
    try:
        return transfer(proved.gauge, traced.stacks, twin, model, whole=proved.stack is not None)
    except TransferError as exc:
        return f"{proved.gauge.name}: {exc.reason}"


def _one_head_for_several(tiny: PretrainedConfig, real: PretrainedConfig) -> bool:
    """Whether the tiny config has one head of a sort, keys and values say, of which the real one has several."""
    of_tiny, of_real = (vars(config.get_text_config(decoder=True)) for config in (tiny, real))
    return any(
        "head" in key and "dim" not in key and value == 1 and isinstance(of_real.get(key), int) and of_real[key] > 1
        for key, value in of_tiny.items()
    )


def _key(model: PreTrainedModel) -> dict[str, Any] | None:
    """Return everything that what is found depends on."""
    try:
        source = Path(inspect.getfile(type(model))).read_bytes()
    except (OSError, TypeError):
        return None
    values = {name: value for name, value in model.config.to_dict().items() if name not in _NOT_OF_THE_ARCHITECTURE}
    config = json.dumps(values, sort_keys=True, default=str)
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
    gauges = tuple(gauge_from_dict(one) for one in listed(values["gauges"]))
    return Found(gauges, str(values["problem"]), listed(values["not_run"]))
