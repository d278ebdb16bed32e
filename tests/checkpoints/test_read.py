"""Checkpoints in local folders and files, made by the libraries that make them."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import transformers
from tiny_models import TINY, tiny_gguf

from safe_dtype.checkpoints import read_checkpoint, read_state_dict
from safe_dtype.errors import CheckpointNotFoundError, CorruptCheckpointError, MissingShardError, UnsafeCheckpointError
from safe_dtype.facts import BFLOAT16, FLOAT8_E4M3, FLOAT16, FLOAT32, Where


def save(folder: Path, tensors: dict[str, torch.Tensor], config: dict[str, Any] | None = None) -> Path:
    """Write a checkpoint of one safetensors file."""
    safetensors.torch.save_file(tensors, folder / "model.safetensors")
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("name", TINY)
def test_architectures(name: str, tmp_path: Path) -> None:
    """Parameters, shapes that multiply, ties and convolutions are read off the headers as the real model has them."""
    facts = read_checkpoint(TINY[name].save(tmp_path, torch.bfloat16))
    model = TINY[name].make()
    buffers = sum(tensor.numel for tensor in facts.tensors if "running" in tensor.name or "num_batches" in tensor.name)
    assert facts.saved == BFLOAT16
    assert facts.parameters - buffers == model.num_parameters()
    assert facts.architecture == type(model).__name__
    assert facts.model_type == model.config.model_type
    assert facts.has_conv2d == any(isinstance(one, torch.nn.Conv2d) for one in model.modules())
    output = model.get_output_embeddings()
    assert facts.tied == (output is not None and output.weight is model.get_input_embeddings().weight)
    plain = [one.weight.numel() for one in model.modules() if isinstance(one, torch.nn.Linear)]
    experts = [p.numel() for key, p in model.named_parameters() if p.ndim == 3 and "experts" in key]
    guessed = sum(one.numel for one in facts.linears)
    assert guessed == pytest.approx(sum(plain) + sum(experts), rel=0.2)


@pytest.mark.parametrize(
    ("name", "layers"),
    [("qwen3", 2), ("t5", 2), ("mixtral", 2), ("llava", 2), ("mamba", 0), ("bert", 0), ("segformer", 0)],
)
def test_cache(name: str, layers: int, tmp_path: Path) -> None:
    """Decoders have a KV cache; encoders, recurrent models and vision have none."""
    assert read_checkpoint(TINY[name].save(tmp_path, torch.float16)).cache.layers == layers


def test_experts_are_partly_active(tmp_path: Path) -> None:
    """A token passes through the share of the experts that the config says."""
    facts = read_checkpoint(TINY["mixtral"].save(tmp_path, torch.float16))
    assert {one.active for one in facts.linears} == {1.0, 0.5}


def test_output_head_is_one_position(tmp_path: Path) -> None:
    """The tied head counts as a product, for the last position only."""
    facts = read_checkpoint(TINY["qwen3"].save(tmp_path, torch.float16))
    (head,) = (one for one in facts.linears if not one.per_position)
    assert (head.out_features, head.in_features) == (96, 32)


def test_kept_in_float32(tmp_path: Path) -> None:
    """The class's own list of modules kept in float32 is read."""
    assert read_checkpoint(TINY["t5"].save(tmp_path, torch.float16)).keep_in_fp32 == ("wo",)


@pytest.mark.parametrize("options", [{"max_shard_size": "20KB"}, {"variant": "fp16"}, {"variant": "fp16", "max_shard_size": "20KB"}],
                         ids=str)  # fmt: skip
def test_shards_and_variants(options: dict[str, str], tmp_path: Path) -> None:
    """Shards and variants are found as transformers names them."""
    TINY["qwen3"].save(tmp_path, torch.float16, **options)
    facts = read_checkpoint(Where(tmp_path, variant=options.get("variant")))
    assert facts.parameters == TINY["qwen3"].make().num_parameters()
    assert len(facts.files) == len(list(tmp_path.glob("*.safetensors")))


def test_one_file(tmp_path: Path) -> None:
    """A single file is read with the config beside it."""
    TINY["qwen3"].save(tmp_path, torch.float16)
    assert read_checkpoint(tmp_path / "model.safetensors").model_type == "qwen3"


