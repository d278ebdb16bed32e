"""What a patched program says of each model that it loads: one line, all of the plan, or nothing."""

from __future__ import annotations

import logging
import multiprocessing
import os
import sys
from typing import TYPE_CHECKING, Literal, get_args

from ..errors import PolicyError
from ..planning import Plan, Policy, faster_if_asked
from ..rendering.streams import columns, writable
from ..rendering.units import times_text

if TYPE_CHECKING:
    from ..loading.diffusion.pipeline_plan import PipelinePlan

logger = logging.getLogger(__name__)

Telling = Literal["line", "all", "nothing"]

# Where several processes load one model, each its part or its copy: torchrun, accelerate, deepspeed, Open MPI, Slurm.
_RANKS = ("RANK", "LOCAL_RANK", "OMPI_COMM_WORLD_RANK", "SLURM_PROCID")


def telling_of(tell: str) -> Telling:
    """Return `tell` itself.

    Raises:
        PolicyError: If it is none of "line", "all" and "nothing".
    """
    for telling in get_args(Telling):
        if tell == telling:
            return telling  # type: ignore[no-any-return]
    raise PolicyError(f"tell={tell!r}", f"it is none of {', '.join(get_args(Telling))}")


def tell_plan(plan: Plan, tell: Telling) -> None:
    """Say what was chosen for a model and why, once, in the first of the processes that load it.

    It goes through the log, where the program shows events of this level, and to stderr where it does not.
    """
    if _is_told(tell):
        text = plan.explain(width=columns(sys.stderr)) if tell == "all" else plan.summary + _what_is_faster(plan)
        fields = {
            "model": plan.source,
            "storage": plan.storage.name,
            "compute": plan.compute.name,
            "reason": plan.reason,
        }
        tell_text(text, "tell_plan", fields)


def tell_pipeline(plan: PipelinePlan, tell: Telling) -> None:
    """Say what was chosen for the models of a pipeline, once, as `tell_plan` does."""
    if _is_told(tell):
        text = plan.explain(width=columns(sys.stderr)) if tell == "all" else plan.summary
        tell_text(
            text, "tell_pipeline", {"model": plan.source, **{name: str(dtype) for name, dtype in plan.dtypes.items()}}
        )


def tell_training(trainer: str, ladder: str, policy: Policy, tell: Telling) -> None:
    """Say that the steps of a Trainer are guarded, and in which precisions they go on, once, as `tell_plan` does."""
    if _is_told(tell):
        ending = "end the run (strict)" if policy.mode == "strict" else "run again"
        text = f"{trainer}: steps that fail or are not finite are not applied, but {ending}. It trains in {ladder}"
        tell_text(text, "tell_training", {"trainer": trainer, "ladder": ladder})


def _is_told(tell: Telling) -> bool:
    return tell != "nothing" and _is_first_process()


def tell_text(text: str, function: str, fields: dict[str, str]) -> None:
    """Say `text` through the log, where the program shows events of this level, else on stderr."""
    handlers = logger if logger.isEnabledFor(logging.INFO) and logger.hasHandlers() else _ON_STDERR
    record = logger.makeRecord(logger.name, logging.INFO, __file__, 0, "%s", (text,), None, function, fields)
    handlers.handle(record)


def _what_is_faster(plan: Plan) -> str:
    """Say what float16 would gain, and how a program gets it that is not to be changed."""
    other = faster_if_asked(plan)
    if other is None:
        return ""
    mine, seconds = (None if plan.chosen is None else plan.chosen.cost.seconds), other.cost.seconds
    gain = f"would take {times_text(seconds / mine)} the time" if mine and seconds else "would be faster"
    return f"; {other.candidate} {gain}, but rounds the weights: the policy ladder=fp16>fp32 asks for it"


def _is_first_process() -> bool:
    ranks = (os.environ.get(name, "") for name in _RANKS)
    return multiprocessing.parent_process() is None and all(rank in ("", "0") for rank in ranks)


class _OnStderr(logging.Handler):
    """Writes to what is stderr now, which a program may have replaced."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            if sys.stderr is not None:  # as in a program without a console
                sys.stderr.write(writable(f"{self.format(record)}\n", sys.stderr))
        except (OSError, ValueError):  # closed
            self.handleError(record)


_ON_STDERR = _OnStderr()
_ON_STDERR.setFormatter(logging.Formatter("safe_dtype: %(message)s"))
