"""Read a checkpoint: what its files really hold, beside what its config claims."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from ..errors import CheckpointNotFoundError, CorruptCheckpointError
from ..facts import (
    BFLOAT16,
    FLOAT8_E4M3,
    FLOAT16,
    FLOAT32,
    CheckpointFacts,
    CheckpointIdentity,
    Dtype,
    TensorFacts,
    Where,
)
from ..hub.headers import read_local_header
from ..store import parse_json
from ..store.git_lfs import pulled
from ..store.installed import installed_version
from .config import as_dict, claimed_dtype, code_format, first, is_to_dequantize, packed_bits, read_config, text_part
from .fingerprint import identity_of
from .gguf import gguf_config, read_gguf
from .keep_in_fp32 import kept_in_float32
from .largest_values import with_largest
from .main_input import main_input
from .model_files import Files, LocalFiles, files_of
from .narrower_dtype import narrower_dtype
from .pickled import read_pickled
from .shapes import cache_of, is_tied, linears_of
from .weights import read_tensors, weight_names

# What we choose between, by torch's names of what files hold. float64 is loaded as float32.
_SAVED = {
    "float32": FLOAT32, "float64": FLOAT32, "bfloat16": BFLOAT16, "float16": FLOAT16, "float8_e4m3fn": FLOAT8_E4M3,
}  # fmt: skip


def read_checkpoint(
    where: Where | str | os.PathLike[str], *, config: Any = None, trust_remote_code: bool = False
) -> CheckpointFacts:
    """Return the facts of a folder, a file, or a repository on the Hub. Reads headers, and samples of files that are here.

    Args:
        where: What to read, and where transformers would look for it.
        config: A config object or table that is used instead of the checkpoint's config.json.
        trust_remote_code: Whether code that comes with the checkpoint may be run, as it was said to `from_pretrained`.

    Raises:
        CheckpointNotFoundError: If there is nothing of that name, or no weights in it.
        GatedCheckpointError: If the Hub wants a login or access to be granted.
        MissingShardError: If the index names files that are not there.
        CorruptCheckpointError: If a file contradicts itself.
        UnsafeCheckpointError: If reading a pickle would run code.
    """
    where = where if isinstance(where, Where) else Where(where)
    from .known_config import unknown_type  # imports transformers, as reading does and importing this does not

    facts = _read(where, None if config is None else as_dict(config))
    if facts.has_own_code and trust_remote_code:
        return facts
    unknown = unknown_type(facts.source, facts.model_type, facts.architecture)
    return replace(facts, warnings=(*facts.warnings, unknown)) if unknown else facts


def _read(where: Where, passed_config: Mapping[str, Any] | None) -> CheckpointFacts:
    path = Path(where.source)
    if path.is_file():
        return _read_file(where, path, passed_config)
    files = files_of(where)
    if where.gguf_file:
        if not files.has(where.gguf_file):
            raise CheckpointNotFoundError(where.name, f"has no file {where.gguf_file}", "check `gguf_file`")
        facts = _read_gguf(where, files.local(where.gguf_file), passed_config)
        return replace(facts, identity=facts.identity and replace(facts.identity, commit=files.commit))
    if is_adapter(files):
        return _read_base(where, files, passed_config)
    config_json = read_config(where, files) if passed_config is None else passed_config
    name, is_index = weight_names(where, files, config_json.get("transformers_weights"))
    tensors = read_tensors(where, files, name, is_index=is_index)
    file_format = "safetensors" if ".safetensors" in name else "pytorch"
    facts = describe(where.name, tensors, config_json, file_format=file_format, revision=where.revision)
    if file_format == "safetensors":
        paths = [files.on_disk(one) for one in facts.files]
        narrower = narrower_dtype(tensors, facts.saved, paths)
        facts = replace(facts, tensors=with_largest(where.name, tensors, facts.saved, paths), narrower=narrower)
    return replace(facts, identity=_identity(tensors, files, facts.files))


def read_state_dict(state_dict: Mapping[str, Any], config: Any = None) -> CheckpointFacts:
    """Return the facts of weights that are in memory already."""
    tensors = tuple(
        TensorFacts(name, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), "state_dict")
        for name, tensor in state_dict.items()
    )
    return describe("state_dict", tensors, {} if config is None else as_dict(config), file_format="state_dict")


def describe(
    source: str, tensors: tuple[TensorFacts, ...], config: Mapping[str, Any], *, file_format: str,
    revision: str | None = None,
) -> CheckpointFacts:  # fmt: skip
    """Return the facts that follow from the tensors and the config.

    Raises:
        CorruptCheckpointError: If there is no floating-point tensor.
    """
    of_diffusers = config.get("_class_name")  # which writes no list of architectures
    architecture = next(iter(config.get("architectures") or ()), of_diffusers)
    text = text_part(config)
    saved = _saved(source, tensors)
    claimed = claimed_dtype(config)
    tied = is_tied(tensors, config, architecture)
    sometimes, always = kept_in_float32(architecture, config)
    cache_shape = cache_of(tensors, config, architecture)
    quantization = as_dict(config.get("quantization_config") or text.get("quantization_config") or {})
    return CheckpointFacts(
        source=source,
        files=tuple(dict.fromkeys(tensor.file for tensor in tensors)),
        file_format=file_format,
        tensors=tensors,
        saved=saved,
        config_dtype=claimed,
        architecture=architecture,
        model_type=config.get("model_type"),
        has_own_code=isinstance(config.get("auto_map"), Mapping) and "AutoConfig" in config["auto_map"],
        linears=linears_of(tensors, config, tied=tied),
        cache=cache_shape,
        takes="inputs" if of_diffusers else main_input(architecture, generates=bool(cache_shape.layers)),
        vocab_size=first(text, "vocab_size", default=0),
        hidden_size=first(text, "hidden_size", "d_model", "n_embd", default=0),
        tied=tied,
        has_conv2d=any(len(tensor.shape) == 4 for tensor in tensors),
        keep_in_fp32=sometimes,
        keep_in_fp32_strict=always,
        quantization=str(quantization.get("quant_method", "unknown")) if quantization else None,
        packed_bits=packed_bits(quantization),
        code_format=code_format(quantization),
        is_to_dequantize=is_to_dequantize(quantization),
        revision=revision,
        versions=_versions(),
        warnings=() if quantization else _lies(saved, claimed, config),
    )


def _identity(tensors: tuple[TensorFacts, ...], files: Files, names: tuple[str, ...]) -> CheckpointIdentity:
    on_disk, blobs = map(files.on_disk, names), map(files.blob, names)
    return identity_of(tensors, on_disk, blobs=blobs, commit=files.commit)


@cache
def _versions() -> tuple[tuple[str, str], ...]:
    """Return the versions of safe_dtype and transformers, as far as they are installed; neither is imported."""
    versions = ((name, installed_version(name)) for name in ("safe_dtype", "transformers"))
    return tuple((name, version) for name, version in versions if version is not None)


def _saved(source: str, tensors: tuple[TensorFacts, ...]) -> Dtype:
    numbers: Counter[str] = Counter()
    for tensor in tensors:
        numbers[tensor.dtype] += tensor.numel
    filled: dict[Dtype, int] = {}
    for name, count in numbers.items():
        if name in _SAVED:
            dtype = _SAVED[name]
            filled[dtype] = filled.get(dtype, 0) + count * dtype.itemsize
    if not filled:
        formats = sorted({tensor.dtype for tensor in tensors}) or ["nothing"]
        raise CorruptCheckpointError(source, f"holds no floating-point weights, only {', '.join(formats)}")
    return max(filled, key=lambda dtype: filled[dtype])


def _lies(saved: Dtype, claimed: str | None, config: Mapping[str, Any]) -> tuple[str, ...]:
    if not config:
        return ("there is no config.json: what the architecture needs is not known",)
    if claimed is None or claimed == saved.name:
        return ()
    harm = f", and what is above {FLOAT16.largest:.0f} would become infinite" if claimed == FLOAT16.name else ""
    return (
        f"config.json claims {claimed}, and the files hold {saved}: plain transformers would cast them{harm}; "
        "what the files hold counts",
    )


def _read_file(where: Where, path: Path, passed_config: Mapping[str, Any] | None) -> CheckpointFacts:
    """Read one file; the config.json beside it describes it."""
    pulled(path)
    if path.suffix == ".gguf":
        return _read_gguf(where, path, passed_config)
    beside: Files = LocalFiles(path.parent)
    config = read_config(where, beside) if passed_config is None else passed_config
    if path.name.endswith(".index.json"):
        tensors, file_format = read_tensors(where, beside, path.name, is_index=True), "safetensors"
    elif path.suffix == ".safetensors":
        tensors, file_format = read_local_header(path), "safetensors"
    elif path.suffix in (".bin", ".pt", ".pth"):
        tensors, file_format = read_pickled(path), "pytorch"
    else:
        raise CheckpointNotFoundError(
            where.name, "is no .safetensors, .bin, .pt, .pth or .gguf file", "pass the folder"
        )
    facts = describe(where.name, tensors, config, file_format=file_format)
    if file_format == "safetensors":
        facts = replace(facts, narrower=narrower_dtype(tensors, facts.saved, map(beside.local, facts.files)))
    return replace(facts, identity=identity_of(tensors, map(beside.local, facts.files)))


def _read_gguf(where: Where, path: Path, passed_config: Mapping[str, Any] | None) -> CheckpointFacts:
    tensors, quantization = read_gguf(path)
    facts = describe(
        where.name, tensors, gguf_config(path) if passed_config is None else passed_config, file_format="gguf"
    )
    return replace(
        facts, quantization=quantization or "gguf", loaded_as=FLOAT32, identity=identity_of(tensors, [path])
    )


def is_adapter(files: Files) -> bool:
    """Whether the files are an adapter's alone, and the weights are those of its base."""
    return files.has("adapter_config.json") and not files.has("config.json")


def base_of(where: Where, files: Files) -> Where:
    """Return where the base of an adapter is.

    Raises:
        CorruptCheckpointError: If the adapter names none.
    """
    try:
        base = parse_json(files.local("adapter_config.json").read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (ValueError, KeyError, TypeError) as exc:
        raise CorruptCheckpointError(where.name, f"adapter_config.json names no base ({exc!r})") from exc
    return replace(where, source=base, subfolder="", revision=None, variant=None)


def _read_base(where: Where, files: Files, passed_config: Mapping[str, Any] | None) -> CheckpointFacts:
    base = base_of(where, files)
    try:
        facts = _read(base, passed_config)
    except CheckpointNotFoundError as exc:
        problem = f"is an adapter of {base.name}, and that is not to be found ({exc.problem})"
        raise CheckpointNotFoundError(where.name, problem, exc.advice) from exc
    identity = facts.identity and replace(facts.identity, commit=None)  # it is no commit of the adapter's
    return replace(facts, source=where.name, adapter=where.name, identity=identity)
