"""The communication hook of DistributedDataParallel, called through a counter: how many buckets were reduced."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel


class CountedHook:
    """Counts the buckets that were reduced: by the user's communication hook, or without one by the group's own number."""

    def __init__(self, ddp: DistributedDataParallel) -> None:
        self._ddp: Any = ddp  # most of what is asked of it has no types
        self._backend = _counting_backend(ddp)
        self._calls: int | None = None  # None: there is no hook, and DDP reduces by itself
        self._codes: set[Any] = set()

    @classmethod
    def put_into(cls, ddp: Any) -> CountedHook:
        """Return the counter of a model, whose hook is called through it from now on."""
        counted = cls(ddp)
        if ddp._comm_hooks:
            counted._calls = 0
            counted._codes = {getattr(hook, "__code__", None) for hook, _ in ddp._comm_hooks} - {None}
            ddp._comm_hooks[:] = [(counted._counting(hook), state) for hook, state in ddp._comm_hooks]
            make_reducer(ddp)
        return counted

    def is_new(self, hooks: Sequence[Any]) -> bool:
        """Whether there is a hook that was registered since."""
        return self._calls is None and bool(hooks)

    @property
    def problem(self) -> str | None:
        """Why nothing is counted; None where it is."""
        return "its backend does not count collectives" if self._calls is None and self._backend is None else None

    def count(self) -> int:
        """Return how many collectives there have been."""
        return self.count_all() if self._calls is None else self._calls

    def count_all(self) -> int:
        """Return how many collectives there have been in the group of the model, whoever ran them."""
        number: int = self._backend._get_sequence_number_for_group() if self._backend is not None else 0
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


def make_reducer(ddp: Any) -> None:
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


def _counting_backend(ddp: Any) -> Any:
    """Return what counts the collectives of a model: of "cpu:gloo,cuda:nccl" that of its device. None: nothing does."""
    backend = ddp.process_group._get_backend(ddp._module_parameters[0].device)
    try:
        backend._get_sequence_number_for_group()
    except RuntimeError:
        return None
    return backend


def _codes_in(traceback: TracebackType | None) -> list[Any]:
    codes = []
    while traceback is not None:
        codes.append(traceback.tb_frame.f_code)
        traceback = traceback.tb_next
    return codes
