"""Errors of training: a precision that cannot be changed in the running process, or a loop that cannot be guarded."""

from __future__ import annotations

from .base import SafeDtypeError


class TrainingError(SafeDtypeError, RuntimeError):
    """Training cannot go on in the dtype that it should go on in. Model and optimizer are as they were."""


class NeedsRestart(TrainingError):  # noqa: N818  (it names what is to be done)
    """The precision is built into an engine: only a new process can have another."""

    def __init__(self, engine: str, dtype: str = "", advice: str = "") -> None:
        super().__init__(engine, dtype, *([advice] if advice else []))
        self.engine = engine
        self.dtype = dtype  # to go on in; empty where nothing has failed yet, and the engine is not guarded at all
        self.advice = advice or _UNGUARDED

    def __str__(self) -> str:
        if not self.dtype:
            return (
                f"{self.engine} has its precision built in: no step that fails could be run again in another one, so it is "
                f"not guarded. Next: {self.advice}."
            )
        return (
            f"{self.engine} has its precision built in, so this process cannot go on in {self.dtype}. Next: start again "
            f"from the last checkpoint with mixed_precision={_ACCELERATE_NAMES.get(self.dtype, self.dtype)!r}."
        )


class NotSwitchableError(TrainingError):
    """The precision of this Accelerator cannot be changed, for a reason that lies in the program or in accelerate."""

    def __init__(self, problem: str, advice: str) -> None:
        super().__init__(problem, advice)
        self.problem, self.advice = problem, advice

    def __str__(self) -> str:
        return f"The precision cannot be changed: {self.problem}. Next: {self.advice}."


class HalfParametersError(TrainingError):
    """Parameters under an optimizer are 16 bits wide: autocast and GradScaler can do nothing for them."""

    def __init__(self, dtype: str) -> None:
        super().__init__(dtype)
        self.dtype = dtype

    def __str__(self) -> str:
        return (
            f"Parameters under the optimizer are {self.dtype}. A step down would change nothing for them, and GradScaler "
            "refuses to unscale float16 gradients: mixed precision needs float32 parameters, which are computed with in "
            "16 bits. Next: `float32_masters(model, optimizer)` makes them float32, at 2 bytes a parameter more and as "
            "much for its gradient and each state of the optimizer; or load the model with dtype=torch.float32."
        )


class TrainingLoopError(TrainingError):
    """The loop is written in a way in which a failed window cannot be run again."""

    def __init__(self, problem: str, advice: str = "") -> None:
        super().__init__(problem, *([advice] if advice else []))
        self.problem, self.advice = problem, advice or _WINDOWS

    def __str__(self) -> str:
        return f"This loop cannot be guarded: {self.problem}. Next: {self.advice}."


class TrainingDoesNotFitError(TrainingError):
    """No way to make a step of training fits into the memory of its device."""

    def __init__(  # noqa: PLR0913  (facts, as they are pickled)
        self,
        dtype: str,
        needed_bytes: int,
        free_bytes: int,
        ranks: int = 1,
        devices: int = 1,
        rows: int = 0,
        parts: int = 0,
        *,
        kinds: tuple[tuple[str, int], ...] = (),
        whole: str = "",
        instead: tuple[str, ...] | None = None,
    ) -> None:
        smaller = (rows, parts) if rows else ()
        super().__init__(dtype, needed_bytes, free_bytes, ranks, devices, *smaller)
        self.dtype, self.needed_bytes, self.free_bytes = dtype, needed_bytes, free_bytes
        self.ranks, self.devices = ranks, devices
        self.rows, self.parts = rows, parts  # a micro-batch that fits, and how many for one of now; 0: none
        self.kinds = kinds  # weights, gradients, ..., each with its bytes at the peak; they add up to `needed_bytes`
        self.whole = whole  # why a micro-batch cannot be run in parts
        self.instead = instead  # what can be ordered instead, of a first step as it was ordered; None: nothing fits

    def __str__(self) -> str:
        made_of = ", ".join(f"{kind} {size:,}" for kind, size in self.kinds)
        needed = f"{self.needed_bytes:,} bytes" + (f" ({made_of})" if made_of else "")
        advice = " or ".join(self._advice())
        if self.instead is not None:
            return (
                f"The first step of training in {self.dtype} needs {needed} as it is ordered, and {self.free_bytes:,} may be "
                f"used: the system would end the process. Next: {' or '.join(self.instead) or advice}."
            )
        whole = f" (micro-batches are not run in parts: {self.whole})" if self.whole else ""
        if self.rows:
            return (
                f"A step of training in {self.dtype} needs {needed}, with all that can be changed while the "
                f"loop runs{whole}, and {self.free_bytes:,} may be used. Next: micro-batches of {self.rows} fit, {self.parts} in the "
                f"place of each; or {advice}."
            )
        return (
            f"A step of training in {self.dtype} needs {needed}, even with activation checkpointing and "
            f"the smallest micro-batch{whole}, and {self.free_bytes:,} may be used. Next: {advice}."
        )

    def _advice(self) -> list[str]:
        """Return what is left to do: of what brings fewer bytes, only that which may bring few enough."""
        ways = []
        if self.ranks > 1:
            whole = self._bytes_of("weights", "gradients", "optimizer")
            needed = self.needed_bytes - whole + whole // self.ranks - self._bytes_of(GRADIENT_BUCKETS)
            ways += self._where_it_fits(f"share the weights out among the {self.ranks} ranks with FSDP2", needed)
        elif self.devices > 1:
            ways.append(f"spread the model over the {self.devices} devices with device_map='auto'")
        needed = self.needed_bytes - self._bytes_of("gradients", "optimizer")
        ways += self._where_it_fits("train adapters alone, as with LoRA", needed)
        if self.needed_bytes - self._bytes_of("activations", "temporaries") <= self.free_bytes or not self.kinds:
            ways.append("use shorter rows")
        return [*ways, "train on a device with more memory"]

    def _where_it_fits(self, way: str, least_bytes: int) -> list[str]:
        """Return a way with the least that it takes; nothing where that is too much. What memory is made of may not be known."""
        if not self.kinds:
            return [way]
        return [f"{way} (at least {least_bytes:,} bytes)"] if least_bytes <= self.free_bytes else []

    def _bytes_of(self, *kinds: str) -> int:
        return sum(size for kind, size in self.kinds if kind in kinds)


GRADIENT_BUCKETS = "gradients in buckets of all ranks"  # a kind of memory, of DistributedDataParallel

_WINDOWS = "one window holds all micro-batches of one optimizer step, as in `for attempt in guard.attempts(): with attempt: ...`"
_UNGUARDED = "train it without the guard; or by DDP or FSDP2, which are guarded"
_ACCELERATE_NAMES = {"bfloat16": "bf16", "float16": "fp16", "float32": "no"}
