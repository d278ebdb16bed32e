"""What loaders make of a staged folder, measured from its files: plain transformers in a process of its own, and ours."""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from ...errors import CheckpointError, NothingToCompareError, SafeDtypeWarning
from ...facts import FEW_POSITIONS, FLOAT32, Dtype, exceeds
from ...loading import SafeAutoModel
from ...loading.trials.second_copy import load_apart
from ...models.blocks import block_names
from ...processes.child import how_it_ended, last_error, run
from ...verifying import BUILT_IN_TEXT, Checkpoint, Recording, drift_from, record_outputs
from ...verifying.compare import compare_logits
from ...verifying.output_kinds import two_classes_each
from ...verifying.outputs import Batch, outputs_of
from ...verifying.positions import as_float64, chunks, counted, rows_that_count
from .evidence import Fidelity, MeasuredOn, not_publishable

_TOKENS = 512
_POSITIONS_KEPT = 512
_CHILD = Path(__file__).with_name("plain_child.py")
_WITH_DISTRIBUTIONS = ("tokens", "classes", "labels")


@dataclass(frozen=True, slots=True)
class Reference:
    """The base in float32: what it said of some batches, and how large its activations became."""

    recording: Recording
    batches: Sequence[Batch]
    measured_on: MeasuredOn
    peaks: Mapping[str, float]  # by block
    architecture: str


def inputs_for(checkpoint: Checkpoint, vocab_size: int, text: str | None) -> tuple[Sequence[Batch], str, str | None]:
    """Return batches, what they are, and the SHA-256 of the text that they are from.

    Raises:
        CheckpointError: If a `text` was given, and there is no tokenizer.
        NothingToCompareError: If it is too short.
    """
    words = BUILT_IN_TEXT if text is None else text
    try:
        batches = checkpoint.batches(text, tokens=_TOKENS)
    except (CheckpointError, NothingToCompareError):
        if text is not None:
            raise
        return checkpoint.random_batches(vocab_size, tokens=_TOKENS), "random tokens", None
    tokens = sum(batch["input_ids"].numel() for batch in batches)
    if text is not None and tokens < FEW_POSITIONS:
        raise NothingToCompareError(
            f"the text has {tokens} tokens, and what is published is measured on {FEW_POSITIONS} at least",
            "pass a longer one: a few sentences",
        )
    kind = "built-in text" if text is None else "own text"
    return batches, kind, sha256_of_text(words)


def sha256_of_text(text: str) -> str:
    """Return the SHA-256 under which the evidence names a text."""
    return sha256(text.encode()).hexdigest()


def reference_of(checkpoint: Checkpoint, vocab_size: int, text: str | None, folder: Path) -> Reference:
    """Run the base in float32, and keep what it says in `folder`.

    Raises:
        CheckpointError: If transformers cannot load it, or it reads something else than text.
        VerifyError: If it is no reference.
    """
    batches, kind, digest = inputs_for(checkpoint, vocab_size, text)
    model = load_apart(checkpoint, FLOAT32)
    with _peaks_of(model) as peaks:
        recording = record_outputs(model, batches, folder)
    positions = sum(one["input_ids"].numel() for one in batches)
    return Reference(recording, batches, MeasuredOn(kind, digest, positions), peaks, type(model).__name__)


def plainly(
    staged: Path, reference: Reference, *, device: str, max_drift: float, scratch: Path
) -> tuple[Fidelity, dict[str, float]]:
    """Return what `from_pretrained` of plain transformers makes of a folder, and the largest |number| of each block.

    Raises:
        NotPublishableError: If it cannot load or run it.
    """
    answer = _in_a_child(staged, reference, device=device, scratch=scratch)
    answers = [load_file(f"{path}.out") for path in _inputs(scratch, len(reference.batches))]
    fidelity = _fidelity("transformers", reference, _Played(answers), max_drift)
    dtype, nonfinite = answer["dtype"], int(answer["nonfinite"])
    return _with(fidelity, loaded_in=dtype, ended_in=dtype, nonfinite=nonfinite), answer["peaks"]


def by_safe_dtype(staged: Path, dtype: Dtype, reference: Reference, *, device: str, max_drift: float) -> Fidelity:
    """Return what SafeAutoModel makes of a folder when it is asked for it in `dtype`, guarded as ever.

    Raises:
        SafeDtypeError: If it cannot load or run it.
    """
    where: dict[str, Any] = {} if device == "cpu" else {"device_map": device}
    with warnings.catch_warnings():
        # It may leave the dtype that it is asked for: that is looked at, and written down.
        warnings.simplefilter("ignore", SafeDtypeWarning)
        model = SafeAutoModel.from_pretrained(staged, dtype=dtype.name, **where).eval()
        loaded_in, seen = _dtype_of(model), _WatchedModel(model)
        fidelity = _fidelity("safe_dtype", reference, seen, max_drift)
    return _with(fidelity, loaded_in=loaded_in, ended_in=_dtype_of(model), nonfinite=seen.nonfinite)


def _with(fidelity: Fidelity, *, loaded_in: str, ended_in: str, nonfinite: int) -> Fidelity:
    return Fidelity(
        fidelity.loader, loaded_in, ended_in, fidelity.drift, nonfinite,
        fidelity.beyond or (f"{nonfinite} of its outputs are NaN or infinity" if nonfinite else None), fidelity.kl,
    )  # fmt: skip


