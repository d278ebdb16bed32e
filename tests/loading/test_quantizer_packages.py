"""Quantized models whose packages are missing, or that this CPU cannot multiply: an error says what to do."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import pytest
import transformers

from safe_dtype import SafeAutoModelForCausalLM
from safe_dtype.errors import QuantizerPackageError, SafeDtypeWarning

LINEAR = {"targets": ["Linear"], "weights": {"num_bits": 4, "type": "int", "group_size": 32}}
CONFIGS: dict[str, dict[str, Any]] = {
    "torchao": {"quant_type": {"default": {"_type": "Int8WeightOnlyConfig", "_version": 2, "_data": {}}}},
    "bitsandbytes": {"load_in_8bit": True},
    "compressed-tensors": {"format": "pack-quantized", "config_groups": {"group_0": LINEAR}},
    "gptq": {"bits": 4},
    "awq": {"bits": 4},
    "quanto": {"weights": "int8"},
    "hqq": {"quant_config": {"weight_quant_params": {"nbits": 4, "group_size": 64}}},
}
PACKAGES = {
    "torchao": "torchao",
    "bitsandbytes": "bitsandbytes",
    "compressed-tensors": "compressed-tensors",
    "gptq": "gptqmodel",
    "awq": "gptqmodel",
    "quanto": "optimum-quanto",
    "hqq": "hqq",
}


def _is_absent(package: str) -> bool:
    try:
        distribution(package)
    except PackageNotFoundError:
        return True
    return False


@pytest.mark.parametrize("method", CONFIGS)
def test_what_to_install(method: str, saved: Callable[..., Path], tmp_path: Path) -> None:
    """A checkpoint whose config names a method that is not installed here ends with the package, whatever transformers says."""
    if not _is_absent(PACKAGES[method]):
        pytest.skip(f"{PACKAGES[method]} is installed")
    folder = Path(shutil.copytree(saved("qwen3"), tmp_path / "model"))
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": method, **CONFIGS[method]}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(QuantizerPackageError, match=rf"pip install .*{PACKAGES[method]}") as caught:
        SafeAutoModelForCausalLM.from_pretrained(folder)
    assert isinstance(caught.value, ImportError)  # as transformers raises it
    assert (caught.value.source, caught.value.method) == (str(folder), method)
    assert caught.value.__cause__ is not None


def test_asked_for_on_loading(saved: Callable[..., Path]) -> None:
    """What the caller wants quantized as it is loaded needs its package as well."""
    if not _is_absent("bitsandbytes"):
        pytest.skip("bitsandbytes is installed")
    config = transformers.BitsAndBytesConfig(load_in_8bit=True)
    with pytest.raises(QuantizerPackageError, match="pip install bitsandbytes"):
        SafeAutoModelForCausalLM.from_pretrained(saved("qwen3"), quantization_config=config)


def test_other_import_errors_stay(saved: Callable[..., Path], tmp_path: Path) -> None:
    """What code of a checkpoint cannot import is its own error."""
    folder = Path(shutil.copytree(saved("qwen3"), tmp_path / "model"))
    config = json.loads((folder / "config.json").read_text())
    config |= {"auto_map": {"AutoModelForCausalLM": "own.Own"}, "architectures": ["Own"]}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text("import a_package_of_nobody\n\nclass Own: ...\n")
    with pytest.raises(ImportError, match="a_package_of_nobody") as caught:
        SafeAutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    assert not isinstance(caught.value, QuantizerPackageError)


def test_float8_on_loading(saved: Callable[..., Path]) -> None:
    """Weights that are in 16 bit are not to be dequantized: a CPU that has no products of float8 is told to load them so."""
    config = transformers.FineGrainedFP8Config(weight_block_size=(16, 16))
    with (
        pytest.warns(SafeDtypeWarning, match=r"fp8 was asked for.*Next: load it without quantization_config"),
        pytest.raises(RuntimeError, match="GPU or XPU"),
    ):
        SafeAutoModelForCausalLM.from_pretrained(saved("qwen3"), quantization_config=config)
