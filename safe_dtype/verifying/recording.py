"""A reference's outputs in files, for the case that two models do not fit in memory at once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file, save_file

from ..errors import IncomparableOutputsError
from .outputs import Batch, Outputs
from .positions import Alignment
from .reference import digest

_HEAD = "head."


@dataclass(frozen=True, slots=True)
class Recording:
    """A reference's outputs on some batches: one safetensors file a batch in `folder`, float32.

    A position takes 4 bytes times the vocabulary (and the hidden size): 0.6 MB with 152k tokens.
    """

    folder: Path
    alignment: Alignment
    kinds: tuple[str, ...]  # of each batch's outputs
    inputs: tuple[str, ...]  # a digest of each batch

    def outputs(self, number: int, batch: Batch) -> Outputs:
        """Return the reference's outputs on batch `number`, which must be `batch`.

        Raises:
            IncomparableOutputsError: If there is no such batch, or it had other inputs.
        """
        if number >= len(self.inputs) or digest(batch.items()) != self.inputs[number]:
            raise IncomparableOutputsError(
                f"batch {number} is none of the {len(self.inputs)} that the reference was recorded on, or not in its place",
                "pass the same batches in the same order",
            )
        tensors = load_file(file_of(self.folder, number))
        heads = {
            name.removeprefix(_HEAD): tensor for name, tensor in sorted(tensors.items()) if name.startswith(_HEAD)
        }
        return Outputs(self.kinds[number], tensors["main"], tensors.get("hidden"), heads)


def write_outputs(outputs: Outputs, folder: Path, number: int) -> None:
    """Write a reference's outputs on batch `number` into `folder`, in float32."""
    tensors = {"main": outputs.main} | ({} if outputs.hidden is None else {"hidden": outputs.hidden})
    tensors |= {f"{_HEAD}{name}": tensor for name, tensor in outputs.heads.items()}
    # A copy of its own for each: safetensors refuses tensors that share memory, and a model's output may be its state.
    save_file({name: tensor.float().clone().contiguous() for name, tensor in tensors.items()}, file_of(folder, number))


def file_of(folder: Path, number: int) -> Path:
    """Return the path of the file for batch `number`."""
    return folder / f"batch-{number:05}.safetensors"
