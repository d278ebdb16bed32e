"""Numbers that are the model's own: NaN or Inf that float32 gives as well, at the same places.

A softmax over a row that is masked from end to end is NaN in every dtype, and so is the mean of nothing. No remedy helps
there, and none is wanted: the caller gets what plain transformers gives.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache

from ...facts import FLOAT32
from ...models.casting import is_finite
from ...numerics import in_storage_dtype
from ...processes.handler_exceptions import is_of_a_signal
from ...verifying.output_kinds import MASKED
from ...verifying.reference import digest
from ..blame import Blame, module_spoiling, name_of
from ..output_checks import numbers_of, spoiled_rows
from ..recover import TriedRemedies
from ..state import Guard, here
from ..step_snapshot import undone
from .experiment import comes_right_without_onednn
from .module_call import FinishedCall, ModuleCall, finished_calls
from .trouble import Call, Recovery, StepResult
from .weights_in import weights_in

logger = logging.getLogger(__name__)

_HALVES = {torch.bfloat16, torch.float16}
_COMPARABLE = (Tensor, bool, int, float, str, type(None))
_MOST_STEPS = 64  # that are remembered
_MOST_ELEMENTS = 2**22  # of inputs that are compared


def without_own_values(model: nn.Module, call: Call, output: Any) -> tuple[Blame, Recovery | None]:
    """Return the module that makes the first NaN or Inf of a step; and the step made anew, where they are the model's own.

    That module is run alone in float32, and where float32 mends nothing there, the whole step is: its result decides. The
    weights are copies, module by module where they are large, and the state is in the end what it is after one step.

    Args:
        model: The guarded model.
        call: The step, rolled back.
        output: What it returned.
    """
    guard = call.guard
    answers: list[bool | None] = []

    def ask(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], returned: Any) -> None:
        answers.append(float32_agrees(FinishedCall(ModuleCall(module, args, kwargs), returned)))

    if guard.dtype() == FLOAT32:
        return module_spoiling(model, call.run), None
    blame = module_spoiling(model, call.run, ask)
    is_mended = False in answers
    # Where the dtype may change, the changed model shows what comes of the whole step; in strict mode only a trial can.
    if (is_mended and guard.policy.mode != "strict") or not call.snapshot.roll_back():
        return blame, None
    step = FinishedCall(ModuleCall(call.module, call.args, call.kwargs, call.entry), output)
    if not (answers == [True] and blame.module is call.module) and float32_agrees(step, model) is not True:
        return blame, None
    if not call.snapshot.roll_back() or _is_of_a_kernel(guard, model, blame):
        return blame, None
    own = None if is_mended else blame.module
    if is_mended:
        _mention_whole(guard, model)
    else:
        _mention(guard, name_of(model, own))
    watched = (own,) if own is not None else ()
    with finished_calls(watched) as calls:
        repeated = call.forward(*call.args, **call.kwargs)
    _remember(guard, _digest(guard, call, repeated))
    _remember_states(call)
    if watched and watched[0] not in guard.own_modules and explains(calls, repeated):
        guard.own_modules = (*guard.own_modules, *watched)
    return blame, Recovery(StepResult.PASSED, repeated)


def _is_of_a_kernel(guard: Guard, model: nn.Module, blame: Blame) -> bool:
    """Whether the module that made the first NaN or Inf makes none with oneDNN turned off, whose kernels fail in any dtype."""
    call = ModuleCall(*blame.calls[0]) if blame.calls else None
    return (
        call is not None
        and call.module is blame.module
        and is_finite([call.args, call.kwargs])  # NaN from a mask of -Inf is no kernel's
        and comes_right_without_onednn(guard, model, call)
    )


def is_known_to_be_own(call: Call, calls: Sequence[FinishedCall], output: Any) -> bool:
    """Whether what is no number in the output of a step was found to be the model's own before; no step is run for it.

    Known are a step with the same inputs and the same rows, and rows that a module spoils which was found to do so in
    float32 too: that is asked again of the module alone.

    Args:
        call: The step.
        calls: The calls in it of `guard.own_modules`.
        output: What it returned.
    """
    guard = call.guard
    if (
        guard.own_steps
        and {_digest(guard, call, output), _digest(guard, call, output, of_all=False)} & guard.own_steps
    ) or (calls and explains(calls, output)):
        _remember_states(call)
        return True
    return False


def has_own_states(call: Call) -> bool:
    """Whether a step goes on from states in which an earlier one has left NaN or Inf of the model's own, and no others."""
    return "own" in call.guard.mentioned and all(
        cache in call.guard.own_caches or is_finite(cache) for cache in call.caches
    )


