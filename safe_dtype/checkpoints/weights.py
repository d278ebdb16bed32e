"""Which files hold the weights, chosen as transformers chooses, and the tensors in them."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ..errors import CheckpointNotFoundError, CorruptCheckpointError, MissingShardError
from ..facts import TensorFacts, Where
from ..store import parse_json
from .model_files import Files
from .pickled import read_pickled

# As transformers names them, and as diffusers does.
_SAFETENSORS = (
    "model.safetensors", "model.safetensors.index.json",
    "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.safetensors.index.json",
)  # fmt: skip
_PICKLES = (
    "pytorch_model.bin", "pytorch_model.bin.index.json",
    "diffusion_pytorch_model.bin", "diffusion_pytorch_model.bin.index.json",
)  # fmt: skip
_AT_ONCE = 8  # headers read at a time: a Hub repository of 100 shards is 100 round trips


def weight_names(where: Where, files: Files, explicit: str | None = None) -> tuple[str, bool]:
    """Return the file that transformers, or diffusers, would load, and whether it is an index of shards.

    `explicit` is the config's `transformers_weights`. Otherwise a whole safetensors file comes before an index, and
    safetensors before pickles.

    Raises:
        CheckpointNotFoundError: If there are no weights.
    """
    candidates = [explicit] if explicit else []
    if not explicit and where.use_safetensors is not False:
        candidates += _SAFETENSORS
    if not explicit and not where.use_safetensors:
        candidates += _PICKLES
    for candidate in candidates:
        name = _with_variant(candidate, where.variant) if not explicit else candidate
        if files.has(name):
            return name, candidate.endswith(".index.json")
    wanted = ", ".join(_with_variant(one, where.variant) for one in candidates)
    raise CheckpointNotFoundError(where.name, f"has no weights (looked for {wanted})", _hint(where))


def file_names(where: Where, files: Files, explicit: str | None = None) -> list[str]:
    """Return the files that transformers would load, shards one by one. `explicit` is as in `weight_names`.

    Raises:
        CheckpointNotFoundError: If there are no weights.
        CorruptCheckpointError: If an index cannot be read, or leads out of the folder.
    """
    name, is_index = weight_names(where, files, explicit)
    return _shards(where, files, name)[1] if is_index else [name]


def _hint(where: Where) -> str:
    if where.variant:
        return f"check whether it has a variant {where.variant!r}"
    return "check the folder, its `subfolder` or `variant`"


def _with_variant(name: str, variant: str | None) -> str:
    """Return the file's name in a variant: `model.fp16.safetensors`, `model.safetensors.index.fp16.json`."""
    if not variant:
        return name
    stem, _, ending = name.rpartition(".")
    return f"{stem}.{variant}.{ending}"


def read_tensors(where: Where, files: Files, name: str, *, is_index: bool) -> tuple[TensorFacts, ...]:
    """Return every tensor of the checkpoint whose file, or index, is `name`.

    Raises:
        MissingShardError: If the index names files that are not there.
        CorruptCheckpointError: If a file contradicts itself or the index.
    """
    if not is_index:
        return _reader(files, name)(name)
    index, shards = _shards(where, files, name)
    if missing := [shard for shard in shards if not files.has(shard)]:
        listed = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        problem = f"{name} names {len(shards)} files, and {len(missing)} of them are not there: {listed}"
        raise MissingShardError(where.name, problem, "download them again")
    read = _reader(files, shards[0])
    if len(shards) <= _AT_ONCE and all(files.on_disk(shard) is not None for shard in shards):
        headers = [read(shard) for shard in shards]
    else:
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            headers = list(pool.map(read, shards))
    all_tensors = [tensor for tensors in headers for tensor in tensors]
    _compare(where, name, index, all_tensors)
    return tuple(all_tensors)


def _reader(files: Files, name: str) -> Callable[[str], tuple[TensorFacts, ...]]:
    if name.endswith(".safetensors"):
        return files.header
    return lambda shard: read_pickled(files.local(shard))


def _shards(where: Where, files: Files, name: str) -> tuple[dict[str, str], list[str]]:
    """Return an index, and the files that it names."""
    index = _read_index(where, files, name)
    shards = sorted(set(index.values()))
    if outside := [shard for shard in shards if shard.startswith("/") or ".." in shard.split("/") or "\\" in shard]:
        raise CorruptCheckpointError(where.name, f"{name} leads out of its folder, to {outside[0]}", "do not trust it")
    return index, shards


def _read_index(where: Where, files: Files, name: str) -> dict[str, str]:
    try:
        index: Any = parse_json(files.local(name).read_text(encoding="utf-8"))
        shard_of = {str(tensor): str(shard) for tensor, shard in index["weight_map"].items()}
    except (ValueError, KeyError, AttributeError, TypeError) as exc:
        raise CorruptCheckpointError(where.name, f"{name} is no index ({exc!r})", "download it again") from exc
    if not shard_of:
        raise CorruptCheckpointError(where.name, f"{name} names no tensors", "download it again")
    return shard_of


def _compare(where: Where, name: str, index: dict[str, str], tensors: list[TensorFacts]) -> None:
    file_of = {tensor.name: tensor.file for tensor in tensors}
    if lost := [tensor for tensor in index if tensor not in file_of]:
        problem = f"{name} promises {len(lost)} tensors that no file holds, {lost[0]} among them"
        raise CorruptCheckpointError(where.name, problem, "download it again")