def test_subfolder(tmp_path: Path) -> None:
    """A subfolder is looked into, and a missing one is named."""
    TINY["qwen3"].save(tmp_path / "inner", torch.float16)
    assert read_checkpoint(Where(tmp_path, subfolder="inner")).saved == FLOAT16
    with pytest.raises(CheckpointNotFoundError, match="'outer'"):
        read_checkpoint(Where(tmp_path, subfolder="outer"))


@pytest.mark.parametrize(
    ("tensors", "saved"),
    [
        pytest.param({"a": torch.zeros(9, dtype=torch.bfloat16), "b": torch.zeros(4)}, BFLOAT16, id="most-bytes"),
        pytest.param({"a": torch.zeros(9, dtype=torch.bfloat16), "b": torch.zeros(6)}, FLOAT32, id="most-bytes-fp32"),
        pytest.param({"a": torch.zeros(9, dtype=torch.float64)}, FLOAT32, id="float64-loads-as-float32"),
        pytest.param({"a": torch.zeros(9).to(torch.float8_e4m3fn)}, FLOAT8_E4M3, id="float8"),
        pytest.param(
            {"a": torch.zeros(99, dtype=torch.uint8), "b": torch.zeros(4).half()}, FLOAT16, id="codes-and-scales"
        ),
    ],
)
def test_saved(tensors: dict[str, torch.Tensor], saved: Any, tmp_path: Path) -> None:
    """The saved dtype is the floating format that holds most bytes."""
    assert read_checkpoint(save(tmp_path, tensors, {})).saved == saved


@pytest.mark.parametrize("field", ["dtype", "torch_dtype"])
def test_lying_config(field: str, tmp_path: Path) -> None:
    """A config that claims another dtype than the files hold is warned about, with what it would do."""
    save(tmp_path, {"a": torch.zeros(9, dtype=torch.bfloat16)}, {field: "float16"})
    (warning,) = read_checkpoint(tmp_path).warnings
    assert "claims float16" in warning
    assert "hold bfloat16" in warning
    assert "infinite" in warning


def test_honest_config(tmp_path: Path) -> None:
    """A config that tells the truth is not warned about."""
    assert not read_checkpoint(save(tmp_path, {"a": torch.zeros(9)}, {"dtype": "float32"})).warnings


def test_quantization(tmp_path: Path) -> None:
    """The quantizer's name is read from the config."""
    config = {"quantization_config": {"quant_method": "gptq", "bits": 4}, "dtype": "float16"}
    tensors = {"a": torch.zeros(9, dtype=torch.int32), "s": torch.zeros(3).half()}
    assert read_checkpoint(save(tmp_path, tensors, config)).quantization == "gptq"


def test_given_config(tmp_path: Path) -> None:
    """A config that the caller passes is used instead of the file."""
    TINY["qwen3"].save(tmp_path, torch.float16)
    config = transformers.AutoConfig.from_pretrained(tmp_path, num_hidden_layers=1)
    assert read_checkpoint(tmp_path, config=config).cache.layers == 1


def test_state_dict() -> None:
    """Weights in memory are described like files."""
    model = TINY["qwen3"].make().half()
    facts = read_state_dict(model.state_dict(), model.config)
    assert (facts.saved, facts.file_format) == (FLOAT16, "state_dict")
    assert facts.cache.layers == 2


