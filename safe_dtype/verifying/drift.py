"""Measure how far a candidate drifts from its reference: both at once, or one after the other."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sized
from pathlib import Path

from ..errors import IncomparableOutputsError
from ..facts import Drift
from ..rendering.progress import tell
from .outputs import Batch, Model, evaluating, outputs_of
from .positions import alignment_of
from .recording import Recording, write_outputs
from .reference import checked_outputs, digest
from .tally import Tally

Progress = Callable[[int], None]  # gets the number of batches that are done


def measure_drift(
    candidate: Model, reference: Model, batches: Iterable[Batch], *, progress: Progress | None = None
) -> Drift:
    """Return how far `candidate` drifts from `reference` on the same batches.

    Both are called as `model(**batch)`, in inference mode, modules in eval mode and with the batch on their own device
    and floating inputs in their own dtype. Outputs of earlier batches are not kept. Positions that
    `attention_mask` hides do not count. `exceeds` tells whether the drift is too large. The same outputs give the same `Drift`, bit for bit; equal outputs give KL 0,
    agreement 1 and rel_rms 0; NaN or +Inf from the candidate is infinitely far off and agrees with nothing.

    All floating outputs are compared, each for itself: the figures are those of the main one (the logits, or where there
    are none the last hidden state, or the first), and those of all others stand in `heads`, by name: boxes, masks, depths,
    values, audio (see `results_of`; losses, states and what stands once a layer are no outputs). What is called logits is
    compared as logits, all else as values. `exceeds` has the worst of them decide, and a head that the candidate does not
    return exceeds every limit. NaN that both give at the same places is no difference in a head; hidden states beside
    the main output have to be numbers, and no more.

    The kind of the drift follows the outputs. "tokens": logits (batch, positions, vocabulary), with the perplexity
    ratio where the batch has `labels` (-100 counts for none), or `input_ids` and the model predicts the next token.
    "classes": logits (batch, classes). "labels": logits that are decided each for itself, by a sigmoid: of a model whose
    `config.problem_type` is "multi_label_classification", or whose loss has it so (detectors with a focal loss), or with
    as many floating `labels` in the batch; each label counts as a position of two classes. "pixels": logits (batch,
    classes, height, width), with mIoU, at the size of the logits; `kl_p99` is up to 0.05 % too high. "values": no logits,
    or of one class only, or of a model whose `config.problem_type` is "regression": numbers, in rows along the last
    dimension (of four along the second); KL is 0, and `top1_agreement` the share of the rows whose largest element is the
    same.

    Args:
        candidate: A module or a function.
        reference: The model that is taken for the truth.
        batches: Named inputs; tensors or anything else that the models take. May be a generator: they are read once.
        progress: Is called after every batch with the number of batches done.

    Raises:
        UnsteadyReferenceError: If the reference gives two different outputs for the first batch.
        DegenerateReferenceError: If its outputs are not finite, flat, or the same whatever the input.
        IncomparableOutputsError: If the outputs differ in shape, or hold nothing that can be compared.
        NothingToCompareError: If there is no batch, or no position that counts.
    """
    alignment = alignment_of(reference, candidate)
    tally = Tally(alignment)
    with evaluating(candidate, reference):
        for done, (batch, expected) in enumerate(checked_outputs(reference, batches, alignment), 1):
            tally.add(expected, outputs_of(candidate, batch), batch)
            _tell(progress, done, batches)
    return tally.drift()


def record_outputs(
    model: Model, batches: Iterable[Batch], folder: str | os.PathLike[str], *, progress: Progress | None = None
) -> Recording:
    """Write the outputs of the reference `model` on `batches` into `folder`, one file a batch, for `drift_from`.

    Raises:
        UnsteadyReferenceError: As in `measure_drift`.
        DegenerateReferenceError: As in `measure_drift`. The files stay in `folder` and are of no use.
        NothingToCompareError: If there are no batches.
    """
    kinds, inputs = [], []
    Path(folder).mkdir(parents=True, exist_ok=True)
    alignment = alignment_of(model)
    with evaluating(model):
        for number, (batch, outputs) in enumerate(checked_outputs(model, batches, alignment)):
            write_outputs(outputs, Path(folder), number)
            kinds.append(outputs.kind)
            inputs.append(digest(batch.items()))
            _tell(progress, number + 1, batches)
    return Recording(Path(folder), alignment, tuple(kinds), tuple(inputs))


def drift_from(
    recording: Recording, candidate: Model, batches: Iterable[Batch], *, progress: Progress | None = None
) -> Drift:
    """Return how far `candidate` drifts from the recorded reference: bit for bit the `Drift` of `measure_drift`.

    Raises:
        IncomparableOutputsError: If the batches are not those of the recording, or the outputs differ in shape.
        NothingToCompareError: If no position is left to compare.
    """
    return tallied(recording, candidate, batches, progress=progress).drift()


def tallied(
    recording: Recording, candidate: Model, batches: Iterable[Batch], *, progress: Progress | None = None
) -> Tally:  # fmt: skip
    """Return the comparison that `drift_from` takes its figures from: it knows the KL of each position as well.

    Raises:
        IncomparableOutputsError: As in `drift_from`.
    """
    tally = Tally(recording.alignment)
    done = 0
    with evaluating(candidate):
        for number, batch in enumerate(batches):
            expected = recording.outputs(number, batch)
            tally.add(expected, outputs_of(candidate, batch), batch)
            done = number + 1
            _tell(progress, done, batches)
    if done != len(recording.inputs):
        raise IncomparableOutputsError(
            f"{done} batches came, and the reference was recorded on {len(recording.inputs)}", "pass all of them"
        )
    return tally


def _tell(progress: Progress | None, done: int, batches: Iterable[Batch]) -> None:
    if progress:
        progress(done)
    if isinstance(batches, Sized):
        tell("running it on batches", done, len(batches))
