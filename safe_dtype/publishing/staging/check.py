"""Check whether a staged folder is fit to be published: every problem, found in its files alone."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...errors import CheckpointError, NotPublishableError
from ...facts.variant import VARIANT_FILE
from .card import card_problems
from .evidence import Evidence, read_evidence
from .forms import FOLDER as ONNX
from .staged_files import CARD, counts_of, digests_of, paths_of

_INDEX = "model.safetensors.index.json"
_WHOLE = "model.safetensors"
_SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
_VARIANT = re.compile(
    r"(model|pytorch_model|diffusion_pytorch_model)\.(safetensors\.index\.)?(?!safetensors|bin|index)"
    r"([\w-]+)\.(safetensors|bin|json)|(model|pytorch_model)\.[\w-]+-\d{5}-of-\d{5}\.(safetensors|bin)"
)
# What other loaders take for weights. Those that glob take all there are.
_OTHER_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".gguf", ".onnx", ".npz")


def check(folder: Path) -> list[str]:
    """Return what keeps a staged folder from being published, a sentence each; none where it is fit."""
    try:
        evidence = read_evidence(folder)
    except NotPublishableError as exc:
        if not (folder / VARIANT_FILE).exists():  # what else is wrong with any other folder helps nobody
            return [f"{exc.happened}. Next: {exc.advice}"]
        return [*_stray(folder), *_index_problems(folder), exc.happened]
    problems = [*_stray(folder), *_index_problems(folder)]
    problems += evidence.problems()
    problems += _dtype_problems(folder, evidence)
    problems += file_problems(folder, evidence)
    card = folder / CARD
    problems += card_problems(card.read_text(encoding="utf-8"), evidence) if card.is_file() else [f"{CARD} is missing"]
    return problems


def _stray(folder: Path) -> Iterator[str]:
    for path in paths_of(folder):
        name = Path(path).name
        if (folder / path).is_symlink():
            yield f"{path} is a link: a repository holds files"
        if _VARIANT.fullmatch(name):
            yield (
                f"{path} is a variant file: it would share one config.json with the others, and transformers casts every "
                "weight to the dtype that this names. A variant is a repository, or a branch, of its own"
            )
        elif path.startswith(f"{ONNX}/"):
            continue  # what `optimize` chose: no loader of transformers looks there
        elif name.endswith(_OTHER_WEIGHTS) and path != _WHOLE and not _SHARD.fullmatch(path):
            yield f"{path} holds weights that are not part of this variant: loaders that take every file would read them"


def _index_problems(folder: Path) -> Iterator[str]:
    whole = (folder / _WHOLE).is_file()
    shards = {path.name for path in folder.glob("*.safetensors") if _SHARD.fullmatch(path.name)}
    index = folder / _INDEX
    if whole and (shards or index.is_file()):
        yield f"{_WHOLE} lies beside shards or their index: transformers would load it, and never look at them"
    if not whole and not index.is_file():
        yield f"there are no weights: neither {_WHOLE} nor {_INDEX}"
    if not index.is_file():
        if shards:
            yield f"{len(shards)} shards and no {_INDEX}"
        return
    try:
        named = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (AttributeError, KeyError, OSError, TypeError, ValueError) as exc:
        yield f"{_INDEX} cannot be read ({type(exc).__name__}: {exc})"
        return
    for name in sorted(named - shards):
        yield f"{_INDEX} names {name}, which is not there"
    for name in sorted(shards - named):
        yield f"{name} is named nowhere in {_INDEX}"


def _dtype_problems(folder: Path, evidence: Evidence) -> Iterator[str]:
    try:
        counts = counts_of(folder)
    except CheckpointError as exc:
        yield str(exc)
        return
    if counts != dict(evidence.tensors):
        yield f"the headers of the weights hold {_said(counts)}, and {VARIANT_FILE} says {_said(evidence.tensors)}"
    most = next(iter(counts), None)
    if most is not None and most != evidence.dtype:
        yield f"most of the weights are in {most}, and {VARIANT_FILE} says {evidence.dtype}"
    try:
        config: Any = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        claimed, note = config.get("dtype"), config.get("safe_dtype") or {}
    except (AttributeError, OSError, ValueError) as exc:
        yield f"config.json cannot be read ({type(exc).__name__}: {exc})"
        return
    if claimed != evidence.dtype:
        yield f"config.json says dtype {claimed!r}, and {VARIANT_FILE} {evidence.dtype!r}: transformers casts to what it says"
    if note.get("needs") != evidence.needs:
        yield f"config.json says that it needs {note.get('needs')!r}, and {VARIANT_FILE} {evidence.needs!r}"


def _said(counts: Any) -> str:
    return ", ".join(f"{count.tensors} tensors in {name}" for name, count in counts.items()) or "nothing"


def file_problems(folder: Path, evidence: Evidence) -> Iterator[str]:
    """Yield in what the files of a staged folder are not those that were staged. Reads all of them."""
    now = digests_of(folder)
    for path in sorted(now.keys() | evidence.files.keys()):
        if path not in now:
            yield f"{path} is in {VARIANT_FILE}, and is not there"
        elif path not in evidence.files:
            yield f"{path} is there, and not in {VARIANT_FILE}"
        elif now[path] != evidence.files[path]:
            yield f"{path} was changed since it was staged: its SHA-256 is another"
