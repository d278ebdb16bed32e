"""Ways to run one checkpoint in 16 bit, and what is measured of each.

Plain transformers, clamped, with islands in float32, rescaled by safe_dtype.
Clamping is what is done by hand where float16 overflows: every layer, linear and norm is held within the range, by
1000, as transformers does inside T5. Islands are what mixed-precision tools do: modules that overflow stay in float32.
"""

from __future__ import annotations

import math
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from safe_dtype import SafeAutoModel, plan_of
from safe_dtype.errors import RescaleError
from safe_dtype.facts import FLOAT16, Rescale
from safe_dtype.models.blocks import block_names
from safe_dtype.rescaling import fit_to_half, fold_in
from safe_dtype.rescaling.fitting.peaks import record_peaks
from safe_dtype.rescaling.to_float16 import halve
from safe_dtype.verifying import Checkpoint

sys.path.append(str(Path(__file__).resolve().parent.parent / "tests"))

import engineered  # type: ignore[import-not-found]  # models that overflow, made for the tests

FAMILIES: tuple[str, ...] = engineered.FAMILIES
SIZES: tuple[str, ...] = tuple(engineered.SHAPES)
LARGEST = FLOAT16.largest
_CLAMPED_TO = LARGEST - 1000

Batches = Sequence[Mapping[str, Tensor]]


@dataclass(frozen=True, slots=True)
class Subject:
    """A saved checkpoint of one engineered family."""

    family: str
    folder: Path

    @classmethod
    def saved(cls, family: str, folder: str, size: str) -> Subject:
        """Save one in bfloat16 into `folder`."""
        return cls(family, engineered.saved(family, Path(folder), size=size))

    @property
    def how(self) -> dict[str, Any]:
        """What every way passes to `from_pretrained` beside the dtype."""
        attention = engineered.KINDS[self.family].attn_implementation
        return {"attn_implementation": attention} if attention else {}

    def plain(self, dtype: torch.dtype) -> Any:
        """Load as transformers does."""
        return engineered.KINDS[self.family].auto.from_pretrained(self.folder, dtype=dtype, **self.how).eval()

    def held_out(self, vocab_size: int, *, count: int, tokens: int, seed: int) -> Batches:
        """Return prompts that nothing was calibrated on."""
        found: Batches = engineered.prompts(self.family, count=count, tokens=tokens, seed=seed, vocab_size=vocab_size)
        return found

    def calibration(self, vocab_size: int) -> list[dict[str, Any]]:
        """Return what safe_dtype looks at, where a checkpoint has no tokenizer."""
        return Checkpoint(str(self.folder), "cpu").random_batches(vocab_size)


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model, and what was done to it; None where the way does not lead there, with the reason."""

    model: Any
    remark: str = ""


def clamped(subject: Subject) -> Loaded:
    """Load in float16, and hold what every layer, linear and norm returns within float16's range."""
    model = subject.plain(torch.float16)
    layers = {id(model.get_submodule(name)) for name in block_names(model)}
    for module in model.modules():
        if id(module) in layers or isinstance(module, nn.Linear) or "Norm" in type(module).__name__:
            module.register_forward_hook(_clamp)
    return Loaded(model)


def _clamp(_module: nn.Module, _args: Any, output: Any) -> Any:
    if isinstance(output, tuple):
        return (_clamp(_module, _args, output[0]), *output[1:])
    inside = isinstance(output, torch.Tensor) and output.dtype == torch.float16
    return output.clamp(-_CLAMPED_TO, _CLAMPED_TO) if inside else output


def with_islands(subject: Subject) -> Loaded:
    """Load in float16 with the modules around what overflows in float32, and nothing rescaled."""
    model = subject.plain(torch.bfloat16)
    half, _ = fit_to_half(model, subject.calibration(model.config.vocab_size), (), blocks=block_names(model))
    if half.problem:
        return Loaded(None, half.problem)
    try:
        halve(model, None, half.islands)
    except RescaleError as exc:
        return Loaded(None, exc.problem)
    return Loaded(model, ", ".join(half.islands) or "nothing overflows")


def rescaled(subject: Subject) -> Loaded:
    """Load as a user of safe_dtype does."""
    model = SafeAutoModel.from_pretrained(subject.folder, dtype="float16", **subject.how).eval()
    plan = plan_of(model)
    if plan.rescale is None and not plan.islands:
        return Loaded(model, f"{plan.storage}: {plan.reason}")
    islands = f"; in float32: {', '.join(plan.islands)}" if plan.islands else ""
    return Loaded(model, f"{plan.rescale or 'not rescaled'}{islands}")


