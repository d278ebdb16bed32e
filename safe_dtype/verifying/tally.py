"""Adds up the drift over batches without keeping outputs: the one place where a `Drift` is made."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..errors import IncomparableOutputsError, NothingToCompareError
from ..facts import Drift
from .compare import NOT_FINITE, Compared, clear_margins, compare_logits, compare_values, cosines
from .output_kinds import as_compared, kind_of, two_classes_each
from .outputs import Batch, Outputs
from .positions import Alignment, as_float64, chunks, counted, rows_that_count, tables, targets
from .result_fields import is_hidden_state
from .spread import BinnedSamples, EverySample

_CHOICES = ("tokens", "classes", "labels")


class Tally:
    """Takes the outputs of a reference and of a candidate, batch by batch; gives their `Drift` at the end.

    Everything is computed on the CPU from float32 values in float64, a few rows at a time: the same figures for every
    device, the same bits for the same outputs.
    """

    def __init__(self, alignment: Alignment) -> None:
        self._alignment = alignment
        self._kind = ""
        self._kl: EverySample | BinnedSamples = EverySample()
        self.positions = 0  # that were compared so far
        self._agreeing = self._targets = self._hidden_rows = 0
        self._max_abs = self._squared_difference = self._squared_reference = 0.0
        self._reference_nll = self._candidate_nll = self._cosine = 0.0
        self._confusion: Tensor | None = None  # (classes, classes + 1), the reference's class first
        self._missing: dict[str, str] = {}  # heads that a batch of the candidate's lacks, with their kinds
        self._nats = 0.0
        self._clear_flips = 0
        self._heads: dict[tuple[str, str], Tally] = {}  # by name and kind, which may differ from batch to batch

    def add(self, reference: Outputs, candidate: Outputs, batch: Batch) -> None:
        """Compare one batch's outputs.

        Raises:
            IncomparableOutputsError: If their kinds or shapes differ from each other, or kinds from earlier batches'.
        """
        self._check(reference, candidate)
        target = targets(reference.main, batch, self._alignment) if reference.kind == "tokens" else None
        mask = counted(reference.main, batch, self._alignment)
        for expected, output in zip(tables(reference.main), tables(candidate.main), strict=True):
            for rows in chunks(rows_that_count(expected, mask), expected.shape[1]):
                a, b = as_float64(expected, rows), as_float64(output, rows)
                if self._kind == "values":
                    compared = compare_values(a, b)
                elif self._kind == "labels":
                    clear = clear_margins(a, by_sigmoid=True).repeat_interleave(a.shape[1])
                    compared = compare_logits(two_classes_each(a), two_classes_each(b), None, clear)
                else:
                    compared = compare_logits(a, b, None if target is None else target.flatten()[rows])
                self._take(compared, a.shape[1])
        if reference.hidden is not None and candidate.hidden is not None:
            self._add_hidden(reference.hidden, candidate.hidden, batch)
        by_sigmoid = self._kind == "labels"
        for name, head in reference.heads.items():
            if name in candidate.heads:
                self._add_head(name, head, candidate.heads[name], batch, by_sigmoid=by_sigmoid)
            elif not is_hidden_state(name):
                self._missing[name] = kind_of(name, head, by_sigmoid=by_sigmoid)

    def drift(self) -> Drift:
        """Return the drift over everything that was added.

        Raises:
            NothingToCompareError: If no position was added.
        """
        if not self.positions:
            raise NothingToCompareError(
                "no batch came, or every position is hidden", "pass batches with positions that attention_mask shows"
            )
        return Drift(
            kind=self._kind,
            positions=self.positions,
            kl_mean=self._kl.mean(),
            kl_p99=self._kl.p99(),
            top1_agreement=self._agreeing / self.positions,
            max_abs=self._max_abs,
            rel_rms=_rel_rms(self._squared_difference, self._squared_reference),
            perplexity_ratio=self._perplexity_ratio(),
            hidden_cosine=self._cosine / self._hidden_rows if self._hidden_rows else None,
            miou=None if self._confusion is None else _miou(self._confusion),
            heads=self._drifts_of_heads(),
            reference_nats=self._nats / self.positions if self._kind in _CHOICES else None,
            clear_flips=self._clear_flips / self.positions if self._kind in _CHOICES else None,
        )

    def kl(self, most: int) -> tuple[float, ...]:
        """Return KL at each position, in nats, of the first `most`; nothing of pixels and values."""
        return self._kl.first(most) if self._kind in _CHOICES and isinstance(self._kl, EverySample) else ()

    def _check(self, reference: Outputs, candidate: Outputs) -> None:
        # A regression, in numbers, is "classes" from a function, of which nobody knows it; so are several labels.
        both_logits = reference.source == candidate.source == "logits"
        kinds = (reference.kind, candidate.kind)
        no_choice = next((kind for kind in ("values", "labels") if both_logits and kind in kinds), None)
        kind = no_choice or reference.kind
        if not self._kind:
            self._kind = kind
            self._kl = BinnedSamples() if self._kind == "pixels" else EverySample()
        if self._kind != kind or (reference.kind != candidate.kind and not no_choice):
            raise IncomparableOutputsError(
                f"the reference gives {reference.kind} ({reference.source}), the candidate {candidate.kind} "
                f"({candidate.source}), the batches before {self._kind}",
                "load both with the same class",
            )
        pairs = [("outputs", reference.main, candidate.main)]
        if reference.hidden is not None and candidate.hidden is not None:
            pairs.append(("hidden states", reference.hidden, candidate.hidden))
        pairs += [
            (name, head, candidate.heads[name]) for name, head in reference.heads.items() if name in candidate.heads
        ]
        for name, expected, output in pairs:
            if expected.shape != output.shape:
                raise IncomparableOutputsError(
                    f"the reference's {name} have the shape {tuple(expected.shape)}, the candidate's {tuple(output.shape)}",
                    "compare models of the same architecture and vocabulary",
                )

    def _take(self, compared: Compared, width: int) -> None:
        self.positions += len(compared.kl)
        self._kl.add(compared.kl)
        self._agreeing += int((compared.reference_best == compared.candidate_best).sum())
        self._max_abs = max(self._max_abs, compared.max_abs)
        self._squared_difference += compared.squared_difference
        self._squared_reference += compared.squared_reference
        self._reference_nll += compared.reference_nll
        self._candidate_nll += compared.candidate_nll
        self._targets += compared.targets
        self._nats += compared.reference_nats
        self._clear_flips += compared.clear_flips
        if self._kind == "pixels":
            confusion = _confusion(compared, width)
            self._confusion = confusion if self._confusion is None else self._confusion + confusion

    def _add_hidden(self, reference: Tensor, candidate: Tensor, batch: Batch) -> None:
        mask = counted(reference, batch, self._alignment)
        for expected, output in zip(tables(reference), tables(candidate), strict=True):
            for rows in chunks(rows_that_count(expected, mask), expected.shape[1]):
                self._cosine += float(cosines(as_float64(expected, rows), as_float64(output, rows)).sum())
                self._hidden_rows += len(rows)

    def _add_head(self, name: str, reference: Tensor, candidate: Tensor, batch: Batch, *, by_sigmoid: bool) -> None:
        kind, expected, output = as_compared(name, reference, candidate, by_sigmoid=by_sigmoid)
        if expected.ndim == 2 and any(
            isinstance(mask, Tensor) and mask.shape == expected.shape
            for mask in (batch.get("attention_mask"), batch.get("decoder_attention_mask"))
        ):
            kind, expected, output = "values", expected[..., None], output[..., None]  # one number a position
        tally = self._heads.setdefault((name, kind), Tally(self._alignment))
        tally.add(Outputs(kind, expected), Outputs(kind, output), batch)

    def _drifts_of_heads(self) -> tuple[tuple[str, Drift], ...]:
        drifts = [
            (name, tally.drift())
            for (name, _), tally in self._heads.items()
            if tally.positions and name not in self._missing
        ]
        drifts += [(name, _not_returned(kind)) for name, kind in self._missing.items()]
        # Hidden states are no answers: nobody knows how far off they may be, but for numbers they have to be.
        return tuple(
            (name, drift) for name, drift in drifts if not (is_hidden_state(name) and math.isfinite(drift.kl_mean))
        )

    def _perplexity_ratio(self) -> float | None:
        if not self._targets:
            return None
        worse_by = (self._candidate_nll - self._reference_nll) / self._targets  # nats a token
        return math.exp(worse_by) if worse_by < 700 else math.inf  # exp(710) is beyond float64


def _not_returned(kind: str) -> Drift:
    return Drift(
        kind, positions=0, kl_mean=math.inf, kl_p99=math.inf, top1_agreement=0.0, max_abs=math.inf, rel_rms=math.inf
    )


def _rel_rms(squared_difference: float, squared_reference: float) -> float:
    if squared_difference == 0:
        return 0.0
    return math.sqrt(squared_difference / squared_reference) if squared_reference else math.inf


def _confusion(compared: Compared, classes: int) -> Tensor:
    """Count the pairs of classes; the last column is for pixels where the candidate is not finite."""
    candidate_best = torch.where(compared.candidate_best == NOT_FINITE, classes, compared.candidate_best)
    pairs = compared.reference_best * (classes + 1) + candidate_best
    return torch.bincount(pairs, minlength=classes * (classes + 1)).reshape(classes, classes + 1)


def _miou(confusion: Tensor) -> float:
    """Return the mean over the classes that occur in either prediction."""
    both = confusion[:, :-1].diagonal()
    either = confusion.sum(1) + confusion[:, :-1].sum(0) - both
    occurs = either > 0
    return float((both[occurs].double() / either[occurs]).mean())
