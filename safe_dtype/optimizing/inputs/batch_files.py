"""The batches of an optimization as files, which every process reads: the traced one, held-out ones, the user's own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from ...errors import NotOptimizableError
from ..model_source import ModelSource
from ..nouns.job import Dynamic
from ..nouns.record import Batch
from .hidden_rows import hides_a_row
from .synthetic import Made, batches_for, batches_of, complete
from .user_data import user_batches

_USER_BATCHES = 8  # of the user's data; more of them take longer, and rarely change the verdict

Inputs = Mapping[str, torch.Tensor]


def write_batches(
    source: ModelSource,
    folder: Path,
    *,
    inputs: Inputs | None = None,
    held_out: Sequence[Inputs] = (),
    data: str | PathLike[str] | None = None,
    dynamic: Dynamic,
) -> tuple[tuple[Batch, ...], Dynamic]:
    """Write all batches into the new folder `folder`, and return them with the ranges of their dimensions.

    Files are named relative to the folder above. Dimensions that must vary together with a declared one are added to
    the ranges.

    Raises:
        NotOptimizableError: If there are no inputs, and none can be made.
        EnvironmentNotFitError: If the user's data need a package that is missing.
    """
    made = _made(source, inputs, dynamic)
    made += [Made("held out", "the user's", one) for one in held_out]
    traced = made[0].tensors
    if data is not None:
        rows = next(iter(traced.values())).shape[0]
        made += user_batches(
            Path(data), source.path, batch_size=rows, limit=_USER_BATCHES, traced=traced, dynamic=dynamic
        )
    folder.mkdir(parents=True)
    return tuple(_written(folder, made)), complete(dynamic, traced)


def _made(source: ModelSource, inputs: Inputs | None, dynamic: Dynamic) -> list[Made]:
    if inputs is not None:
        return batches_of(inputs, dynamic=dynamic)
    if not source.model_class:
        raise NotOptimizableError(
            f"{source.name} is no model of transformers, so its inputs are not known",
            "pass inputs={name: tensor}, or --inputs FILE with them",
        )
    import transformers

    config: Any = transformers.AutoConfig.from_pretrained(source.path)
    return batches_for(getattr(transformers, source.model_class), config, dynamic=dynamic)


def _written(folder: Path, made: Iterable[Made]) -> Iterable[Batch]:
    count: dict[str, int] = {}
    for batch in made:
        number = count[batch.role] = count.get(batch.role, -1) + 1
        path = folder / f"{batch.role.replace(' ', '-')}-{number}.safetensors"
        # Cloned: safetensors refuses tensors that share memory, as views of one batch do.
        save_file({name: tensor.detach().cpu().contiguous().clone() for name, tensor in batch.tensors.items()}, path)
        tensors = {name: _facts(name, tensor) for name, tensor in batch.tensors.items()}
        yield Batch(batch.role, f"{folder.name}/{path.name}", tensors, batch.about)


def _facts(name: str, tensor: torch.Tensor) -> dict[str, Any]:
    facts = {"shape": list(tensor.shape), "dtype": str(tensor.dtype).removeprefix("torch.")}
    hides = hides_a_row(name, tensor)
    return facts if hides is None else {**facts, "hides_a_row": hides}
