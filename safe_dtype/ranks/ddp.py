"""A rank that failed under DistributedDataParallel runs the collectives that it owes, so that nobody waits for it.

Where forward or backward raises on one rank, the others still enter the broadcasts and all-reduces of theirs. The rank
that failed runs as many, with NaN as gradients: all come to the vote that follows, and none of them steps. How many it
owes is read from the number that torch counts its collectives by; a failure-free step costs two such reads, and the
hook for gradients, which DDP has a single place for, is left to the user.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ..errors import TrainingLoopError
from .schedule import OutOfStepError


@dataclass(slots=True)
class _Pass:
    """One forward pass of this rank, and the collectives of the backward pass that belongs to it."""

    syncs: bool  # gradients are reduced: not under `no_sync`, and not without gradients
    has_gradients: bool  # `torch.is_grad_enabled()`
    first: int  # number of the first collective after those of forward
    learns: bool  # the first of a static graph: everything is reduced at the end, and which parameters are used before
    has_ended: bool = False


@dataclass(frozen=True, slots=True)
class _Shape:
    """What one pass of an earlier window ran: the passes of a window are alike from window to window."""

    syncs: bool
    has_gradients: bool
    reduces: bool  # its backward pass has reduced gradients, before the next pass began


class DdpSchedule:
    """The collectives of one DistributedDataParallel, window by window.

    A window has any number of passes without reduction (under `no_sync`) and then one with it, unless an earlier window
    has shown another order.
    """

    def __init__(self, ddp: DistributedDataParallel) -> None:
        self._ddp: Any = ddp  # most of what is asked of it has no types
        self._hook = _CountedHook.put_into(ddp)
        self._passes: list[_Pass] = []
        self._shapes: tuple[_Shape, ...] = ()  # of the last window that was whole
        self._syncs_at_first = True
        self._learns = False
        self.problem = _problem(ddp)

    def sees(self, batches: Iterable[Any]) -> None:
        """Nothing depends on them."""

    def around(self) -> AbstractContextManager[Any]:
        """Return nothing: what fails raises."""
        return nullcontext()

    def begin(self) -> None:
        """Watch the passes of a window from here.

        Raises:
            TrainingLoopError: If the model is in `join()`: nobody votes for a rank that has run out of data.
        """
        if self._ddp._join_config.enable:
            raise TrainingLoopError(
                "under `join()` ranks that have run out of data do not vote, and the others would wait"
            )
        self._passes.clear()
        self._syncs_at_first = self._ddp.require_forward_param_sync
        self._learns = self._ddp.static_graph and not self._ddp._static_graph_delay_allreduce_enqueued
        # Wrapped for a window alone, and not hooked: hooks would get into what torch.compile makes of the module.
        ddp = self._ddp
        ddp._pre_forward, ddp._post_forward = self._before(ddp._pre_forward), self._after(ddp._post_forward)

    def end(self, *, is_whole: bool) -> None:
        """Stop to watch. A whole window shows what the next one will run."""
        for name in ("_pre_forward", "_post_forward"):
            self._ddp.__dict__.pop(name, None)
        if is_whole and self._passes:
            self._shapes = tuple(self._shape(place) for place in range(len(self._passes)))

    def hidden_error(self) -> None:
        """Return nothing: what fails comes out."""

    def keep(self, error: BaseException) -> None:
        """Run what this rank owes the others until the end of the window, with NaN as its gradients.

        Raises:
            OutOfStepError: If that is not possible: the others wait until this process ends.
        """
        if self.problem is not None:
            raise OutOfStepError(self.problem)
        if not self._passes:
            shape = self._shapes[0] if self._shapes else _Shape(syncs=True, has_gradients=True, reduces=True)
            self._begin_pass(shape)
        now, place = self._passes[-1], len(self._passes) - 1
        if not now.has_ended:
            self._end_pass(now)
        known = self._shapes[place] if place < len(self._shapes) else None
        is_alike = known is not None and known.syncs == now.syncs
        following = self._shapes[place + 1 :] if is_alike else ()
        reduces = known.reduces if known is not None and is_alike else now.syncs
        if reduces:
            self._reduce(now, self._issued(now), error)
        elif not any(shape.reduces for shape in following):
            following = (_Shape(syncs=True, has_gradients=True, reduces=True),)
        for shape in following:
            self._forget_pass(has_reduced=reduces)
            now = self._begin_pass(shape)
            self._end_pass(now)
            if reduces := shape.reduces:
                self._reduce(now, 0, error)

    def reset(self) -> None:
        """Have the next pass begin as if none had failed. Every rank has to call it, after the vote."""
        # Of the failed pass nothing may be under way: it would write NaN into the next one's gradients.
        dist.barrier(group=self._ddp.process_group)
        if any(now.learns for now in self._passes):
            _make_reducer(self._ddp)  # what it has learned from a first pass that failed cannot be taken back
        else:
            self._ddp._update_process_group(self._ddp.process_group)
        self._ddp.require_forward_param_sync = self._syncs_at_first
        self._hook.forget()

    def _before(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def _pre_forward(*args: Any, **kwargs: Any) -> Any:
            moved = original(*args, **kwargs)
            self._note_pass(torch.is_grad_enabled(), self._ddp.require_backward_grad_sync)
            return moved

        return _pre_forward

    def _after(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def _post_forward(output: Any) -> Any:
            result = original(output)
            self._passes[-1].has_ended = True
            return result

        return _post_forward

    def _note_pass(self, has_gradients: bool, syncs: bool) -> _Pass:  # noqa: FBT001  (two facts, in torch's order)
        learns, self._learns = self._learns and has_gradients, False
        self._passes.append(_Pass((has_gradients and syncs) or learns, has_gradients, self._hook.count(), learns))
        return self._passes[-1]

    def _begin_pass(self, shape: _Shape) -> _Pass:
        """Run the collectives of `_pre_forward`."""
        ddp = self._ddp
        if shape.has_gradients:
            ddp.reducer._rebuild_buckets()
        if ddp._check_sync_bufs_pre_fwd():
            ddp._sync_buffers()
        return self._note_pass(shape.has_gradients, shape.syncs)

    def _forget_pass(self, *, has_reduced: bool) -> None:
        """Have the reducer begin another pass, though the last one did not end in it as it did on the other ranks."""
        ddp, were_rebuilt = self._ddp, self._ddp._has_rebuilt_buckets
        ddp.reducer._reset_state()
        if has_reduced and not were_rebuilt:  # the others make their buckets anew in the next pass, together
            ddp.reducer._push_all_rebuilt_params()

    def _end_pass(self, now: _Pass) -> None:
        """Run the collectives of `_post_forward`, and have the next pass begin as on the other ranks."""
        ddp = self._ddp
        if ddp._check_sync_bufs_post_fwd():
            ddp._sync_buffers()
        ddp.require_forward_param_sync = now.syncs
        now.has_ended = True

    def _issued(self, now: _Pass) -> int:
        return self._hook.count() - now.first

    def _reduce(self, now: _Pass, issued: int, error: BaseException) -> None:
        """Reduce the buckets after the first `issued`, full of NaN, and which parameters are used where DDP does so."""
        ddp = self._ddp
        buckets = ddp.reducer._get_zeros_like_grad_buckets()
        if len(buckets) <= issued:
            return
        if self._hook.raised(error):
            raise OutOfStepError("the communication hook raised the error itself")
        waiting: list[Any] = []
        if now.learns:
            waiting.append(ddp.process_group.allreduce(ddp.reducer._get_local_used_map()))
        for bucket in buckets[issued:]:
            bucket.buffer().fill_(float("nan"))
            waiting.append(ddp.reducer._run_comm_hook(bucket))
        if ddp.find_unused_parameters and not ddp.static_graph:
            waiting.append(ddp.process_group.allreduce(ddp.reducer._get_local_used_map()))
        for work in waiting:
            work.wait()

    def _shape(self, place: int) -> _Shape:
        now = self._passes[place]
        after = self._passes[place + 1].first if place + 1 < len(self._passes) else self._hook.count()
        return _Shape(now.syncs, now.has_gradients, now.syncs and after > now.first)


class _CountedHook:
    """Counts the buckets that were reduced: by the user's communication hook, or without one by the group's own number."""

    def __init__(self, ddp: DistributedDataParallel) -> None:
        self._ddp: Any = ddp  # most of what is asked of it has no types
        self._calls: int | None = None  # None: there is no hook, and DDP reduces by itself
        self._codes: set[Any] = set()

    @classmethod
    def put_into(cls, ddp: Any) -> _CountedHook:
        """Return the counter of a model, whose hook is called through it from now on."""
        counted = cls(ddp)
        if ddp._comm_hooks:
            counted._calls = 0
            counted._codes = {getattr(hook, "__code__", None) for hook, _ in ddp._comm_hooks} - {None}
            ddp._comm_hooks[:] = [(counted._counting(hook), state) for hook, state in ddp._comm_hooks]
            _make_reducer(ddp)
        return counted

    def count(self) -> int:
        """Return how many collectives there have been."""
        if self._calls is not None:
            return self._calls
        number: int = self._ddp.process_group._get_sequence_number_for_group()
        return number

    def raised(self, error: BaseException) -> bool:
        """Whether the user's hook raised `error`."""
        return any(code in self._codes for code in _codes_in(error.__traceback__))

    def forget(self) -> None:
        """Take out of the hook's state what a failed pass has left in it: PowerSGD's errors, which NaN would stay in."""
        for _, state in self._ddp._comm_hooks:
            for name in ("error_dict", "p_memory_dict", "q_memory_dict"):
                getattr(state, name, {}).clear()

    def _counting(self, hook: Callable[..., Any]) -> Callable[..., Any]:
        def counted(state: Any, bucket: Any) -> Any:
            future = hook(state, bucket)
            self._calls = (self._calls or 0) + 1
            return future

        counted.__name__, counted.__qualname__ = hook.__name__, hook.__qualname__
        return counted