@pytest.mark.parametrize("sharded", [False, True])
def test_pickles(sharded: bool, tmp_path: Path) -> None:
    """PyTorch's own files are described without reading their tensors."""
    model = TINY["qwen3"].make().half()
    weights = model.state_dict()
    model.config.save_pretrained(tmp_path)
    if sharded:
        names = list(weights)
        parts = {"pytorch_model-1.bin": names[::2], "pytorch_model-2.bin": names[1::2]}
        for file, part in parts.items():
            torch.save({name: weights[name] for name in part}, tmp_path / file)
        weight_map = {name: file for file, part in parts.items() for name in part}
        (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    else:
        torch.save(weights, tmp_path / "pytorch_model.bin")
    facts = read_checkpoint(tmp_path)
    assert (facts.saved, facts.file_format) == (FLOAT16, "pytorch")
    assert len(facts.tensors) == len(weights)


def test_safetensors_come_first(tmp_path: Path) -> None:
    """Safetensors are taken before pickles, as transformers takes them, unless `use_safetensors=False`."""
    save(tmp_path, {"a": torch.zeros(9)}, {})
    torch.save({"a": torch.zeros(9).half()}, tmp_path / "pytorch_model.bin")
    assert read_checkpoint(tmp_path).saved == FLOAT32
    assert read_checkpoint(Where(tmp_path, use_safetensors=False)).saved == FLOAT16


class Bomb:
    """Unpickling it runs a command."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (self.command,)


@pytest.mark.parametrize(
    "write", [torch.save, lambda bomb, path: path.write_bytes(pickle.dumps(bomb))], ids=["zip", "raw"]
)
def test_unsafe_pickle(write: Callable[[Any, Path], Any], tmp_path: Path) -> None:
    """A pickle that would run code is refused, and the code does not run."""
    marker = tmp_path / "ran"
    write({"a": Bomb(f"touch {marker}")}, tmp_path / "pytorch_model.bin")
    with pytest.raises((UnsafeCheckpointError, CorruptCheckpointError)) as caught:
        read_checkpoint(tmp_path)
    assert not marker.exists()
    assert write is not torch.save or isinstance(caught.value, UnsafeCheckpointError)


def test_broken_pickle(tmp_path: Path) -> None:
    """A truncated pickle is a corrupt file."""
    torch.save({"a": torch.zeros(999)}, tmp_path / "pytorch_model.bin")
    content = (tmp_path / "pytorch_model.bin").read_bytes()
    (tmp_path / "pytorch_model.bin").write_bytes(content[: len(content) // 2])
    with pytest.raises(CorruptCheckpointError, match=r"pytorch_model\.bin"):
        read_checkpoint(tmp_path)


def test_gguf(tmp_path: Path) -> None:
    """A GGUF file is described by its own fields; quantized blocks name their format."""
    path = tiny_gguf(tmp_path / "model.gguf")
    for where in (Where(path), Where(tmp_path, gguf_file="model.gguf")):
        facts = read_checkpoint(where)
        assert (facts.file_format, facts.saved, facts.quantization) == ("gguf", FLOAT32, "gguf:Q8_0")
        assert (facts.model_type, facts.parameters) == ("llama", 15_456)


def test_adapter(tmp_path: Path) -> None:
    """An adapter's folder leads to its base, and says so."""
    import peft

    base = TINY["qwen3"].save(tmp_path / "base", torch.float16)
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(tmp_path / "adapter")
    facts = read_checkpoint(tmp_path / "adapter")
    assert facts.adapter == facts.source == str(tmp_path / "adapter")
    assert facts.parameters == TINY["qwen3"].make().num_parameters()


def test_adapter_without_base(tmp_path: Path) -> None:
    """An adapter whose base is gone names both."""
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "./gone"}))
    with pytest.raises(CheckpointNotFoundError, match=r"adapter of \./gone"):
        read_checkpoint(tmp_path)


def header_of(entries: dict[str, Any], payload: int) -> bytes:
    """Return a safetensors file with this header and `payload` bytes of tensors."""
    header = json.dumps(entries).encode()
    return len(header).to_bytes(8, "little") + header + bytes(payload)


def entry(shape: list[int], start: int, end: int, kind: str = "F32") -> dict[str, Any]:
    """Return one tensor's entry of a header."""
    return {"dtype": kind, "shape": shape, "data_offsets": [start, end]}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        pytest.param(b"", "no whole header", id="empty"),
        pytest.param((10**9).to_bytes(8, "little") + b"{}", "no whole header", id="header-longer-than-the-file"),
        pytest.param((2**60).to_bytes(8, "little") + b"{}", "no whole header", id="header-of-an-exabyte"),
        pytest.param((9).to_bytes(8, "little") + b"{nonsense", "no JSON", id="no-json"),
        pytest.param((2).to_bytes(8, "little") + b"[]", "no table", id="no-table"),
        pytest.param(header_of({"a": entry([4], 0, 16)}, 8), "truncated", id="truncated"),
        pytest.param(header_of({"a": entry([4], 0, 16)}, 99), "longer than it says", id="trailing-bytes"),
        pytest.param(header_of({"a": entry([5], 0, 16)}, 16), "16 bytes instead of 20", id="shape-and-bytes"),
        pytest.param(header_of({"a": entry([2], 0, 8), "b": entry([2], 4, 12)}, 12), "begin at byte 4", id="overlap"),
        pytest.param(header_of({"a": entry([2], 0, 8), "b": entry([2], 16, 24)}, 24), "begin at byte 16", id="gap"),
        pytest.param(header_of({"a": entry([4], 0, 16, "F31")}, 16), "F31", id="unknown-format"),
        pytest.param(header_of({"a": {"shape": [4]}}, 16), "no tensor's", id="no-tensor"),
    ],
)
def test_corrupt_headers(content: bytes, words: str, tmp_path: Path) -> None:
    """Every way in which a header can contradict itself or its file is named."""
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(CorruptCheckpointError, match=words) as caught:
        read_checkpoint(tmp_path)
    assert "model.safetensors" in str(caught.value)
    assert "download" in str(caught.value)


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """Return a checkpoint in several shards."""
    return TINY["qwen3"].save(tmp_path, torch.float16, max_shard_size="20KB")


