"""From a checkpoint to a folder of OpenVINO: in the planned dtype, run by OpenVINO, and measured against the checkpoint."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safe_dtype.errors import NotExportableError
from safe_dtype.facts import BFLOAT16, DEFAULT_MAX_DRIFT, FLOAT16, FLOAT32, Drift, exceeds
from safe_dtype.store.temporary import temporary_folder

from .in_its_environment import run_inside

OPENVINO_TYPES = {"FP32": FLOAT32, "BF16": BFLOAT16, "FP16": FLOAT16, "INT8": None}  # by what weights are stored as
COMPUTE = (
    "default",
    "f32",
    "bf16",
    "f16",
)  # OpenVINO's words for INFERENCE_PRECISION_HINT; default: what it takes itself
_INPUTS = ("input_ids", "attention_mask")


@dataclass(frozen=True, slots=True)
class ExportedOpenvino:
    """A folder of OpenVINO, and how far the model in it drifts from the checkpoint in float32."""

    folder: Path
    kind: str  # of OPENVINO_TYPES
    compute: str  # of COMPUTE, as it was asked for
    computed: str  # what OpenVINO says that it computed in here
    bytes: int  # of the model's two files
    drift: Drift  # as OpenVINO computes it, on this CPU
    beyond: str | None  # why that is too much, and `folder` was not written; None: within the limit

    def as_text(self) -> str:
        """Return the result in a few lines."""
        hint = "" if self.compute == "default" else f", with INFERENCE_PRECISION_HINT={self.compute}"
        lines = [
            f"{self.folder}: {self.kind}, {self.bytes:,} bytes",
            f"run by OpenVINO in {self.computed}{hint}: KL {self.drift.kl_mean:.2g} nats, "
            f"{self.drift.top1_agreement:.2%} same top-1",
        ]
        lines += [f"NOT WRITTEN: {self.beyond}"] if self.beyond else []
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Return the result as plain values of JSON."""
        return {
            "folder": str(self.folder), "type": self.kind, "compute": self.compute, "computed": self.computed,
            "bytes": self.bytes, "kl_mean": self.drift.kl_mean, "top1_agreement": self.drift.top1_agreement,
            "beyond": self.beyond,
        }  # fmt: skip


def export_openvino(  # noqa: PLR0913  (all but the first two by name)
    model: str | os.PathLike[str], out: str | os.PathLike[str], *, kind: str | None = None, compute: str = "default",
    revision: str | None = None, text: str | None = None, max_drift: float = DEFAULT_MAX_DRIFT,
    python: str | os.PathLike[str] | None = None, progress: Callable[[str], None] = lambda _: None,
) -> ExportedOpenvino:  # fmt: skip
    """Write `model` and its tokenizer as OpenVINO IR, with its cache as a state, and measure what OpenVINO makes of it.

    `openvino_genai.LLMPipeline` and `OVModelForCausalLM` read the folder. It is at `out` only where the drift is within
    `max_drift`, and whole.

    Args:
        model: A folder or a repository on the Hub: a language model that optimum-intel exports, with a tokenizer.
        out: The folder to write, which must not be there.
        kind: What weights are stored as: "FP32", "BF16", "FP16" or "INT8" (8 bits, a scale and a zero for every output). None: as
            the plan for this machine loads the model.
        compute: What OpenVINO computes in for the measurement: "f32", "bf16", "f16", or "default" for what it takes by itself
            on this CPU. The folder does not hold it: who runs the model passes INFERENCE_PRECISION_HINT.
        revision: A branch, tag or commit on the Hub.
        text: To measure on; by default a short one of ours.
        max_drift: The limit, as in `verify`.
        python: An interpreter with optimum-intel and openvino. None: an environment is made for them once, with pip.
        progress: Called with a line of text before each long step.

    Raises:
        NotExportableError: If `out` is there, or optimum-intel cannot export the model, with its error.
        EnvironmentNotFitError: If there is no environment with optimum-intel.
        CheckpointError: If the checkpoint cannot be found or read.
    """
    from safe_dtype.verifying.checkpoint import Checkpoint
    from safe_dtype.verifying.drift import drift_from, record_outputs

    out = Path(out)
    if out.exists():
        raise NotExportableError(f"there is something at {out} already", "name another folder, or remove it")
    kind = kind or _planned(model, revision)
    for name, known, value in (("type", tuple(OPENVINO_TYPES), kind), ("compute", COMPUTE, compute)):
        if value not in known:
            raise NotExportableError(f"{value!r} is no {name} that is known here", f"use one of {', '.join(known)}")
    whole = Checkpoint(os.fspath(model), "cpu", {"revision": revision})
    batches = [{name: batch[name] for name in _INPUTS if name in batch} for batch in whole.batches(text)]
    out.parent.mkdir(parents=True, exist_ok=True)
    with temporary_folder(".safe_dtype-openvino-", beside=out.resolve().parent) as folder:
        progress("running the model in float32")
        reference = whole.load(FLOAT32)
        recording = record_outputs(reference, batches, folder / "recording")
        del reference
        gc.collect()  # models of transformers refer to themselves, and the next one needs the room
        exported = folder / "exported"
        job = {
            "model": _absolute(model), "revision": revision, "out": str(exported), "kind": kind, "compute": compute,
            "batches": [{name: tensor.tolist() for name, tensor in batch.items()} for batch in batches],
            "logits": str(folder / "logits"),
        }  # fmt: skip
        computed = run_inside(job, folder, python=python, progress=progress)
        drift = drift_from(recording, _Answers(folder / "logits"), batches)
        beyond = exceeds(drift, max_drift)
        size = sum((exported / f"openvino_model.{ending}").stat().st_size for ending in ("xml", "bin"))
        if beyond is None:
            os.replace(exported, out)  # noqa: PTH105  # atomic on every platform
    return ExportedOpenvino(out, kind, compute, computed, size, drift, beyond)


class _Answers:
    """What OpenVINO answered to each batch, called as the model that answers, in their order."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._number = folder, 0

    def __call__(self, **_: Any) -> Mapping[str, Any]:
        import numpy
        import torch

        logits = torch.from_numpy(numpy.load(self._folder / f"{self._number}.npy"))
        self._number += 1
        return {"logits": logits}


def _absolute(model: str | os.PathLike[str]) -> str:
    """Return `model` for a process in another folder: a repository by its name."""
    return str(Path(model).resolve()) if Path(model).exists() else os.fspath(model)


def _planned(model: str | os.PathLike[str], revision: str | None) -> str:
    """Return the type of the dtype that the model is loaded in here."""
    from safe_dtype.loading import Request, plan_request

    storage = plan_request(Request(model, {"revision": revision}), drifts="remembered").storage
    return next((kind for kind, dtype in OPENVINO_TYPES.items() if dtype == storage), "FP32")
