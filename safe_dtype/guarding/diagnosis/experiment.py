"""Run the modules that failed alone, in other dtypes, and see which of them pass."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from ...facts import FLOAT32, Dtype
from ...models.casting import cast, dtypes_of, is_finite
from ...models.recast import main_dtype
from ...numerics import uncompiled
from ...numerics.onednn import is_in_use, onednn_off
from ...processes.handler_exceptions import is_of_a_signal
from ..blame import name_of
from ..callers_autocast import AutocastOverride, CallersAutocast, autocast_around
from ..classify import text_of
from ..state import CALL, Guard, here, torch_dtype
from ..step_snapshot import undone
from .findings import Findings, Trial
from .module_call import CannotRepeatError, ChangeTensor, ModuleCall, what_it_reads
from .pristine import as_it_is
from .veto import is_vetoed
from .weights_in import NoRoomError, weights_in

_PATIENCE = 60.0  # seconds after which no further trial is begun
_HALVES = {torch.bfloat16, torch.float16}
_FLOATS = {torch.float32, *_HALVES}
_COMPILERS = ("torch._dynamo.", "torch._inductor.")
_LONGEST_OUTCOME = 200  # characters


def diagnose(
    guard: Guard, model: nn.Module, calls: Sequence[ModuleCall], error: BaseException, dtypes: Sequence[Dtype]
) -> Findings:
    """Return which dtypes cure `error`, found out on the modules that it passed through.

    Each is run alone: with its inputs in the dtype of its weights, the innermost with oneDNN turned off where that is in
    use, then in each of `dtypes` until one passes, in float32 also without an autocast of the caller's, which narrows what
    it computes in any weights. What has passed counts only where the module fails once more as it is. Where none passes the
    module around it is next.

    Nothing is changed: weights are copies while a module runs, inputs and caches are copies too, states and random
    numbers are brought back, and `error` keeps its traceback and its causes.

    Args:
        guard: The guard of the model. Nobody else runs a step of it meanwhile.
        model: The model.
        calls: The calls that `error` ended, innermost first.
        error: What they raised.
        dtypes: The dtypes that the model may go to, best first.
    """
    bench = _Bench(guard, model, error, autocast_around(model))
    failed: list[Dtype] = []
    dtypes = tuple(dtypes)
    begun = time.monotonic()
    with as_it_is(error), _inside_a_step(guard, model):
        for call in calls:
            if time.monotonic() - begun > _PATIENCE:
                bench.is_conclusive = False
                break
            aligned = _can_align(call) and bench.passes(call, "with aligned inputs", align=True)
            other_kernel = (
                call is calls[0] and not aligned and _asks_onednn(call) and bench.passes_without_onednn(call)
            )
            passed = next((dtype for dtype in dtypes if bench.passes(call, f"in {dtype}", dtype)), None)
            tried = dtypes if passed is None else dtypes[: dtypes.index(passed)]
            failed += [dtype for dtype in tried if dtype not in failed]
            if (aligned or other_kernel or passed is not None) and bench.fails_as_it_is(call):
                after = dtypes[dtypes.index(passed) :] if passed is not None else ()
                return Findings(
                    call.module, after, tried if after else (), aligned, other_kernel,
                    without_autocast=bool(after) and bench.without_autocast, trials=tuple(bench.trials),
                )  # fmt: skip
    return Findings(
        None, (), tuple(failed), is_conclusive=bench.is_conclusive and bool(calls), trials=tuple(bench.trials)
    )


def comes_right_without_onednn(guard: Guard, model: nn.Module, call: ModuleCall) -> bool:
    """Whether a call that has given NaN or Inf gives numbers with oneDNN turned off; nothing is changed by that.

    False where oneDNN has nothing to do with it: for a module on another device, or where it is off.
    """
    if not _asks_onednn(call):
        return False
    with _inside_a_step(guard, model):
        return _Bench(guard, model, RuntimeError()).passes_without_onednn(call)


@dataclass
class _Bench:
    """Runs modules, and notes what came of it."""

    guard: Guard
    model: nn.Module
    error: BaseException
    around: CallersAutocast | None = None
    without_autocast: bool = False  # the latest trial passed by that alone
    trials: list[Trial] = field(default_factory=list)
    is_conclusive: bool = True

    def passes(self, call: ModuleCall, name: str, dtype: Dtype | None = None, *, align: bool = False) -> bool:
        """Whether a module passes in this dtype, or with its inputs in that of its weights."""
        new = torch_dtype(dtype) if dtype is not None else _own_dtype(call.module)
        if new is None:
            return False
        if align:
            former = _FLOATS - {new}
        else:
            former = (_HALVES if dtype == FLOAT32 else {main_dtype(self.model) or new}) - {new}
        change = functools.partial(_cast, former=former, new=new)
        outcome = self._run(call, change, set() if align else former, new)
        self._note(call, name, outcome)
        self.without_autocast = False
        if outcome is not None and dtype == FLOAT32 and self.around is not None:
            with AutocastOverride(self.around, None).on_trial():
                outcome = self._run(call, change, former, new)
            self._note(call, f"{name} without {self.around}", outcome)
            self.without_autocast = outcome is None
        return outcome is None

    def passes_without_onednn(self, call: ModuleCall) -> bool:
        """Whether a module passes as it is, with torch's own kernels."""
        with onednn_off():
            outcome = self._run(call, lambda tensor: tensor.detach().clone(), set(), None)
        self._note(call, "without oneDNN", outcome)
        return outcome is None

    def fails_as_it_is(self, call: ModuleCall) -> bool:
        """Whether a module fails once more, with nothing changed: else it is not the dtype that made the difference."""
        outcome = self._run(call, lambda tensor: tensor.detach().clone(), set(), None)
        self._note(call, "as it is", outcome)
        return isinstance(outcome, Exception) and (type(outcome) is type(self.error) or is_of_a_compiler(self.error))

    def _note(self, call: ModuleCall, name: str, outcome: Exception | str | None) -> None:
        text = f"{type(outcome).__name__}: {text_of(outcome)}" if isinstance(outcome, Exception) else outcome
        line = (text or "passed").partition("\n")[0]
        if len(line) > _LONGEST_OUTCOME:
            line = line[: _LONGEST_OUTCOME - 1] + "…"
        self.trials.append(Trial(name, name_of(self.model, call.module), line))

    def _run(
        self, call: ModuleCall, change: ChangeTensor, former: set[torch.dtype], new: torch.dtype | None
    ) -> Exception | str | None:
        """Return what a module raises, or why it could not be run or trusted; None where all is well."""
        try:
            args, kwargs = call.inputs(change)
            with undone(call.module), torch.no_grad(), uncompiled():
                if not former or new is None:
                    output = call.run(*args, **kwargs)
                else:
                    with weights_in(call.module, former, new):
                        output = call.run(*args, **kwargs)
            if not is_finite(_results(output)) and is_finite(what_it_reads(call.module, [args, kwargs])):
                return "NaN or Inf"
        except (CannotRepeatError, NoRoomError) as exc:
            self.is_conclusive = False
            return str(exc)
        except Exception as exc:
            if is_of_a_signal(exc):
                raise
            self.is_conclusive = self.is_conclusive and not is_vetoed(exc)
            return exc
        return None