def test_missing_shard(sharded: Path) -> None:
    """A shard that is not there is named, with how many there should be."""
    victim = sorted(sharded.glob("*.safetensors"))[1]
    victim.unlink()
    with pytest.raises(MissingShardError, match=victim.name):
        read_checkpoint(sharded)


def test_truncated_shard(sharded: Path) -> None:
    """A shard that is cut off is named, with both sizes."""
    victim = sorted(sharded.glob("*.safetensors"))[0]
    victim.write_bytes(victim.read_bytes()[:-10])
    with pytest.raises(CorruptCheckpointError, match=rf"{victim.name}: is truncated"):
        read_checkpoint(sharded)


@pytest.mark.parametrize(
    ("index", "error", "words"),
    [
        pytest.param("{", CorruptCheckpointError, "no index", id="no-json"),
        pytest.param("{}", CorruptCheckpointError, "no index", id="no-map"),
        pytest.param('{"weight_map": {}}', CorruptCheckpointError, "no tensors", id="empty"),
        pytest.param(
            '{"weight_map": {"a": "b.safetensors"}}', MissingShardError, "b.safetensors", id="files-not-there"
        ),
    ],
)
def test_bad_index(index: str, error: type[Exception], words: str, tmp_path: Path) -> None:
    """An index that is none, or names files that are not there, is its own error."""
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(error, match=words):
        read_checkpoint(tmp_path)


def test_index_promises_too_much(sharded: Path) -> None:
    """A tensor that the index promises and no shard holds is named."""
    path = sharded / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["model.ghost.weight"] = next(iter(index["weight_map"].values()))
    path.write_text(json.dumps(index))
    with pytest.raises(CorruptCheckpointError, match=r"model\.ghost\.weight"):
        read_checkpoint(sharded)


def test_shard_outside_the_folder(sharded: Path) -> None:
    """An index cannot lead out of its folder."""
    path = sharded / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["x"] = "../outside.safetensors"
    path.write_text(json.dumps(index))
    (sharded.parent / "outside.safetensors").write_bytes(header_of({"x": entry([4], 0, 16)}, 16))
    with pytest.raises(CorruptCheckpointError, match="outside"):
        read_checkpoint(sharded)


def test_bad_config(tmp_path: Path) -> None:
    """A config.json that is no JSON is named."""
    save(tmp_path, {"a": torch.zeros(9)})
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CorruptCheckpointError, match=r"config\.json"):
        read_checkpoint(tmp_path)


def test_no_config(tmp_path: Path) -> None:
    """Weights without a config are read, with a warning."""
    assert "no config.json" in read_checkpoint(save(tmp_path, {"a": torch.zeros(9)})).warnings[0]


@pytest.mark.parametrize(
    ("where", "words"),
    [
        pytest.param(Where("./nowhere"), "no such file or folder", id="relative"),
        pytest.param(Where("/nowhere/at/all"), "no such file or folder", id="absolute"),
        pytest.param(Where(""), "no such file or folder", id="empty"),
    ],
)
def test_no_such_path(where: Where, words: str) -> None:
    """What reads like a path and is not there is never asked of the Hub."""
    with pytest.raises(CheckpointNotFoundError, match=words):
        read_checkpoint(where)


def test_no_weights(tmp_path: Path) -> None:
    """A folder without weights says which files were looked for."""
    with pytest.raises(CheckpointNotFoundError, match=r"model\.safetensors.*pytorch_model\.bin"):
        read_checkpoint(tmp_path)


def test_unknown_file(tmp_path: Path) -> None:
    """A file of another kind is refused by its ending."""
    (tmp_path / "model.onnx").write_bytes(b"x")
    with pytest.raises(CheckpointNotFoundError, match=r"\.safetensors"):
        read_checkpoint(tmp_path / "model.onnx")


def test_token_is_never_shown() -> None:
    """A token is no part of what is printed."""
    assert "hf_secret" not in repr(Where("org/name", token="hf_secret"))
