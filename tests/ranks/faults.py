"""Faults to inject into a job of ranks, how each must end, and a kernel that has them.

The kernel is an operation of torch with a derivative: what fails in it fails where a device's kernel would, in the dispatch
of forward or of backward, between the collectives of the engine. The texts are those of devices and programs.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
import torch.distributed as dist

LADDER = ("bfloat16", "float16", "float32")

# A dtype cures these. In the text of float16 the names are those of float16.
CURABLE = (
    (NotImplementedError, "\"addmm_impl_cpu_\" not implemented for 'BFloat16'"),
    (RuntimeError, "CUDA error: CUBLAS_STATUS_NOT_SUPPORTED when calling `cublasGemmEx( handle, opa, opb, m, n, k, &falpha, a, CUDA_R_16BF, lda, b, CUDA_R_16BF, ldb, &fbeta, c, CUDA_R_16BF, ldc, compute_type, CUBLAS_GEMM_DEFAULT_TENSOR_OP)`"),
    (RuntimeError, "self and mat2 must have the same dtype, but got BFloat16 and Float"),
    (RuntimeError, "FlashAttention only supports Ampere GPUs or newer."),
    (TypeError, "Got unsupported ScalarType BFloat16"),
    (ValueError, "Bfloat16 is only supported on GPUs with compute capability of at least 8.0. Your Tesla T4 GPU has compute capability 7.5."),
    (AssertionError, "BF16 weight prepack needs the cpu support avx512bw, avx512vl and avx512dq"),
    (RuntimeError, "Function 'SqrtBackward0' returned nan values in its 0th output."),
)  # fmt: skip
# No dtype cures these: they end the job, on every rank.
FOREIGN = (
    (KeyError, "data_offsets"),
    (IndexError, "index out of range in self"),
    (RuntimeError, "mat1 and mat2 shapes cannot be multiplied (2x3 and 2x3)"),
    (RuntimeError, "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu!"),
    (OSError, "Error no file named model.safetensors, or pytorch_model.bin, found in directory /tmp/model/nw."),
    (RuntimeError, "[Rank 0] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=1580, OpType=ALLREDUCE, NumelIn=466119168, NumelOut=466119168, Timeout(ms)=600000) ran for 600060 milliseconds before timing out."),
)  # fmt: skip
OUT_OF_MEMORY = (
    (torch.OutOfMemoryError, "CUDA out of memory. Tried to allocate 20.00 MiB (GPU 0; 8.00 GiB total capacity; 7.06 GiB already allocated; 0 bytes free; 7.29 GiB reserved in total by PyTorch)"),
    (MemoryError, "Unable to allocate 1.78 PiB for an array with shape (1000000000000000,) and data type float16"),
)  # fmt: skip
TEXTS = {"exception": CURABLE, "foreign": FOREIGN, "out of memory": OUT_OF_MEMORY}
NUMBERS = {"nan": float("nan"), "inf": float("inf")}
KINDS = (*TEXTS, *NUMBERS)
PLACES = ("forward", "backward")


@dataclass(frozen=True, slots=True)
class InjectedFault:
    """What goes wrong on one rank, and where.

    Attributes:
        step: The optimizer step, or the generated token; `micro`: the micro-batch in it; `layer`: the layer.
        place: "forward" or "backward".
        kind: One of `KINDS`; `text`: which of its texts.
        dtypes: In which of them it happens.
    """

    rank: int
    step: int
    micro: int
    layer: int
    place: str
    kind: str
    text: int = 0
    dtypes: tuple[str, ...] = ("bfloat16",)

    def __str__(self) -> str:
        where = f"rank {self.rank}, step {self.step}, micro-batch {self.micro}, layer {self.layer}"
        return f"{self.kind} {self.text} in {self.place} of {where}, in {'+'.join(self.dtypes)}"

    @property
    def ends_the_job(self) -> bool:
        """Whether no dtype cures it."""
        return self.kind in ("foreign", "out of memory")

    def shows_in(self, dtype: str) -> bool:
        """Whether it happens in a dtype: what no dtype cures does so in each, for it may be tried in others."""
        return self.ends_the_job or dtype in self.dtypes


@dataclass(frozen=True, slots=True)
class Expected:
    """How a job with faults has to end: said here without a look at what guards it.

    Attributes:
        dtypes: In which dtype each step is made in the end, as many as are made.
        ending: "done"; "foreign": an error that no dtype cures comes out, on all ranks; or "no dtype left".
        raising: The ranks whose own error it is.
    """

    dtypes: tuple[str, ...]
    ending: str
    raising: tuple[int, ...] = ()


def expected(faults: Sequence[InjectedFault], steps: int) -> Expected:
    """Return how a job has to end: it goes down the ladder where anything fails, and of all ranks the worst decides."""
    rung, dtypes = 0, []
    for step in range(steps):
        while active := [fault for fault in faults if fault.step == step and fault.shows_in(LADDER[rung])]:
            # Numbers let a rank go on, an exception ends its attempt: only the first one shows.
            raised = [fault for fault in active if fault.kind in TEXTS]
            first = {
                rank: min((one for one in raised if one.rank == rank), key=_moment)
                for rank in {f.rank for f in raised}
            }
            if ending := sorted(rank for rank, fault in first.items() if fault.ends_the_job):
                return Expected(tuple(dtypes), "foreign", tuple(ending))
            rung += 1
            if rung == len(LADDER):
                return Expected(tuple(dtypes), "no dtype left")
        dtypes.append(LADDER[rung])
    return Expected(tuple(dtypes), "done")


def _moment(fault: InjectedFault) -> tuple[int, bool, int]:
    """When a fault shows in an attempt: backward comes after forward, and from the last layer to the first."""
    return fault.micro, fault.place == "backward", -fault.layer if fault.place == "backward" else fault.layer


def systematic_faults(ranks: int, steps: int, micros: int, layers: int) -> Iterator[tuple[InjectedFault, ...]]:
    """Yield every kind, place, rank and step once; micro-batch, layer, text and dtypes take turns."""
    for number, (kind, place, rank, step) in enumerate(product(KINDS, PLACES, range(ranks), range(steps))):
        text = number % len(TEXTS[kind]) if kind in TEXTS else 0
        dtypes = LADDER[: 1 + number % 2]
        yield (InjectedFault(rank, step, number % micros, number % layers, place, kind, text, dtypes),)


def random_faults(
    chance: random.Random, ranks: int, steps: int, micros: int, layers: int
) -> tuple[InjectedFault, ...]:
    """Return one fault, or in two of five cases several, which may be met in any dtype."""

    def draw(dtypes: tuple[str, ...]) -> InjectedFault:
        kind = chance.choices(KINDS, weights=(6, 1, 1, 2, 2))[0]
        return InjectedFault(
            chance.randrange(ranks), chance.randrange(steps), chance.randrange(micros), chance.randrange(layers),
            chance.choice(PLACES), kind, chance.randrange(len(TEXTS.get(kind, "n"))), dtypes,
        )  # fmt: skip

    first = draw(chance.choice((LADDER[:1], LADDER[:2], LADDER[:2], LADDER)))
    more = chance.choice((0, 0, 0, 1, 2))
    return first, *(draw(chance.choice((LADDER[:1], LADDER[:2], LADDER[1:2], LADDER[1:]))) for _ in range(more))


class Injection:
    """The faults of this rank, and where it is: set `step` and `micro` while the job runs.

    Attributes:
        fired: How often a fault has shown.
    """

    def __init__(self, faults: Sequence[InjectedFault]) -> None:
        own = [fault for fault in faults if fault.rank == dist.get_rank()]
        self._faults = sorted(own, key=lambda fault: fault.kind in NUMBERS)  # at one place an exception shows first
        self.step = self.micro = self.fired = 0

    def apply(self, place: str, layer: int, values: torch.Tensor) -> torch.Tensor:
        """Return what the kernel gives for `values`, or raise."""
        dtype = str(values.dtype).removeprefix("torch.")
        for fault in self._faults:
            here = (fault.place, fault.layer, fault.step, fault.micro) == (place, layer, self.step, self.micro)
            if not here or not fault.shows_in(dtype):
                continue
            self.fired += 1
            if fault.kind in NUMBERS:
                spoiled = values.clone()
                spoiled.view(-1)[0] = NUMBERS[fault.kind]
                return spoiled
            error, text = TEXTS[fault.kind][fault.text]
            if dtype == "float16":
                text = text.replace("BFloat16", "Half").replace("16BF", "16F")
            raise error(text)
        return values.clone()


_now: list[Injection] = []  # what the kernel asks; none: nothing fails


def inject(injection: Injection | None) -> None:
    """Let the kernel have these faults from now on; None: none."""
    _now[:] = [] if injection is None else [injection]


@torch.library.custom_op("safe_dtype_ranks::kernel", mutates_args=())
def kernel(values: torch.Tensor, layer: int) -> torch.Tensor:
    """A kernel of a layer: the identity, unless a fault is injected."""
    return _now[0].apply("forward", layer, values) if _now else values.clone()


@torch.library.custom_op("safe_dtype_ranks::kernel_backward", mutates_args=())
def kernel_backward(gradient: torch.Tensor, layer: int) -> torch.Tensor:
    """Its derivative."""
    return _now[0].apply("backward", layer, gradient) if _now else gradient.clone()


kernel.register_fake(lambda values, layer: torch.empty_like(values))
kernel_backward.register_fake(lambda gradient, layer: torch.empty_like(gradient))


def _remember_layer(ctx: Any, inputs: tuple[torch.Tensor, int], output: torch.Tensor) -> None:
    ctx.layer = inputs[1]


def _differentiate(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
    return torch.ops.safe_dtype_ranks.kernel_backward(gradient, ctx.layer), None


kernel.register_autograd(_differentiate, setup_context=_remember_layer)
