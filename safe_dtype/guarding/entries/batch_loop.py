"""The loop of a `ContinuousBatchingManager`, as `transformers serve --continuous-batching` runs it: one failure ends no request.

A step in which the model was cured cannot be repeated: its pool of keys and values is one block of bytes of the dtype
before. So the manager gets a new pool, and every request goes on from the tokens that it has, as transformers itself
takes up requests for which a pool has no room.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from transformers.generation.continuous_batching import continuous_api
from transformers.generation.continuous_batching.requests import RequestState

from ...errors import CannotResumeError
from ...models.wrapped_methods import wrap_method
from ..state import Guard, guard_of

logger = logging.getLogger(__name__)

_LOOP = "_generation_loop_body"  # takes the processor and whether it is the first batch of an asynchronous run
_MANAGER = continuous_api.ContinuousBatchingManager


def guard_batch_loop(guard: Guard) -> None:
    """Have managers of the model go on after a failure, for as long as `guard` lives.

    Releases of transformers whose manager has no such loop, or cannot take up a request, are left alone.
    """
    if hasattr(_MANAGER, _LOOP) and hasattr(RequestState, "create_equivalent_initial_request"):
        wrap_method(_MANAGER, _LOOP, _go_on, guard)


def _go_on(original: Callable[..., Any]) -> Callable[..., Any]:
    def _generation_loop_body(self: Any, batch_processor: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return original(self, batch_processor, *args, **kwargs)
        except CannotResumeError:
            # In an asynchronous batch tokens of the step before are still under way: it ends as without this.
            if guard_of(self.model) is None or batch_processor.use_async_batching:
                raise
            _take_up(self, batch_processor)
            return True

    return _generation_loop_body


def _take_up(manager: Any, processor: Any) -> None:
    """Give the processor a new pool, in the dtype of the model now, and all requests that it had."""
    scheduler, offloading = processor.scheduler, processor.offloading_manager
    offloading.free_all_waiting_cpu_caches()
    in_order = {name: scheduler.waiting_requests.get(name) for name in scheduler.waiting_requests_order}
    running = (*scheduler.active_requests.values(), *filter(None, in_order.values()))
    requests = [request.create_equivalent_initial_request() for request in running]  # prompt and tokens so far
    cancelled = set(scheduler._requests_to_cancel)
    # The old pool is let go before there is a new one: both may not fit. What is left can fail what arrives later.
    for places in (scheduler.active_requests, scheduler.waiting_requests, scheduler.waiting_requests_order):
        places.clear()
    scheduler.cache = offloading.cache = processor.cache = None
    processor.inputs_and_outputs = processor.model_runner = manager.batch_processor = None
    try:
        made = manager._create_batch_processor()
    except Exception as error:
        for request in requests:
            manager.output_router.fail_and_deliver(request, error)
        raise
    vars(processor).update(vars(made))
    manager.batch_processor = processor
    for request in requests:
        processor.scheduler.add_waiting_request(request)
    processor.scheduler._requests_to_cancel |= cancelled
    logger.warning(
        "%d requests of a continuous batch go on in %s, from the tokens that they have",
        len(requests), str(manager.model.dtype).removeprefix("torch."),
    )  # fmt: skip
