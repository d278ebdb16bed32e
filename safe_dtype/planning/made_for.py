"""What a plan was made for, and where that contradicts what it is used for."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from ..facts import CheckpointFacts, CheckpointIdentity, DeviceFacts

Pairs = tuple[tuple[str, str], ...]

# These change the kernels of a CPU, and nothing on an accelerator; all others are of accelerators.
_OF_THE_CPU = re.compile(r"cpu_capability|mkldnn|(ONEDNN|DNNL|MKL|ATEN|IPEX)_\w+")
_OF_BOTH = re.compile(r"float32_matmul_precision|(PYTORCH|TORCH)_\w+")
# These change how long a product takes and not which kernel computes it: a launcher sets them for each rank.
_TIMES_ALONE = re.compile(
    r"threads|(OMP|GOMP|KMP|LD|DYLD|CUDA_LAUNCH)_\w+|\w+_NUM_THREADS|\w*ALLOC\w*|PYTORCH_NO_(CUDA|HIP)_MEMORY_CACHING"
    r"|PYTORCH_ENABLE_MPS_FALLBACK"
)
_KERNELS = ("torch", "cuda", "hip")  # the versions that bring other kernels


@dataclass(frozen=True, slots=True)
class Contradiction:
    """One thing that a plan was made for, and what there is in its place."""

    what: str
    planned: str
    here: str


@dataclass(frozen=True, slots=True)
class MadeFor:
    """A checkpoint, a device and the software: what a plan holds for. Empty or None: unknown, and contradicts nothing."""

    source: str  # the checkpoint, as the user wrote it
    checkpoint: CheckpointIdentity | None = None
    devices: tuple[str, ...] = ()  # the products that compute, each once
    vendor: str = ""  # "nvidia", "amd", "cpu", ...
    family: str = ""  # the row of the table of priors
    driver: str = ""
    measured: bool = True  # False: planned from the table of priors for a device that was not there
    settings: Pairs = ()  # environment, threads and switches that change kernels
    versions: Pairs = ()  # of torch and what is beneath it, of transformers and safe_dtype

    @classmethod
    def of(cls, checkpoint: CheckpointFacts) -> MadeFor:
        """Return what is made for this checkpoint, on a device that is not known yet."""
        return cls(checkpoint.source, checkpoint.identity, versions=checkpoint.versions)

    def on(self, device: DeviceFacts) -> MadeFor:
        """Return the same on this device."""
        return replace(
            self,
            devices=device.products or (device.name,),
            vendor=device.vendor,
            family=device.family,
            driver=device.driver,
            measured=device.measured,
            settings=device.settings,
            versions=(*device.versions, *self.versions),
        )

    def contradictions(self, here: MadeFor) -> Iterator[Contradiction]:
        """Yield where `here`, what a plan is to be used for, contradicts what it was made for.

        A copy of the checkpoint is the same checkpoint, another device of the same product the same device. Other
        versions of Python, transformers and safe_dtype are no contradiction, nor are another number of threads, another
        allocator and settings of devices that do not compute.
        """
        yield from self._other_checkpoint(here)
        if devices := self._other_device(here):
            yield devices
            return  # what belongs to another device differs anyway
        if self.driver and here.driver and self.driver != here.driver:
            yield Contradiction("driver", self.driver, here.driver)
        versions, versions_here = dict(self.versions), dict(here.versions)
        for name in _KERNELS:
            planned, current = versions.get(name), versions_here.get(name)
            if planned and current and planned != current:
                yield Contradiction("version", f"{name} {planned}", f"{name} {current}")
        if self.settings and here.settings:
            yield from self._other_settings(here)

    def _other_settings(self, here: MadeFor) -> Iterator[Contradiction]:
        settings, settings_here = dict(self.settings), dict(here.settings)
        for name in dict.fromkeys([*settings, *settings_here]):
            if _TIMES_ALONE.fullmatch(name) or self._is_of_another_device(name):
                continue
            if settings.get(name) != settings_here.get(name):
                yield Contradiction("setting", _assigned(name, settings), _assigned(name, settings_here))

    def _is_of_another_device(self, setting: str) -> bool:
        if self.vendor == "cpu":
            return not (_OF_THE_CPU.fullmatch(setting) or _OF_BOTH.fullmatch(setting))
        return _OF_THE_CPU.fullmatch(setting) is not None

    @property
    def _name(self) -> str:
        """The checkpoint, as an error names it."""
        commit = self.checkpoint.commit if self.checkpoint else None
        return f"{self.source} at {commit}" if commit else self.source

    def _other_checkpoint(self, here: MadeFor) -> Iterator[Contradiction]:
        mine, other = self.checkpoint, here.checkpoint
        if mine is None or other is None:
            return
        if mine.tensors != other.tensors:
            yield Contradiction("checkpoint", self._name, f"{here._name} (other tensors)")
            return
        for digest, digest_here in ((mine.contents, other.contents), (mine.blobs, other.blobs)):
            if digest and digest_here:
                if digest != digest_here:
                    yield Contradiction("checkpoint", self._name, f"{here._name} (other values in its files)")
                return  # the same files, whatever else was committed beside them
        if self.source == here.source and mine.commit and other.commit and mine.commit != other.commit:
            yield Contradiction("checkpoint", self._name, here._name)

    def _other_device(self, here: MadeFor) -> Contradiction | None:
        planned, others = " + ".join(self.devices), " + ".join(here.devices)
        if self.vendor and here.vendor and self.vendor != here.vendor:
            return Contradiction("device", planned or self.vendor, others or here.vendor)
        if not self.measured:  # the table of priors holds for a family of products
            differs = bool(self.family and here.family) and self.family != here.family
            return (
                Contradiction("device", f"{planned} ({self.family})", f"{others} ({here.family})") if differs else None
            )
        if self.devices and not set(here.devices) <= set(self.devices):
            return Contradiction("device", planned, others)
        return None


def _assigned(name: str, settings: Mapping[str, str]) -> str:
    return f"{name}={settings[name]}" if name in settings else f"no {name}"
