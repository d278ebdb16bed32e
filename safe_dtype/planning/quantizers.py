"""Which quantization methods run on which devices: by transformers' quantizers and by the packages that they call.

transformers' `validate_environment` asks the machine that it runs on. This table answers for devices that are not here;
its rows follow transformers 5.23, each with the place where the fact stands. What is not in it, nothing is claimed of.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..facts import CheckpointFacts, DeviceFacts

_ANY = ""
_AMD_OF_BITSANDBYTES = r"^gfx(908|90a|942|950|1250|103.|110.|115.|120.)$"
_FLOAT8_ON_AMD = r"^gfx(94.|950|12..)$"
_EVERYWHERE = (
    ("nvidia", _ANY), ("amd", _ANY), ("intel_gpu", _ANY), ("apple", _ANY), ("cpu", _ANY), ("npu", _ANY),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Quantizer:
    """Where the codes of one method are multiplied, and what has to be installed."""

    method: str
    packages: tuple[str, ...]  # as pip knows them, beside accelerate
    runs_on: tuple[tuple[str, str], ...]  # a vendor, and what it asks for: see `_meets`
    source: str
    else_dense: bool = False  # elsewhere transformers dequantizes by itself
    unpacks_on: tuple[tuple[str, str], ...] = ()  # where there are no kernels, and plain torch does it

    def problem_on(self, device: DeviceFacts) -> str | None:
        """Return why the codes do not run on `device`; None where they do, or nobody knows its kind."""
        vendor = "intel_gpu" if device.vendor == "xpu" else device.vendor
        if not vendor:
            return None
        conditions = [condition for name, condition in self.runs_on if name == vendor]
        if any(_meets(device, condition) for condition in conditions):
            return None
        if vendor == "nvidia" and conditions:
            return f"it needs compute capability {conditions[0]}, and {device.name} has {device.capability} ({self.source})"
        return f"it runs on {self.places} ({self.source})"

    def unpacks_at_every_product(self, device: DeviceFacts) -> bool:
        """Whether it runs there, and slowly: each product unpacks its weights to 16 bit with torch's own operations."""
        return any(name == device.vendor and _meets(device, condition) for name, condition in self.unpacks_on)

    @property
    def name(self) -> str:
        """The method as people call it: "bitsandbytes in 8 bit", "gptq marlin"."""
        return re.sub(r" (\d)$", r" in \1 bit", self.method)

    @property
    def places(self) -> str:
        """The kinds of devices that it runs on."""
        return ", ".join(_place(vendor, condition) for vendor, condition in self.runs_on) or "no device"


_NAMES = {"nvidia": "NVIDIA", "amd": "AMD", "intel_gpu": "Intel GPUs", "apple": "Apple GPUs", "cpu": "CPUs",
          "npu": "Ascend", "hpu": "Gaudi"}  # fmt: skip
_BITSANDBYTES = "bitsandbytes README, installation.mdx"
_TRANSFORMERS = "transformers/quantizers/quantizer_{}.py"
_GPTQMODEL = "gptqmodel/nn_modules/qlinear"


def _bitsandbytes(method: str, least: str) -> Quantizer:
    runs_on = (
        ("nvidia", least), ("amd", _AMD_OF_BITSANDBYTES), ("intel_gpu", _ANY), ("apple", "^M"),
        ("cpu", "x86_64 avx2"), ("cpu", "arm64"), ("hpu", "gaudi[23]"), ("npu", _ANY),
    )  # fmt: skip
    return Quantizer(method, ("bitsandbytes",), runs_on, _BITSANDBYTES)


def _by_transformers(
    method: str, packages: tuple[str, ...], *runs_on: tuple[str, str], file: str = "", else_dense: bool = False
) -> Quantizer:
    return Quantizer(method, packages, runs_on, _TRANSFORMERS.format(file or method), else_dense)


