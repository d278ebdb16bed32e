"""The counts are exactly what torch's own conversion to float16 makes of the weights."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from checkpoints.audit.spreads import CHUNK, SPREADS, audited, by_name, counted, fates, powers

from safe_dtype.checkpoints import audit


def test_every_bfloat16(tmp_path: Path) -> None:
    """Of all 65536 bit patterns, 128 at a time, each count is torch's, and so is the place on the scale."""
    patterns = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(torch.bfloat16).reshape(512, 128)
    found = audited(tmp_path, {f"{row:03}": numbers.clone() for row, numbers in enumerate(patterns)})
    for row, numbers in enumerate(patterns):
        census = found[f"{row:03}"]
        assert counted(census) == fates(numbers), row
        assert dict(census.exponents) == powers(numbers), row
        assert census.sampled_from is None


def test_every_float16(tmp_path: Path) -> None:
    """float16 changes nothing of itself."""
    patterns = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(torch.float16)
    census = audited(tmp_path, {"all": patterns})["all"]
    assert counted(census) == fates(patterns)
    assert (census.overflowing, census.inexact, census.vanishing) == (0, 0, 0)
    assert (census.infinite, census.nan) == (2, 2046)


def beside(middles: torch.Tensor) -> torch.Tensor:
    """Return numbers, the next ones above and below, and all of them with the other sign."""
    step = {4: torch.int32, 8: torch.int64}[middles.element_size()]
    near = torch.cat([(middles.view(step) + one).view(middles.dtype) for one in (-1, 0, 1)])
    return torch.cat([near, -near])


def halfway(dtype: torch.dtype) -> torch.Tensor:
    """Return what lies halfway between neighbours in float16, 65520 among it, and the neighbours themselves."""
    halves = torch.arange(1, 0x7C00, dtype=torch.int16).view(torch.float16).to(dtype)
    above = torch.cat([halves[1:], torch.tensor([65536.0], dtype=dtype)])
    return torch.cat([(halves + above) / 2, halves, torch.tensor([2.0**-25], dtype=dtype)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_where_float16_rounds(dtype: torch.dtype, tmp_path: Path) -> None:
    """Each number next to where rounding turns, in each of float16's binades, is counted as torch rounds it."""
    numbers = beside(halfway(dtype))
    if dtype == torch.float64:  # torch rounds them to float32 first, where rounding turns elsewhere
        numbers = torch.cat([numbers, beside(torch.tensor([65520 - 2.0**-9, 2.0**-25 + 2.0**-50], dtype=dtype))])
    exponents = torch.frexp(numbers).exponent
    parts = {str(int(one)): numbers[exponents == one] for one in exponents.unique()}
    assert {name: counted(census) for name, census in audited(tmp_path, parts).items()} == {
        name: fates(part) for name, part in parts.items()
    }


def test_random_float32_bits(tmp_path: Path) -> None:
    """Of random bit patterns (every exponent, NaN and infinity among them), each count is torch's."""
    torch.manual_seed(0)
    bits = torch.randint(-(1 << 31), (1 << 31) - 1, (1 << 19,), dtype=torch.int64).to(torch.int32)
    bits[::1000] = 0x7F800000
    tame, small = torch.randn(1 << 19) * 0.02, torch.randn(1000) * 1e-7
    numbers = {"wild": bits.view(torch.float32), "tame": tame, "small": small}
    found = audited(tmp_path, numbers)
    assert {name: counted(found[name]) for name in numbers} == {name: fates(one) for name, one in numbers.items()}


@pytest.mark.parametrize("name", SPREADS)
def test_spreads(name: str, tmp_path: Path) -> None:
    """However weights are spread, every count is torch's; the histogram is exact up to where it says so."""
    numbers = SPREADS[name]
    census = audited(tmp_path, {name: numbers})[name]
    assert counted(census) == fates(numbers)
    truth, sampled_from = powers(numbers), census.sampled_from
    exact = {k: n for k, n in truth.items() if sampled_from is None or k < sampled_from}
    assert {k: n for k, n in census.exponents if k in exact or sampled_from is None or k < sampled_from} == exact
    assert sum(n for _, n in census.exponents) == sum(truth.values())
    assert {k for k, _ in census.exponents} <= truth.keys()


def test_chunk_borders(tmp_path: Path) -> None:
    """What lies at either side of a border between chunks is counted once."""
    numbers = torch.ones(2 * CHUNK + 1, dtype=torch.bfloat16)
    for place, one in enumerate([1e5, -1e-9, float("inf"), 1e-7, float("nan"), -2e5]):
        numbers[[0, CHUNK - 1, CHUNK, 2 * CHUNK - 1, 2 * CHUNK, 1][place]] = one
    census = audited(tmp_path, {"w": numbers})["w"]
    assert counted(census) == fates(numbers)
    assert (census.overflowing, census.vanishing, census.infinite, census.nan) == (2, 1, 1, 1)


def write_misaligned(path: Path, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
    """Write a safetensors file whose header has an odd length."""
    header: dict[str, object] = {}
    data = b""
    for name, one in tensors:
        content = one.view(torch.uint8).numpy().tobytes()
        kind = {torch.bfloat16: "BF16", torch.float32: "F32"}[one.dtype]
        header[name] = {"dtype": kind, "shape": list(one.shape), "data_offsets": [len(data), len(data) + len(content)]}
        data += content
    text = json.dumps(header).encode()
    text += b" " * (1 - len(text) % 2)
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def test_misaligned(tmp_path: Path) -> None:
    """Weights that begin at an odd byte are read right."""
    tensors = {"a": SPREADS["usual"], "b": torch.randn(1001) * 1e-6}
    write_misaligned(tmp_path / "model.safetensors", tensors.items())
    assert {name: counted(one) for name, one in by_name(audit(tmp_path)).items()} == {
        name: fates(one) for name, one in tensors.items()
    }