def _fidelity(loader: str, reference: Reference, candidate: Any, max_drift: float) -> Fidelity:
    """Compare twice over what the candidate says once: the drift by the measure of all, and KL position by position."""
    recorded = _RecordedOutputs(candidate)
    drift = drift_from(reference.recording, recorded, reference.batches)
    kl: tuple[float, ...] = ()
    if drift.kind in _WITH_DISTRIBUTIONS:
        kl = tuple(islice(_kl(reference, recorded.answers), _POSITIONS_KEPT))
    return Fidelity(loader, "", "", drift, 0, exceeds(drift, max_drift), kl)


def _kl(reference: Reference, answers: Sequence[Any]) -> Iterator[float]:
    for number, (batch, answer) in enumerate(zip(reference.batches, answers, strict=True)):
        expected = reference.recording.outputs(number, batch).main
        mask = counted(expected, batch, reference.recording.alignment)
        first, second = (value.reshape(-1, value.shape[-1]) for value in (expected, answer.main))
        for rows in chunks(rows_that_count(first, mask), first.shape[1]):
            # Seven places are more than a plot shows, and a file of 512 numbers stays small.
            pair = (as_float64(first, rows), as_float64(second, rows))
            if reference.recording.kinds[number] == "labels":
                pair = (two_classes_each(pair[0]), two_classes_each(pair[1]))
            compared = compare_logits(*pair, None)
            yield from (float(f"{value:.7g}") for value in compared.kl.tolist())


class _RecordedOutputs:
    """Runs a candidate, and keeps what it said until the KL of each position is taken from it."""

    def __init__(self, candidate: Any) -> None:
        self._candidate = candidate
        self.answers: list[Any] = []

    def __call__(self, **batch: Any) -> Any:
        returned = self._candidate(**batch)
        self.answers.append(outputs_of(lambda **_: returned, batch))
        return returned


class _Played:
    """Says again, batch by batch, what a process has written down."""

    def __init__(self, answers: list[dict[str, torch.Tensor]]) -> None:
        self._left = iter(answers)

    def __call__(self, **_batch: Any) -> dict[str, Any]:
        outputs: dict[str, Any] = dict(next(self._left))
        hidden = outputs.pop("hidden", None)
        return outputs if hidden is None else {**outputs, "hidden_states": (hidden,)}


class _WatchedModel:
    """A model that counts what is not finite in its outputs."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self.nonfinite = 0

    def __call__(self, **batch: Any) -> Any:
        parameter = next(self._model.parameters())
        inputs = {
            name: tensor.to(parameter.device) if isinstance(tensor, torch.Tensor) else tensor
            for name, tensor in batch.items()
        }
        returned = self._model(**inputs)
        main = outputs_of(lambda **_: returned, batch).main
        self.nonfinite += int((~(main < math.inf)).sum())
        return returned


def _dtype_of(model: Any) -> str:
    return str(model.dtype).removeprefix("torch.")


@contextmanager
def _peaks_of(model: Any) -> Iterator[dict[str, float]]:
    peaks: dict[str, float] = {}

    def look(name: str, returned: Any) -> None:
        hidden = returned[0] if isinstance(returned, tuple | list) else returned
        peaks[name] = max(float(hidden.detach().abs().amax()), peaks.get(name, 0.0))

    handles = [
        model.get_submodule(name).register_forward_hook(lambda _, __, returned, name=name: look(name, returned))
        for name in block_names(model)
    ]
    try:
        yield peaks
    finally:
        for handle in handles:
            handle.remove()


def _inputs(scratch: Path, count: int) -> list[Path]:
    return [scratch / f"inputs-{number:03}.safetensors" for number in range(count)]


def _in_a_child(staged: Path, reference: Reference, *, device: str, scratch: Path) -> dict[str, Any]:
    scratch.mkdir(parents=True, exist_ok=True)
    files = _inputs(scratch, len(reference.batches))
    for path, batch in zip(files, reference.batches, strict=True):
        # A copy each: safetensors refuses two names for one tensor, as labels and input_ids may be.
        save_file({name: one.clone() for name, one in batch.items() if isinstance(one, torch.Tensor)}, path)
    more = [
        {name: one for name, one in batch.items() if not isinstance(one, torch.Tensor)} for batch in reference.batches
    ]
    order = {
        "folder": str(staged.resolve()), "architecture": reference.architecture, "device": device,
        "blocks": list(reference.peaks), "batches": [str(path.resolve()) for path in files], "more": more,
    }  # fmt: skip
    where, log = scratch.resolve() / "order.json", scratch / "plain.log"
    where.write_text(json.dumps(order), encoding="utf-8")
    log.unlink(missing_ok=True)
    # A copy: beside the script's own file lie modules of ours, which Python would import in place of others.
    script = shutil.copy(_CHILD, scratch.resolve())
    if status := run([sys.executable, str(script), str(where)], log=log, end=None, environment=_environment()):
        why = last_error(log) if status > 0 else how_it_ended(status, 0)
        raise not_publishable(staged, f"plain transformers cannot load and run it ({why})")
    answer: dict[str, Any] = json.loads(where.with_suffix(".answer.json").read_text(encoding="utf-8"))
    if not answer.pop("alone"):
        raise not_publishable(
            staged, "safe_dtype was in the process that was to be without it", "unset SAFE_DTYPE_PATCH and PYTHONPATH"
        )
    return answer


def _environment() -> dict[str, str]:
    """Return this process's environment without what has a Python patch itself, and without a token."""
    ours = ("SAFE_DTYPE_PATCH", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
    return {name: value for name, value in os.environ.items() if name not in ours} | {"HF_HUB_OFFLINE": "1"}
