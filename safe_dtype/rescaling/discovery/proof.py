"""Is a gauge exact? It is folded into the twin with its real eps, and the same bits have to come out."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import RescaleError
from ...errors.of_the_moment import is_of_the_moment
from ...facts import Gauge, Rescale
from ..folding.fold import Fold
from .jacobian import GAINS
from .knobs import multiply_matrices
from .trace import first_returned, is_number, unchanged
from .twin import Twin, run_twin

BITS = (4, 7)
_FLOAT64_ROUNDING = 1e-11  # of the largest output; sums may come in another order

Key = tuple[torch.dtype, float]  # in which dtype, and with how large weights


@dataclass(frozen=True, slots=True)
class Proof:
    """What became of a twin's outputs with a gauge in force."""

    exact: bool  # the same in float64 but for its rounding, and the same bits in float32, for all sizes of weights
    bitwise_float32: bool
    bitwise_bfloat16: bool
    covered: int  # blocks that returned exactly 2 ** -bits times as much
    blocks: int  # of these
    max_rel_error: float  # in float64, of the largest output
    problem: str = ""

    @property
    def coverage(self) -> str:
        """Which of the blocks return less: "all", "some" or "none"."""
        return "all" if self.covered == self.blocks else "some" if self.covered else "none"


@dataclass(frozen=True, slots=True)
class _Run:
    outputs: Tensor
    returned: Mapping[str, tuple[Tensor, ...]]  # by the blocks


class Prover:
    """A twin in three dtypes, and what it computes there as it is. Proves one gauge after the other."""

    def __init__(self, twin: Twin, blocks: Iterable[str] = ()) -> None:
        self._twin = twin
        self._blocks = tuple(blocks)
        self._models: dict[torch.dtype, Any] = {}
        self._before: dict[Key, _Run] = {}
        self._weights: dict[torch.dtype, list[Tensor]] = {}

    def prove(self, gauge: Gauge, *, blocks: Sequence[str] = (), bits: Sequence[int] = BITS) -> Proof:
        """Return whether `gauge` leaves all outputs as they are, and how many of `blocks` return less with it.

        Args:
            gauge: Of the twin.
            blocks: Of those that this was made for.
            bits: By how many bits to move; the first number is tried in every dtype and with weights of every size.
        """
        try:
            in_float32 = [self._compared(gauge, (torch.float32, gain), bits[0], blocks) for gain in GAINS]
            in_float32 += [self._compared(gauge, (torch.float32, GAINS[0]), more, blocks) for more in bits[1:]]
            in_float64 = self._compared(gauge, (torch.float64, GAINS[0]), bits[0], blocks)
            in_bfloat16 = self._in_bfloat16(gauge, bits[0])
        except RescaleError as exc:
            return Proof(
                exact=False, bitwise_float32=False, bitwise_bfloat16=False, covered=0, blocks=len(blocks),
                max_rel_error=float("nan"), problem=exc.problem,
            )  # fmt: skip
        bitwise = all(error == 0.0 for error, _ in in_float32)
        error = in_float64[0]
        exact = bitwise and error <= _FLOAT64_ROUNDING
        worst = max(one for one, _ in in_float32)
        problem = "" if exact else f"outputs differ by {error:.2g} of the largest in float64, {worst:.2g} in float32"
        covered = min(one for _, one in in_float32)
        return Proof(exact, bitwise, in_bfloat16 == 0.0, covered, len(blocks), error, problem)

    def _in_bfloat16(self, gauge: Gauge, bits: int) -> float:
        try:
            return self._compared(gauge, (torch.bfloat16, GAINS[0]), bits, ())[0]
        except RuntimeError as exc:  # some modelling code insists on float32
            if isinstance(exc, RescaleError) or is_of_the_moment(exc):
                raise
            return float("nan")

    def _compared(self, gauge: Gauge, key: Key, bits: int, blocks: Sequence[str]) -> tuple[float, int]:
        """Return the relative error of the outputs, and how many of `blocks` return exactly 2 ** -bits as much."""
        model, before = self._model(key), self._reference(key)
        fold = Fold(model)
        fold.move_to(Rescale(((gauge, bits),)))
        try:
            after = self._run(model, key)
        finally:
            fold.undo()
        return _error(before.outputs, after.outputs), sum(
            _all_scaled(before.returned.get(name, ()), after.returned.get(name, ()), bits) for name in blocks
        )

    def _model(self, key: Key) -> Any:
        dtype, gain = key
        if dtype not in self._models:
            self._models[dtype] = model = copy.deepcopy(self._twin.model).to(dtype)
            self._weights[dtype] = [one.data for one in model.parameters()]
        model = self._models[dtype]
        for parameter, data in zip(model.parameters(), self._weights[dtype], strict=True):
            parameter.data = data
        multiply_matrices(model, gain)
        return model

    def _reference(self, key: Key) -> _Run:
        if key not in self._before:
            self._before[key] = self._run(self._model(key), key)
        return self._before[key]

    def _run(self, model: Any, key: Key) -> _Run:
        dtype, gain = key
        batch = self._twin.batches[(GAINS.index(gain) + 1) % len(self._twin.batches)]
        batch = {name: one.to(dtype) if is_number(one) else one for name, one in batch.items()}
        returned: dict[str, list[Tensor]] = {}
        with unchanged(model), _kept(model, self._blocks, returned), torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            outputs = run_twin(model, batch) if dtype is torch.float64 else _outputs_of(model(**batch))
        return _Run(outputs, {name: tuple(ones) for name, ones in returned.items()})


def prove(twin: Twin, gauge: Gauge, *, blocks: Sequence[str] = (), bits: Sequence[int] = BITS) -> Proof:
    """Return whether `gauge` is exact on `twin`; see `Prover.prove`."""
    return Prover(twin, blocks).prove(gauge, blocks=blocks, bits=bits)


def _outputs_of(output: Mapping[str, Any]) -> Tensor:
    named = (output.get(name) for name in ("logits", "last_hidden_state"))
    output_tensor: Tensor = next(one for one in (*named, *output.values()) if isinstance(one, Tensor))
    return output_tensor


def _error(before: Tensor, after: Tensor) -> float:
    """Return the largest difference over the largest value; 0.0 only for the same bits."""
    if torch.equal(before, after):
        return 0.0
    difference = (after.double() - before.double()).abs().max() / before.double().abs().max()
    return max(float(difference), 5e-324) if difference == difference else float("inf")


def _all_scaled(before: Sequence[Tensor], after: Sequence[Tensor], bits: int) -> bool:
    return bool(before) and all(torch.equal(one * 2.0**-bits, other) for one, other in zip(before, after, strict=True))


@contextmanager
def _kept(model: nn.Module, names: Iterable[str], returned: dict[str, list[Tensor]]) -> Iterator[None]:
    handles = []
    for name in names:

        def keep(_module: nn.Module, _args: Any, output: Any, name: str = name) -> None:
            tensor = first_returned(output)
            if tensor is not None:
                returned.setdefault(name, []).append(tensor.detach().clone())

        handles.append(model.get_submodule(name).register_forward_hook(keep))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
