"""Where a part measures: the device, how large its models are, and what the device counts."""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import engineered  # type: ignore[import-not-found]  # models that overflow; `rehearsing` tells where the tests lie
import torch
import transformers as tf

from .rehearsing import counters

Row = dict[str, Any]

# vocabulary, hidden, intermediate, layers, heads, key-value heads, size of a head
_QWEN3 = {
    "tiny": (320, 96, 192, 4, 4, 2, 24),
    "0.6B": (151_936, 1024, 3072, 28, 16, 8, 128),
    "7B": (151_936, 3584, 18_944, 28, 28, 4, 128),
}
_LAUNCHES = ("cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx", "cudaGraphLaunch")
_WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")


@dataclass(frozen=True, slots=True)
class Place:
    """A device, and whether models are tiny there, which tells that the parts run and nothing else."""

    device: str
    is_tiny: bool

    @property
    def is_cuda(self) -> bool:
        """Whether this is a GPU of NVIDIA or AMD."""
        return self.device.partition(":")[0] == "cuda"

    @property
    def shapes(self) -> tuple[str, ...]:
        """The shapes of language models, smallest first."""
        return ("tiny",) if self.is_tiny else ("0.6B", "7B")

    def count(self, real: int, tiny: int) -> int:
        """Return how many tokens, rows or repeats a part takes."""
        return tiny if self.is_tiny else real


@dataclass(frozen=True, slots=True)
class Counts:
    """What a call asked of the device. None where the device does not count it."""

    synchronizations: float | None
    launches: float | None


def shape_of(name: str) -> engineered.Shape:
    """Return the sizes of a Qwen3."""
    return engineered.Shape(*_QWEN3[name], sliding_window=4096)


def qwen3(place: Place, shape: str, dtype: torch.dtype) -> Any:
    """Return a random Qwen3 on the device, in `dtype`, which float16 holds."""
    sizes = shape_of(shape)
    config = tf.Qwen3Config(
        **sizes.of(
            "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
            "num_key_value_heads", "head_dim",
        ), tie_word_embeddings=True, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    with torch.device(place.device):
        return tf.AutoModelForCausalLM.from_config(config, dtype=dtype).eval()


def prompt_of(place: Place, model: Any, tokens: int) -> torch.Tensor:
    """Return a prompt of shape (1, tokens) on the device."""
    generator = torch.Generator().manual_seed(1)
    return torch.randint(20, model.config.vocab_size, (1, tokens), generator=generator).to(place.device)


def generate(model: Any, prompt: torch.Tensor, tokens: int, **options: Any) -> torch.Tensor:
    """Return the tokens of a greedy generation, exactly so many new ones."""
    return model.generate(  # type: ignore[no-any-return]  # transformers has no types
        prompt, attention_mask=torch.ones_like(prompt), do_sample=False, min_new_tokens=tokens, max_new_tokens=tokens,
        **options,
    )  # fmt: skip


def synchronize(place: Place) -> None:
    """Wait until the device has done all that it was given."""
    if place.device != "cpu":
        torch.accelerator.synchronize()


def seconds(place: Place, call: Callable[[], object]) -> float:
    """Time one call, from an idle device to an idle device."""
    synchronize(place)
    started = time.perf_counter()
    call()
    synchronize(place)
    return time.perf_counter() - started


def seconds_per_token(place: Place, model: Any, prompt: torch.Tensor, tokens: int, **options: Any) -> float:
    """Time a token of a generation: the difference between a long and a short one, so that the prompt cancels."""
    short = max(1, tokens // 8)
    long = seconds(place, lambda: generate(model, prompt, tokens, **options))
    return (long - seconds(place, lambda: generate(model, prompt, short, **options))) / (tokens - short)


def medians(rows: list[tuple[float, float]]) -> tuple[float, float, float]:
    """Return the medians of both columns, and of the differences between neighbours."""
    first, second = zip(*rows, strict=True)
    difference = statistics.median(after - before for before, after in rows)
    return statistics.median(first), statistics.median(second), difference


@contextmanager
def memory_peak(place: Place) -> Iterator[Callable[[], int | None]]:
    """Yield a function that gives the peak of the device's allocator in bytes since the beginning."""
    if place.device == "cpu":
        yield lambda: None
        return
    torch.accelerator.empty_cache()
    torch.accelerator.reset_peak_memory_stats(place.device)
    yield lambda: int(torch.accelerator.max_memory_allocated(place.device))


def counted(place: Place, call: Callable[[], object]) -> Counts:
    """Return what `call` asked of the device: by the profiler on CUDA, by its own counters on the rehearsal device."""
    if place.is_cuda:
        from torch.profiler import ProfilerActivity, profile

        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
            call()
        names = [event.name for event in profiler.events() or ()]
        return Counts(*(float(sum(name in wanted for name in names)) for wanted in (_WAITS, _LAUNCHES)))
    read = counters(place.device)
    if read is None:
        call()
        return Counts(None, None)
    before = read()
    call()
    waits, ops = (now - then for now, then in zip(read(), before, strict=True))
    return Counts(float(waits), float(ops))


def warned_synchronizations(place: Place, call: Callable[[], object]) -> int | None:
    """Return how often torch warned that `call` made the host wait. CUDA only."""
    if not place.is_cuda:
        return None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            call()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("called a synchronizing" in str(warning.message) for warning in caught)