def float32_agrees(finished: FinishedCall, part: nn.Module | None = None) -> bool | None:
    """Whether float32 gives no number either, wherever the output of a call holds none.

    The call is repeated with its inputs and the weights of `part` in float32, the weights as copies; everything that it
    changes is brought back. None: it cannot be repeated so, or the weights themselves are no numbers.

    Args:
        finished: The call of a module, or of the whole model.
        part: What to widen, with the state as it was before the call; by default the module, after it.
    """
    call = finished.call
    if part is None and any(isinstance(value, Cache) for value in (*call.args, *call.kwargs.values())):
        return None  # it has grown by this very call
    part = call.module if part is None else part  # what torch.compile wraps has no truth value
    wide = _in_float32(call, part)
    if wide is None:
        return None
    agrees = _has_no_more_numbers(wide[0], finished.output)
    return agrees if not agrees or is_finite(list(part.parameters())) else None


def spoils_other_items(call: Call, output: Any) -> bool:
    """Whether a call has spoiled items of its batch beside those in which the caller gave NaN or Inf.

    False where this does not show: where the tensors are not of one length, or a generation is running.
    """
    tensors = [value for value in call.tensors if not is_finite(value)]
    rows = list(spoiled_rows(numbers_of(output)).values())
    if id(call.guard) in here.nets or call.guard.dtype() == FLOAT32 or not is_finite(call.caches):
        return False
    if not all(isinstance(value, Tensor) and value.dim() for value in (*tensors, *rows)):
        return False
    if not tensors or len({len(value) for value in (*tensors, *rows)}) != 1:
        return False
    poisoned = [~(value.detach().reshape(len(value), -1).amax(1) < torch.inf) for value in tensors]
    spoiled = [row.reshape(len(row), -1).any(1) for row in rows]
    return bool((_any(spoiled) & ~_any(poisoned)).any())


def _any(items: list[Tensor]) -> Tensor:
    return torch.stack([item.cpu() for item in items]).any(0)


def explains(calls: Sequence[FinishedCall], output: Any) -> bool:
    """Whether every row of `output` that is no number is one that a call has spoiled, and not for its dtype.

    Rows are those along the last dimension; a row of a module is one of the results where the shapes before it are equal.
    """
    own: dict[torch.Size, Tensor] = {}
    for finished in calls:
        spoiled = spoiled_rows(numbers_of(finished.output))
        if not spoiled or not is_finite([finished.call.args, finished.call.kwargs]):
            continue
        if float32_agrees(finished) is not True:
            return False
        for rows in spoiled.values():
            on_cpu = rows.cpu()
            own[rows.shape] = own[rows.shape] | on_cpu if rows.shape in own else on_cpu
    results = spoiled_rows(numbers_of(output))
    return bool(results) and all(
        rows.shape in own and not bool((rows.cpu() & ~own[rows.shape]).any()) for rows in results.values()
    )


def stays_in_float32(tried: TriedRemedies, output: Any) -> bool:
    """Whether `output`, of the last attempt, holds no number either where that of the first held none."""
    rows = spoiled_rows(numbers_of(output))
    return all(
        name in rows
        and rows[name].shape == spoiled.shape
        and not bool((spoiled & ~rows[name].to(spoiled.device)).any())
        for name, spoiled in tried.rows.items()
    )


