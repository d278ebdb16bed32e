"""From a checkpoint to a GGUF file: in the planned dtype, read back, and measured against the checkpoint."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safe_dtype.errors import NotExportableError
from safe_dtype.facts import BFLOAT16, DEFAULT_MAX_DRIFT, FLOAT16, FLOAT32, Drift, Where, exceeds, mean_exceeds
from safe_dtype.store.temporary import temporary_folder

from .gguf_architectures import gguf_model
from .gguf_config import config_by_file
from .gguf_file import gguf_package, write_gguf
from .gguf_tokens import gguf_tokens
from .llama_cpp_drift import AnswerOfLlamaCpp, drift_of_llama_cpp

GGUF_TYPES = {"F32": FLOAT32, "BF16": BFLOAT16, "F16": FLOAT16, "Q8_0": None}  # by what matrices are stored as
_PROMPT_TOKENS = 24  # that llama.cpp goes on from, of each text
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja")


@dataclass(frozen=True, slots=True)
class ExportedGguf:
    """A GGUF file, and how far the model in it drifts from the checkpoint in float32."""

    file: Path
    kind: str  # of GGUF_TYPES
    bytes: int
    drift: Drift  # as transformers reads the file
    beyond: str | None  # why that is too much, and `file` was not written; None: within the limit
    llama_cpp: AnswerOfLlamaCpp | None = None  # None: it was not run

    def as_text(self) -> str:
        """Return the result in a few lines."""
        lines = [f"{self.file}: {self.kind}, {self.bytes:,} bytes"]
        lines += [
            f"read back by transformers: KL {self.drift.kl_mean:.2g} nats, {self.drift.top1_agreement:.2%} same top-1"
        ]
        lines += (
            [str(self.llama_cpp)] if self.llama_cpp else ["llama.cpp itself was not run: name an interpreter with it"]
        )
        lines += [f"NOT WRITTEN: {self.beyond}"] if self.beyond else []
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Return the result as plain values of JSON."""
        answer = self.llama_cpp
        return {
            "file": str(self.file), "type": self.kind, "bytes": self.bytes, "kl_mean": self.drift.kl_mean,
            "top1_agreement": self.drift.top1_agreement, "beyond": self.beyond,
            "llama_cpp": answer and {"positions": answer.positions, "agreement": answer.agreement, "kl": answer.kl},
        }  # fmt: skip


def export_gguf(  # noqa: PLR0913  (all but the first two by name)
    model: str | os.PathLike[str], out: str | os.PathLike[str], *, kind: str | None = None, revision: str | None = None,
    text: str | None = None, max_drift: float = DEFAULT_MAX_DRIFT,
    llama_cpp: str | os.PathLike[str] | None = None, progress: Callable[[int, int], None] | None = None,
) -> ExportedGguf:  # fmt: skip
    """Write `model` and its tokenizer as a GGUF file, and measure what transformers and llama.cpp make of that file.

    The file is at `out` only where the drift is within `max_drift`, and whole.

    Args:
        model: A folder or a repository on the Hub: a language model of the architecture llama, qwen2 or qwen3, saved in
            safetensors files.
        out: The file to write. Folders around it are made.
        kind: What matrices are stored as: "F32", "BF16", "F16" or "Q8_0" (8 bits and a scale for every 32 numbers).
            None: as the plan for this machine loads the model. Vectors are in float32.
        revision: A branch, tag or commit on the Hub.
        text: To measure on; by default a short one of ours.
        max_drift: The limit, as in `verify`.
        llama_cpp: An interpreter with the package xllamacpp: llama.cpp generates from the file as well, and its drift
            counts. None: llama.cpp is not run.
        progress: Called after every tensor with the number that is written and that of all.

    Raises:
        NotExportableError: If the model has no place in a GGUF file, or would be another model there.
        EnvironmentNotFitError: If the package gguf is missing, or `llama_cpp` cannot run llama.cpp.
        CheckpointError: If the checkpoint cannot be found or read.
    """
    from safe_dtype.checkpoints.config import read_config
    from safe_dtype.checkpoints.model_files import files_of
    from safe_dtype.checkpoints.weight_files import mark_weight_files
    from safe_dtype.verifying.checkpoint import Checkpoint
    from safe_dtype.verifying.drift import drift_from, record_outputs

    gguf_package()
    where, out = Where(os.fspath(model), revision=revision), Path(out)
    files = files_of(where)
    described = gguf_model(read_config(where, files))
    kind = kind or _planned(model, revision)
    if kind not in GGUF_TYPES:
        raise NotExportableError(f"{kind!r} is no type that is written here", f"use one of {', '.join(GGUF_TYPES)}")
    places = [files.local(name) for name in _TOKENIZER_FILES if files.has(name)]
    tokens = gguf_tokens(places[0].parent if places else Path(os.fspath(model)), described.vocab_size)
    whole = Checkpoint(os.fspath(model), "cpu", {"revision": revision})
    batches = whole.batches(text)
    out.parent.mkdir(parents=True, exist_ok=True)
    with temporary_folder(".safe_dtype-gguf-", beside=out.resolve().parent) as folder:
        written, reference = folder / out.name, whole.load(FLOAT32)
        recording = record_outputs(reference, batches, folder)
        write_gguf(written, kind, described, tokens, mark_weight_files(where), progress)
        answer = None
        if llama_cpp is not None:
            prompts = [batch["input_ids"][0, :_PROMPT_TOKENS].tolist() for batch in batches]
            answer = drift_of_llama_cpp(written, reference, prompts, python=llama_cpp)
        config = config_by_file(written, reference.config)
        del reference
        gc.collect()  # models of transformers refer to themselves, and the next one needs the room
        again = Checkpoint(str(folder), "cpu", {"gguf_file": out.name}, {"config": config}).load(FLOAT32)
        drift = drift_from(recording, again, batches)
        beyond = exceeds(drift, max_drift)
        if beyond is None and answer is not None and (reason := mean_exceeds(answer.kl, max_drift)):
            beyond = f"as llama.cpp computes it: {reason}"
        size = written.stat().st_size
        if beyond is None:
            os.replace(written, out)  # noqa: PTH105  # atomic on every platform
    return ExportedGguf(out, kind, size, drift, beyond, answer)


def _planned(model: str | os.PathLike[str], revision: str | None) -> str:
    """Return the type of the dtype that the model is loaded in here."""
    from safe_dtype.loading import Request, plan_request

    storage = plan_request(Request(model, {"revision": revision}), drifts="remembered").storage
    return next((kind for kind, dtype in GGUF_TYPES.items() if dtype == storage), "F32")
