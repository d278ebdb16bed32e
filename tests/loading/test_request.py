"""What a call of `from_pretrained` asks for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from safe_dtype import BFLOAT16, FLOAT16, FLOAT32
from safe_dtype.errors import UnknownDtypeError
from safe_dtype.loading import Request


@pytest.mark.parametrize(
    ("arguments", "ordered"),
    [
        pytest.param({}, None, id="absent"),
        pytest.param({"dtype": None, "torch_dtype": "auto"}, None, id="auto"),
        pytest.param({"dtype": "bf16"}, BFLOAT16, id="short-name"),
        pytest.param({"dtype": torch.float16}, FLOAT16, id="torch"),
        pytest.param({"dtype": torch.float32, "torch_dtype": torch.float16}, FLOAT32, id="dtype-wins"),
        pytest.param({"dtype": None, "torch_dtype": torch.float16}, FLOAT16, id="old-name"),
        pytest.param({"dtype": {"": "bfloat16", "vision": "float32"}}, BFLOAT16, id="table"),
        pytest.param({"dtype": {"vision": "bfloat16"}}, FLOAT32, id="table-without-default-is-float32"),
    ],
)
def test_ordered(arguments: dict[str, Any], ordered: Any) -> None:
    """The dtype argument means what it means to transformers."""
    assert Request("model", arguments).ordered == ordered


def test_unknown_dtype() -> None:
    """A dtype that is none is an error that lists the known ones."""
    with pytest.raises(UnknownDtypeError, match="bfloat16"):
        Request("model", {"dtype": "bf17"}).ordered  # noqa: B018


@pytest.mark.parametrize(
    ("device_map", "devices", "spreads"),
    [
        pytest.param("cpu", ("cpu",), False, id="name"),
        pytest.param(torch.device("cpu"), ("cpu",), False, id="device"),
        pytest.param("cuda:1", ("cuda:1",), False, id="index"),
        pytest.param(1, ("cuda:1",), False, id="number"),
        pytest.param({"": "cpu"}, ("cpu",), False, id="table"),
        pytest.param({"a": 0, "b": "cuda:1", "c": "cpu", "d": "disk"}, ("cuda:0", "cuda:1"), False, id="offload"),
        pytest.param({"a": 0, "b": 0}, ("cuda:0",), False, id="twice"),
        pytest.param({"a": "cpu", "b": "disk"}, ("cpu",), False, id="disk"),
    ],
)
def test_devices(device_map: Any, devices: tuple[str, ...], spreads: bool) -> None:
    """Every device that computes is asked, and those that only hold weights are not."""
    request = Request("model", {"device_map": device_map})
    assert request.devices == devices
    assert request.spreads is spreads


def test_default_device() -> None:
    """Without `device_map` torch's default device counts where one is set."""
    with torch.device("meta"):
        assert Request("model", {}).devices == ("meta",)


@pytest.mark.needs("cuda")
def test_accelerator_by_default() -> None:
    """Without `device_map` the plan is for the accelerator, and with "auto" for all of them."""
    assert Request("model", {}).devices == ("cuda:0",)
    spread = Request("model", {"device_map": "auto"}).devices
    assert spread == tuple(f"cuda:{index}" for index in range(torch.cuda.device_count()))


@pytest.mark.parametrize(
    ("config", "quantizer"),
    [
        pytest.param(None, None, id="none"),
        pytest.param({"quant_method": "gptq"}, "gptq", id="table"),
        pytest.param(transformers.BitsAndBytesConfig(load_in_8bit=True), "bitsandbytes", id="object"),
        pytest.param(transformers.QuantoConfig(weights="int8"), "quanto", id="another"),
    ],
)
def test_quantizer(config: Any, quantizer: str | None) -> None:
    """The quantizer's name is read from the argument."""
    assert Request("model", {"quantization_config": config}).quantizer == quantizer


def test_where() -> None:
    """Everything that decides which files are taken is handed to the reader, and the token is not shown."""
    given = {"subfolder": "inner", "revision": "v1", "variant": "fp16", "token": "hf_secret", "local_files_only": True}
    request = Request("org/name", {**given, "dtype": "auto", "use_cache": False})
    assert {name: getattr(request.where, name) for name in given} == given
    assert "hf_secret" not in repr(request)