def _make_reducer(ddp: Any) -> None:
    """Give a model a new reducer, as unpickling does, with the same hooks. No rank waits for another."""
    ddp.reducer._remove_autograd_hooks()
    parameters, sparse = ddp._build_params_for_reducer()
    ddp._ddp_init_helper(parameters, sparse, ddp._build_debug_param_to_name_mapping(parameters), ddp.static_graph)
    if ddp.static_graph:
        ddp._static_graph_delay_allreduce_enqueued = False
        ddp.reducer._set_static_graph()
        ddp.logger._set_static_graph()
    for hook, state in ddp._comm_hooks:
        dist._register_comm_hook(ddp.reducer, state, hook)  # type: ignore[attr-defined]  # not in torch's stubs


def _problem(ddp: Any) -> str | None:
    """Return why the schedule of a rank that fails cannot be kept; None where it can."""
    if any(isinstance(module, nn.SyncBatchNorm) for module in ddp.module.modules()):
        return "SyncBatchNorm waits for the others in the middle of the model"
    if any(ddp._build_params_for_reducer()[1]):
        return "sparse gradients are reduced in another way on each rank"
    if ddp.mixed_precision is not None or ddp._use_python_reducer:
        return "DistributedDataParallel's own mixed precision and its Python reducer run collectives of their own"
    if any(hasattr(state, "error_dict") for _, state in ddp._comm_hooks):
        return "what PowerSGD sends depends on the steps before"
    if getattr(ddp, "skip_all_reduce_unused_params", False) or ddp._delay_all_reduce_params:
        return "which gradients are reduced depends on the batch"
    return None


def _codes_in(traceback: TracebackType | None) -> list[Any]:
    codes = []
    while traceback is not None:
        codes.append(traceback.tb_frame.f_code)
        traceback = traceback.tb_next
    return codes
