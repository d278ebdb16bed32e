"""A GGUF file, written one tensor at a time: no more than one of them is in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from safe_dtype.checkpoints.stored_tensors import StoredTensors
from safe_dtype.checkpoints.weight_files import WeightFiles
from safe_dtype.errors import EnvironmentNotFitError, NotExportableError
from safe_dtype.facts import FLOAT16
from safe_dtype.rendering.units import size_text

from .gguf_architectures import GgufModel
from .gguf_tokens import GgufTokens

_FILE_TYPES = {"F32": "ALL_F32", "F16": "MOSTLY_F16", "BF16": "MOSTLY_BF16", "Q8_0": "MOSTLY_Q8_0"}
_HEAD = "lm_head.weight"


def write_gguf(
    path: Path, kind: str, model: GgufModel, tokens: GgufTokens, files: WeightFiles,
    progress: Callable[[int, int], None] | None = None,
) -> None:  # fmt: skip
    """Write the weights in `files` to `path`, matrices as `kind`, a name of GGML's types, and vectors in float32.

    llama.cpp's server aborts its process on a file without a tokenizer, so none is written.

    Raises:
        EnvironmentNotFitError: If the package gguf is missing.
        NotExportableError: If a tensor has no name in llama.cpp, or does not fit into `kind`.
        CheckpointError: If the files cannot be read, or are not those that were marked.
    """
    gguf = gguf_package()
    writer = gguf.GGUFWriter(path, model.architecture)
    stored = StoredTensors(files)
    try:
        _describe(gguf, writer, kind, model, tokens)
        names = list(_named(gguf, model, stored))
        for _, own, shape, type_ in names:
            _announce(gguf, writer, own, shape, type_(kind))
        if model.rope_factors:
            _announce(gguf, writer, "rope_freqs.weight", (len(model.rope_factors),), gguf.GGMLQuantizationType.F32)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for done, (name, _, _, type_) in enumerate(names, 1):
            writer.write_tensor_data(_values(gguf, stored, name, model, type_(kind)))
            if progress:
                progress(done, len(names))
        if model.rope_factors:
            import numpy

            writer.write_tensor_data(numpy.array(model.rope_factors, dtype=numpy.float32))
    finally:
        writer.close()
        stored.close()


def gguf_package() -> Any:
    """Return the module gguf.

    Raises:
        EnvironmentNotFitError: If it is missing.
    """
    try:
        import gguf
    except ImportError as exc:
        raise EnvironmentNotFitError("the package gguf", "`python -m pip install 'safe-dtype[gguf]'`") from exc
    return gguf


def _describe(gguf: Any, writer: Any, kind: str, model: GgufModel, tokens: GgufTokens) -> None:
    writer.add_file_type(gguf.LlamaFileType[_FILE_TYPES[kind]])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    for field, number in _fields_of(model).items():
        getattr(writer, f"add_{field}")(number)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(tokens.cut)
    writer.add_token_list(list(tokens.tokens))
    writer.add_token_types(list(tokens.kinds))
    writer.add_token_merges(list(tokens.merges))
    for name, number in tokens.special:
        getattr(writer, f"add_{name}_token_id")(number)
    writer.add_add_bos_token(tokens.adds_bos)
    if tokens.chat_template:
        writer.add_chat_template(tokens.chat_template)


def _fields_of(model: GgufModel) -> dict[str, int | float]:
    """Return what llama.cpp reads of a model's shape, by the names of gguf's writer."""
    return {
        "context_length": model.context_length,
        "embedding_length": model.embedding_length,
        "block_count": model.block_count,
        "feed_forward_length": model.feed_forward_length,
        "head_count": model.head_count,
        "head_count_kv": model.head_count_kv,
        "key_length": model.head_length,
        "value_length": model.head_length,
        "rope_dimension_count": model.head_length,
        "rope_freq_base": model.rope_base,
        "layer_norm_rms_eps": model.rms_epsilon,
        "vocab_size": model.vocab_size,
    }


def _named(
    gguf: Any, model: GgufModel, stored: StoredTensors
) -> Iterator[tuple[str, str, tuple[int, ...], Callable[[str], Any]]]:
    """Yield each tensor's name in the files, its name in llama.cpp, its shape, and what gives its type."""
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[model.architecture.upper()], model.block_count)
    types = gguf.GGMLQuantizationType
    for name, facts in stored.tensors.items():
        if name.endswith("rotary_emb.inv_freq") or (name == _HEAD and model.tied):
            continue
        own = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if own is None:
            advice = "export the checkpoint as it was published, without layers of your own"
            raise NotExportableError(f"its tensor {name} has no name in llama.cpp's {model.architecture}", advice)

        def type_(kind: str, shape: tuple[int, ...] = facts.shape) -> Any:
            if len(shape) == 1:
                return types.F32
            # Blocks of 32 numbers of one row share a scale.
            return types.F16 if kind == "Q8_0" and shape[-1] % 32 else types[kind]

        yield name, own, facts.shape, type_


def _announce(gguf: Any, writer: Any, name: str, shape: tuple[int, ...], type_: Any) -> None:
    import numpy

    block, size = gguf.GGML_QUANT_SIZES[type_]
    count = 1
    for side in shape:
        count *= side
    if type_ == gguf.GGMLQuantizationType.F32:
        writer.add_tensor_info(name, shape, numpy.dtype(numpy.float32), count * 4)
    elif type_ == gguf.GGMLQuantizationType.F16:
        writer.add_tensor_info(name, shape, numpy.dtype(numpy.float16), count * 2)
    else:
        in_bytes = gguf.quants.quant_shape_to_byte_shape(shape, type_)
        writer.add_tensor_info(name, in_bytes, numpy.dtype(numpy.uint8), count // block * size, raw_dtype=type_)


def _values(gguf: Any, stored: StoredTensors, name: str, model: GgufModel, type_: Any) -> Any:
    import numpy

    values = stored.read(name).float().numpy()
    largest = float(numpy.abs(values).max(initial=0.0))
    if type_ in (gguf.GGMLQuantizationType.F16, gguf.GGMLQuantizationType.Q8_0) and not largest <= FLOAT16.largest:
        advice = "write BF16 or F32"
        raise NotExportableError(
            f"its tensor {name} reaches {size_text(largest)}, and float16 ends at {FLOAT16.largest:.0f}", advice
        )
    if model.pairs_in_rows and name.endswith(("q_proj.weight", "k_proj.weight")):
        heads = model.head_count if "q_proj" in name else model.head_count_kv
        values = (
            values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:])
            .swapaxes(1, 2)
            .reshape(values.shape)
        )
    return numpy.ascontiguousarray(gguf.quants.quantize(values, type_))