def remember_own_step(call: Call, output: Any) -> None:
    """Have the next step with the same masks, ids and lengths, and the same rows spoiled, count as the model's own.

    For a model that could not be tried in float32 but by changing it: nobody wants that at every step.
    """
    _mention(call.guard, None)
    _remember(call.guard, _digest(call.guard, call, output, of_all=False))
    _remember_states(call)


def _remember_states(call: Call) -> None:
    call.guard.own_caches.update(cache for cache in call.caches if not is_finite(cache))


def _mention(guard: Guard, module: str | None) -> None:
    if "own" not in guard.mentioned:
        guard.mentioned.add("own")
        logger.info(
            "NaN or Inf from %s, and in float32 as well: handed on, the dtype is not to blame", module or "a step"
        )


def _mention_whole(guard: Guard, model: nn.Module) -> None:
    """Log, once a model, that float32 mends the module that failed first, and not the results."""
    if "own" not in guard.mentioned:
        guard.mentioned.add("own")
        logger.warning(
            "NaN or Inf in the results of %s comes in float32 as well: handed on, and nothing was changed. Next: look at "
            "its weights and its inputs", type(model).__name__,
        )  # fmt: skip


def _remember(guard: Guard, known: str | None) -> None:
    if known is not None:
        if len(guard.own_steps) >= _MOST_STEPS:
            guard.own_steps.clear()
        guard.own_steps.add(known)


def _digest(guard: Guard, call: Call, output: Any, *, of_all: bool = True) -> str | None:
    """Return a digest of a step's inputs, of the rows that it spoiled, and of the weights by what a write changes in them.

    None: its inputs are large, or of a kind that cannot be compared. Without `of_all` floating inputs are left out.
    """
    model = guard.model()
    inputs = [*((str(number), value) for number, value in enumerate(call.args)), *call.kwargs.items()]
    numel = sum(value.numel() for _, value in inputs if isinstance(value, Tensor))
    if model is None or numel > _MOST_ELEMENTS or not all(isinstance(value, _COMPARABLE) for _, value in inputs):
        return None
    weights = [
        (weight.data_ptr(), -1 if weight.is_inference() else weight._version)
        for weight in model.parameters()
        if not weight.is_meta
    ]
    if not of_all:
        inputs = [
            (name, value) for name, value in inputs if not (isinstance(value, Tensor) and value.is_floating_point())
        ]
    rows = [(f"rows of {name}", rows) for name, rows in spoiled_rows(numbers_of(output)).items()]
    return digest(
        [*inputs, *rows, ("entry", call.entry), ("class", type(call.module)), ("weights", weights), ("all", of_all)]
    )


def _in_float32(call: ModuleCall, part: nn.Module) -> tuple[Any] | None:
    try:
        with ExitStack() as stack:
            stack.enter_context(undone(part, call.args, call.kwargs))
            args, kwargs = call.inputs(_widened)
            for context in (torch.no_grad(), torch.compiler.set_stance("force_eager"), in_storage_dtype()):
                stack.enter_context(context)
            for device_type in {weight.device.type for weight in part.parameters()} - {"meta"}:
                stack.enter_context(torch.autocast(device_type, enabled=False))
            stack.enter_context(weights_in(part, _HALVES, torch.float32))
            return (call.run(*args, **kwargs),)
    except Exception as exc:
        if is_of_a_signal(exc):
            raise
        return None


def _widened(tensor: Tensor) -> Tensor:
    return tensor.detach().float() if tensor.dtype in _HALVES else tensor.detach().clone()


def _has_no_more_numbers(wide: Any, output: Any) -> bool:
    """Whether `wide` is no number wherever `output` is none."""
    narrow, answers = numbers_of(output), dict(numbers_of(wide))
    return bool(narrow) and all(
        name in answers and answers[name].shape == tensor.shape and _is_no_number_there(tensor, answers[name])
        for name, tensor in narrow
    )


def _is_no_number_there(tensor: Tensor, wide: Tensor) -> bool:
    # What masks one range to its end is -Inf in another.
    neither = ~wide.isfinite() | ((tensor == -torch.inf) & (wide < MASKED))
    return not bool((~tensor.isfinite() & ~neither.to(tensor.device)).any())