_NVIDIA = ("nvidia", _ANY)
_WITHOUT_KERNELS = (("apple", _ANY), ("cpu", "arm64"), ("npu", _ANY))  # of gptqmodel's: on its list stands torch alone
QUANTIZERS = (
    Quantizer("gptq", ("optimum", "gptqmodel"), _EVERYWHERE, f"{_GPTQMODEL}/torch.py", unpacks_on=_WITHOUT_KERNELS),
    Quantizer("gptq marlin", ("optimum", "gptqmodel"), (("nvidia", "7.5"),), f"{_GPTQMODEL}/marlin.py"),
    Quantizer("awq", ("gptqmodel",), _EVERYWHERE, f"{_GPTQMODEL}/torch_awq.py", unpacks_on=_WITHOUT_KERNELS),
    Quantizer("awq gemv", ("gptqmodel",), (_NVIDIA, ("amd", _ANY)), f"{_GPTQMODEL}/gemv_awq.py"),
    Quantizer("awq marlin", ("gptqmodel",), (("nvidia", "8.0"),), f"{_GPTQMODEL}/marlin_awq.py"),
    _bitsandbytes("bitsandbytes 8", "7.5"),
    _bitsandbytes("bitsandbytes 4", "6.0"),
    _by_transformers("fp8", (), ("nvidia", "8.9"), ("amd", _FLOAT8_ON_AMD), file="finegrained_fp8", else_dense=True),
    _by_transformers("mxfp8", (), ("nvidia", "8.9"), ("amd", _FLOAT8_ON_AMD), file="finegrained_fp8", else_dense=True),
    _by_transformers(
        "mxfp4", ("kernels", "triton"), ("nvidia", "7.5"), ("amd", _ANY), ("intel_gpu", _ANY), else_dense=True
    ),
    _by_transformers("metal", ("kernels",), ("apple", _ANY), else_dense=True),
    _by_transformers("fbgemm_fp8", ("fbgemm-gpu",), ("nvidia", "9.0"), ("intel_gpu", _ANY)),
    _by_transformers("eetq", ("kernels",), _NVIDIA),
    _by_transformers("higgs", ("flute-kernel", "fast_hadamard_transform"), _NVIDIA),
    _by_transformers("spqr", ("spqr_quant[gpu]",), _NVIDIA),
    _by_transformers("vptq", ("vptq",), _NVIDIA),
    _by_transformers("fp_quant", ("fp_quant", "qutlass"), ("nvidia", "10.0"), ("intel_gpu", _ANY)),
    _by_transformers("nvfp4", ("kernels",)),
    _by_transformers("compressed-tensors", ("compressed-tensors",), *_EVERYWHERE, file="compressed_tensors"),
    _by_transformers("torchao", ("torchao",), *_EVERYWHERE),
    _by_transformers("quanto", ("optimum-quanto",), *_EVERYWHERE),
    _by_transformers("hqq", ("hqq",), *_EVERYWHERE),
    _by_transformers("bitnet", (), *_EVERYWHERE),
)
_BY_METHOD = {quantizer.method: quantizer for quantizer in QUANTIZERS}


def quantizer_of(checkpoint: CheckpointFacts) -> Quantizer | None:
    """Return what runs the codes of a quantized checkpoint; None where the table does not know it."""
    method = checkpoint.quantization or ""
    special = "gemv" if (checkpoint.code_format or "") in ("gemv_fast", "llm-awq") else checkpoint.code_format
    names = (f"{method} {special}", f"{method} {checkpoint.packed_bits}", method)
    return next((_BY_METHOD[name] for name in names if name in _BY_METHOD), None)


def packages_of(method: str) -> tuple[str, ...]:
    """Return what has to be installed for a method, as pip knows it; nothing where the table does not know the method."""
    rows = (one for one in QUANTIZERS if one.method.partition(" ")[0] == method)
    return next((one.packages for one in rows), ())


def quantizes_to(bits: int, device: DeviceFacts) -> Quantizer | None:
    """Return what quantizes a model to so many bits as it is loaded on `device`; None: nothing that we know of."""
    quantizer = _BY_METHOD[f"bitsandbytes {bits}"]
    return quantizer if device.vendor and quantizer.problem_on(device) is None else None


def _meets(device: DeviceFacts, condition: str) -> bool:
    """Whether a device has what its vendor's condition asks for.

    That is a compute capability of NVIDIA's; words that all stand in a CPU's capability; else a pattern for the
    capability (gfx90a, M2) or, of those without one, the name.
    """
    if not condition or (not device.capability and device.vendor in ("nvidia", "amd", "cpu")):
        return True
    if device.vendor == "nvidia":
        return _numbers(device.capability) >= _numbers(condition)
    if device.vendor == "cpu":
        return set(condition.split()) <= set(device.capability.split())
    return re.search(condition, device.capability or device.name) is not None


def _numbers(capability: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", capability))


def _place(vendor: str, condition: str) -> str:
    name = _NAMES[vendor]
    if vendor == "nvidia":
        return f"{name} from compute capability {condition}" if condition else name
    if vendor == "cpu" and condition:
        return f"{condition} {name}"
    return name if not condition or vendor in ("apple", "hpu") else f"newer {name}"
