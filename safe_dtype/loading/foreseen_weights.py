"""What becomes of the weights in a checkpoint's files when its class takes them: shapes that differ, what is not there, and what is there too."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import transformers

from ..checkpoints.known_config import known_config
from ..facts import CheckpointFacts, ForeseenFailure
from ..facts.foreseen_failure import LEAVING_OUT
from .planned_once import already_planned
from .quiet_load import no_progress_bar
from .random_weights import kinds
from .request import Request

_MOST_TENSORS = 5000  # a mixture with a file's tensor for each expert takes seconds beyond that
_NAMED = 2
_AS_PUBLISHED = "take both as their author published them"
_RANDOM = "it will load, and answer at random"


@dataclass(frozen=True, slots=True)
class _Report:
    """What transformers says of a load, names as in the model."""

    mismatched: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]  # name, in the files, by the config
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]  # in the files alone


def foreseen_of_weights(request: Request, checkpoint: CheckpointFacts) -> Iterator[ForeseenFailure]:
    """Yield what will be wrong with the weights of `checkpoint` in the class that its config names.

    The model is made without memory, and transformers' own loading brings the shapes from the headers into it. Nothing
    is said of files that are not on this machine, of quantized ones and of adapters.
    """
    model_class = getattr(transformers, checkpoint.architecture or "", None)
    is_here = checkpoint.identity is not None and checkpoint.identity.contents is not None
    if (
        model_class is None
        or not is_here
        or checkpoint.quantization
        or checkpoint.adapter
        or checkpoint.file_format not in ("safetensors", "pytorch")
        or len(checkpoint.tensors) > _MOST_TENSORS
    ):
        return
    try:
        report = _loaded_without_memory(model_class, request, checkpoint)
    except Exception as exc:  # noqa: BLE001  (what a class raises over a config has no end; loading will raise it as well)
        why = f"{type(exc).__name__}: {' '.join(str(exc).split())}"
        yield ForeseenFailure(f"{checkpoint.architecture} cannot be made of its config.json ({why})", _AS_PUBLISHED)
        return
    if report.mismatched:
        name, in_files, by_config = report.mismatched[0]
        others = f", and {len(report.mismatched) - 1} more differ" if len(report.mismatched) > 1 else ""
        problem = (
            f"its weights have other shapes than its config.json says: {name} is {list(in_files)} in the files and "
            f"{list(by_config)} by the config{others}"
        )
        yield ForeseenFailure(problem, _AS_PUBLISHED)
    elif report.missing:
        lacking = f"{count} of its weights are" if (count := len(report.missing)) > 1 else "one of its weights is"
        problem = f"{lacking} not in its files ({kinds(report.missing, _NAMED)}), and transformers fills them with random numbers"
        yield ForeseenFailure(problem, "download all of its files, or train it first", _RANDOM)
    if report.unexpected:
        more = f"{count} tensors" if (count := len(report.unexpected)) > 1 else "a tensor"
        problem = f"its files hold {more} that {checkpoint.architecture} has no place for ({kinds(report.unexpected, _NAMED)})"
        yield ForeseenFailure(problem, "check the `architectures` and sizes in its config.json", LEAVING_OUT)


def _loaded_without_memory(model_class: Any, request: Request, checkpoint: CheckpointFacts) -> _Report:
    names = ("revision", "subfolder", "cache_dir", "token", "local_files_only")
    where = {name: request.arguments[name] for name in names if request.arguments.get(name) is not None}
    with _in_silence(), already_planned():
        config = known_config(request.source, **where)
        shapes = {tensor.name: torch.empty(tensor.shape, device="meta") for tensor in checkpoint.tensors}
        _, report = model_class.from_pretrained(
            None, config=config, state_dict=shapes, device_map="meta", output_loading_info=True,
            ignore_mismatched_sizes=True,
        )  # fmt: skip
    mismatched = ((name, tuple(saved), tuple(wanted)) for name, saved, wanted in report["mismatched_keys"])
    return _Report(
        tuple(sorted(mismatched)), tuple(sorted(report["missing_keys"])), tuple(sorted(report["unexpected_keys"]))
    )


@contextmanager
def _in_silence() -> Iterator[None]:
    """Keep transformers' report of such a load, and its progress bar, to itself."""
    logging = transformers.utils.logging
    level = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    try:
        with no_progress_bar():
            yield
    finally:
        logging.set_verbosity(level)