WAYS: Mapping[str, Callable[[Subject], Loaded]] = {
    "float32": lambda subject: Loaded(subject.plain(torch.float32)),
    "bfloat16": lambda subject: Loaded(subject.plain(torch.bfloat16)),
    "float16": lambda subject: Loaded(subject.plain(torch.float16)),
    "float16 clamped": clamped,
    "float16 with islands": with_islands,
    "float16 rescaled": rescaled,
}
TRUTH, PLAIN, OURS = "float32", "float16", "float16 rescaled"


# What a model says


@torch.inference_mode()
def logits_of(model: Any, batches: Batches) -> Tensor:
    """Return the logits of all positions, (positions, vocabulary) in float64."""
    return torch.cat([model(**one).logits.double().flatten(0, 1) for one in batches])


def closeness(truth: Tensor, logits: Tensor) -> dict[str, Any]:
    """Compare logits, position by position; where they are not finite they are infinitely far off. KL is in nats."""
    finite = logits.isfinite().all(dim=-1)
    expected = truth.log_softmax(-1)
    kl = (expected.exp() * (expected - logits.log_softmax(-1))).sum(-1).clamp(min=0)
    kl = torch.where(finite, kl, math.inf)
    agree = finite & (truth.argmax(-1) == logits.argmax(-1))
    return {
        "kl_median": _number(kl.median()), "kl_mean": _number(kl.mean()), "top1_agreement": float(agree.double().mean()),
        "finite": bool(finite.all()), "finite_share": float(finite.double().mean()),
    }  # fmt: skip


def _number(value: Tensor) -> float | None:
    return float(value) if value.isfinite() else None  # JSON knows no infinity


def weight_bytes(model: Any) -> int:
    """Return the bytes of all parameters, tied ones once."""
    return sum(one.nbytes for one in model.parameters())


def generation_seconds(models: Mapping[str, Any], prompt: Tensor, new_tokens: int, repeats: int) -> dict[str, float]:
    """Return the median seconds of a greedy generation of so many tokens, the models in turn."""
    found: dict[str, list[float]] = {name: [] for name in models}
    for number in range(repeats + 1):
        for name, model in models.items():
            started = time.perf_counter()
            with torch.inference_mode():
                model.generate(
                    prompt, attention_mask=torch.ones_like(prompt), do_sample=False, min_new_tokens=new_tokens,
                    max_new_tokens=new_tokens,
                )  # fmt: skip
            if number:  # the first round warms up
                found[name].append(time.perf_counter() - started)
    return {name: statistics.median(seconds) for name, seconds in found.items()}


def exactness(subject: Subject, rescale: Rescale | None, batches: Batches) -> dict[str, Any] | None:
    """Return whether folding `rescale` in leaves the logits of float32 and bfloat16 as they are, bit for bit."""
    if rescale is None:
        return None
    found: dict[str, Any] = {}
    for dtype in (torch.float32, torch.bfloat16):
        model, name = subject.plain(dtype), str(dtype).removeprefix("torch.")
        before = logits_of(model, batches)
        try:
            fold_in(model, rescale)
        except RescaleError as exc:
            found[name] = {"bitwise": False, "problem": exc.problem}
            continue
        after = logits_of(model, batches)
        found[name] = {
            "bitwise": torch.equal(before, after),
            "largest_difference": float((before - after).abs().max()),
        }
    return found


def largest_by_layer(
    subject: Subject, batches: Batches, rescale: Rescale | None = None, islands: Sequence[str] = ()
) -> list[float]:
    """Return the largest |number| that each block computes outside of islands, which are in float32.

    Looked at in bfloat16, which holds them all, and where no mask is filled with float16's own largest number.
    """
    model = subject.plain(torch.bfloat16)
    if rescale:
        fold_in(model, rescale)
    found = record_peaks(model, batches, torch.bfloat16).operations
    return [
        max(
            (size for (name, _), size in found.items() if _inside(name, [block]) and not _inside(name, islands)),
            default=0.0,
        )
        for block in block_names(model)
    ]


def _inside(name: str, modules: Sequence[str]) -> bool:
    return any(f"{name}.".startswith(f"{one}.") for one in modules)
