"""A rank that failed under DistributedDataParallel runs the collectives that it owes, so that nobody waits for it.

Where forward or backward raises on one rank, the others still enter the broadcasts and all-reduces of theirs. The rank
that failed runs as many, with NaN as gradients: all come to the vote that follows, and none of them steps. How many it
owes is read from the number that torch counts its collectives by; a failure-free step costs two such reads, and the
hook for gradients, which DDP has a single place for, is left to the user.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ...errors import TrainingLoopError
from ..schedule import OutOfStepError
from ..world import SECONDS_TO_WAIT
from .counted_hook import CountedHook, make_reducer
from .other_collectives import OtherCollectives

# For the others to come to the vote once this rank has run what it owed: they have come to the end of their last backward
# pass by then. Who does not come waits for this rank in a collective that nobody here knows of.
SECONDS_AFTER_LAST_BUCKET = 60.0
_PAUSE = 0.001  # seconds between two looks at whether a bucket is reduced


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

    A window has any number of passes without reduction (under `no_sync`) and then one with it, unless its first pass or
    an earlier window has shown another order.
    """

    def __init__(self, ddp: DistributedDataParallel) -> None:
        self._ddp: Any = ddp  # most of what is asked of it has no types
        self._hook = CountedHook.put_into(ddp)
        self._others = OtherCollectives(lambda: self._hook.count_all())
        self._passes: list[_Pass] = []
        self._shapes: tuple[_Shape, ...] = ()  # of the last window that was whole
        self._micro_batches = self._micro_batches_before = 0  # of this window and of that one; 0: nobody has said
        self._is_idle = False  # the last whole window had no pass of this model
        self._syncs_at_first = True
        self._learns = False
        self._is_entering = False  # a pass, in which buffers are broadcast
        self.problem = _problem(ddp) or self._hook.problem

    def sees(self, batches: Sequence[Any]) -> None:
        """Note how many micro-batches there are: the last window may have fewer."""
        self._micro_batches = len(batches)

    def owes(self) -> bool:
        """Whether the model runs in this window, as far as anybody knows."""
        return bool(self._passes) or not self._is_idle

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
        self._is_entering = False
        self._syncs_at_first = self._ddp.require_forward_param_sync
        self._learns = self._ddp.static_graph and not self._ddp._static_graph_delay_allreduce_enqueued
        if self._hook.is_new(self._ddp._comm_hooks):
            self._hook = CountedHook.put_into(self._ddp)
            self.problem = _problem(self._ddp) or self._hook.problem
        # Wrapped for a window alone, and not hooked: hooks would get into what torch.compile makes of the module.
        ddp = self._ddp
        ddp._pre_forward, ddp._post_forward = self._before(ddp._pre_forward), self._after(ddp._post_forward)
        self._others.mark()

    def end(self, *, is_whole: bool) -> None:
        """Stop to watch. A whole window shows what the next one will run."""
        for name in ("_pre_forward", "_post_forward"):
            self._ddp.__dict__.pop(name, None)
        if not is_whole:
            return
        self._others.end()
        self._is_idle = not self._passes
        if self._passes:
            self._micro_batches_before = self._micro_batches
            self._shapes = tuple(self._shape(place) for place in range(len(self._passes)))

    def backward_begins(self) -> None:
        """Look for collectives since the forward pass, which are not of DistributedDataParallel."""
        self._others.backward_begins()

    def backward_ended(self) -> None:
        """Look for others from here on."""
        self._others.mark()

    def hidden_error(self) -> None:
        """Return nothing: what fails comes out."""

    def program_ran(self) -> None:
        """Look for others from here on."""
        self._others.mark()

    def keep(self, error: BaseException) -> float:
        """Run what this rank owes the others until the end of the window, with NaN as its gradients.

        Returns:
            For how many seconds to wait for the others at the vote.

        Raises:
            OutOfStepError: If that is not possible: the others wait until this process ends.
        """
        if not self.owes():
            return SECONDS_AFTER_LAST_BUCKET
        if self._is_entering:
            raise OutOfStepError("it has not come through what DistributedDataParallel does before forward")
        self._others.look()
        problem = self.problem or self._others.problem
        if problem is not None:
            raise OutOfStepError(problem)
        shapes = self._due()
        if not self._passes:
            shape = shapes[0] if shapes else _Shape(syncs=True, has_gradients=True, reduces=True)
            self._begin_pass(shape)
        now, place = self._passes[-1], len(self._passes) - 1
        if not now.has_ended:
            self._end_pass(now)
        known = shapes[place] if place < len(shapes) else None
        is_alike = known is not None and known.syncs == now.syncs
        following = shapes[place + 1 :] if is_alike else ()
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
        return SECONDS_AFTER_LAST_BUCKET

    def _due(self) -> tuple[_Shape, ...]:
        """Return the passes of this window, as far as they are known: it need not have as many as the one before."""
        shapes, size, before = self._shapes, self._micro_batches, self._micro_batches_before
        with_each = bool(self._passes) and self._passes[0].syncs  # micro-batch gradients are reduced: no `no_sync`
        if not shapes:
            is_known = with_each and len(self._passes) <= size
            return (_Shape(syncs=True, has_gradients=True, reduces=True),) * size if is_known else ()
        if not size or not before or len(shapes) % before:
            return shapes
        if before == 1:
            return shapes * size if with_each else shapes
        of_each = len(shapes) // before
        return shapes[:of_each] * (size - before) + shapes[-of_each * size :]

    def reset(self) -> None:
        """Have the next pass begin as if none had failed. Every rank has to call it, after the vote."""
        # Of the failed pass nothing may be under way: it would write NaN into the next one's gradients.
        dist.barrier(group=self._ddp.process_group)
        if any(now.learns for now in self._passes):
            make_reducer(self._ddp)  # what it has learned from a first pass that failed cannot be taken back
        else:
            self._ddp._update_process_group(self._ddp.process_group)
        self._ddp.require_forward_param_sync = self._syncs_at_first
        self._hook.forget()

    def _before(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def _pre_forward(*args: Any, **kwargs: Any) -> Any:
            self._others.look()
            self._is_entering = True
            moved = original(*args, **kwargs)
            self._is_entering = False
            self._others.mark()
            self._note_pass(torch.is_grad_enabled(), self._ddp.require_backward_grad_sync)
            return moved

        return _pre_forward

    def _after(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def _post_forward(output: Any) -> Any:
            self._others.look()
            result = original(output)
            self._others.forward_ended()
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
        if shape.has_gradients and ddp.reducer._rebuild_buckets():
            ddp._has_rebuilt_buckets = True
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
        ending = time.monotonic() + SECONDS_TO_WAIT  # gloo waits for half an hour
        for work in waiting:
            while isinstance(work, torch.futures.Future) and not work.done():
                if time.monotonic() > ending:
                    raise OutOfStepError("another rank has not come to where gradients are reduced")
                time.sleep(_PAUSE)
            work.wait()

    def _shape(self, place: int) -> _Shape:
        now = self._passes[place]
        after = self._passes[place + 1].first if place + 1 < len(self._passes) else self._hook.count()
        return _Shape(now.syncs, now.has_gradients, now.syncs and after > now.first)


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