@contextmanager
def _inside_a_step(guard: Guard, model: nn.Module) -> Iterator[None]:
    """Have everything that runs count as a part of a step: models inside of the model, and methods that call it."""
    around = here.running
    here.running = (*around, (guard, model, CALL))
    try:
        yield
    finally:
        here.running = around


def _asks_onednn(call: ModuleCall) -> bool:
    return is_in_use() and all(weight.device.type == "cpu" for weight in call.module.parameters())


def is_of_a_compiler(error: BaseException) -> bool:
    """Whether a compiler raised `error` in place of what the module itself raises."""
    if any(base.__name__ == "TorchDynamoException" for base in type(error).__mro__):
        return True
    trace, name = error.__traceback__, ""
    while trace is not None:
        name = str(trace.tb_frame.f_globals.get("__name__"))
        trace = trace.tb_next
    return name.startswith(_COMPILERS)  # one of its assertions


def _can_align(call: ModuleCall) -> bool:
    own = _own_dtype(call.module)
    return own is not None and bool(dtypes_of([call.args, call.kwargs]) & (_FLOATS - {own}))


def _own_dtype(module: nn.Module) -> torch.dtype | None:
    dtypes = _own_dtypes(module)
    return next(iter(dtypes)) if len(dtypes) == 1 else None


def _own_dtypes(module: nn.Module) -> set[torch.dtype]:
    return {weight.dtype for weight in module.parameters() if weight.is_floating_point()} & _FLOATS


def _cast(tensor: torch.Tensor, former: set[torch.dtype], new: torch.dtype) -> torch.Tensor:
    changed: torch.Tensor = cast(tensor.detach(), former, new)
    return changed.clone() if changed.data_ptr() == tensor.data_ptr() else changed


def _results(output: Any) -> Any:
    # A cache in it may hold what an earlier step spoiled.
    if isinstance(output, dict):
        return {name: value for name, value in output.items() if "past" not in name}
    return output
