"""The audit counts exactly what torch's own conversion to float16 does to the weights."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from tiny_models import TINY

from safe_dtype.checkpoints import audit
from safe_dtype.checkpoints.audit.audit_weights import Audit
from safe_dtype.checkpoints.audit.census import Census
from safe_dtype.checkpoints.audit.counting import CHUNK_BYTES
from safe_dtype.facts import Where

CHUNK = CHUNK_BYTES // 2  # bfloat16 numbers


def audited(folder: Path, tensors: dict[str, torch.Tensor], **options: int) -> dict[str, Census]:
    """Save the tensors, audit the file, and return the census of each."""
    safetensors.torch.save_file(tensors, folder / "model.safetensors")
    return by_name(audit(folder, **options))


def by_name(found: Audit) -> dict[str, Census]:
    """Return the census of each tensor."""
    return {one.tensor.name: one.census for one in found.tensors}


def fates(tensor: torch.Tensor) -> dict[str, float]:
    """Return what torch's conversion makes of a tensor, in the words of a census."""
    wide, half = tensor.double().flatten(), tensor.half().double().flatten()
    finite = wide[wide.isfinite()].abs()
    stays = wide.isfinite() & half.isfinite()
    return {
        "elements": wide.numel(),
        "zeros": int((wide == 0).sum()),
        "infinite": int(wide.isinf().sum()),
        "nan": int(wide.isnan().sum()),
        "overflowing": int((wide.isfinite() & half.isinf()).sum()),
        "inexact": int((stays & (half != wide)).sum()),
        "vanishing": int(((wide != 0) & (half == 0)).sum()),
        "largest": float(finite.max()) if finite.numel() else 0.0,
        "smallest": float(finite[finite > 0].min()) if (finite > 0).any() else 0.0,
    }


def counted(census: Census) -> dict[str, float]:
    """Return the same of a census."""
    return {name: getattr(census, name) for name in fates(torch.zeros(0))}


def powers(tensor: torch.Tensor) -> dict[int, int]:
    """Count the finite numbers of a tensor by power of two."""
    wide = tensor.double().flatten()
    exponents = torch.frexp(wide[wide.isfinite() & (wide != 0)]).exponent - 1
    return {int(k): int(n) for k, n in zip(*exponents.unique(return_counts=True), strict=True)}


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


def weights(scale: float, count: int) -> torch.Tensor:
    """Return numbers as weights are spread."""
    torch.manual_seed(0)
    return (torch.randn(count) * scale).bfloat16()


SPREADS = {
    "usual": weights(0.02, 3 * CHUNK + 5),
    "tiny": weights(1e-7, CHUNK + 1),
    "huge": weights(3e4, CHUNK),
    "small-then-usual": torch.cat([weights(1e-5, CHUNK), weights(0.02, CHUNK)]),
    "usual-then-small": torch.cat([weights(0.02, CHUNK), weights(1e-5, CHUNK + 77)]),
    "usual-then-large": torch.cat([weights(0.02, CHUNK), weights(1.0, 3 * CHUNK)]),
    "some-nan": torch.where(torch.arange(CHUNK) % 100 == 0, float("nan"), weights(0.02, CHUNK)),
    "half-zero": torch.cat([torch.zeros(CHUNK, dtype=torch.bfloat16), weights(0.02, CHUNK)]),
    "zeros": torch.zeros(CHUNK + 3, dtype=torch.bfloat16),
    "one-spike": torch.cat([weights(0.02, CHUNK - 1), torch.tensor([3e38], dtype=torch.bfloat16)]),
    "constant": torch.full((2 * CHUNK,), 1.5, dtype=torch.bfloat16),
    "not-finite": torch.full((CHUNK + 1,), float("nan"), dtype=torch.bfloat16),
}


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


@pytest.mark.parametrize("name", ["usual", "tiny", "usual-then-small", "usual-then-large", "half-zero", "zeros"])
def test_bits_down(name: str, tmp_path: Path) -> None:
    """The room below is what scaling by every power of two, one after the other, gives; exact for one in a thousand."""
    numbers = SPREADS[name]
    census = audited(tmp_path, {name: numbers})[name]
    sizes = numbers.double().abs()

    def too_many(shift: int) -> bool:
        scaled = sizes * 2.0**-shift
        return int(((scaled > 0) & (scaled < 2.0**-17)).sum()) > 0.001 * numbers.numel()

    found = census.bits_down(0.001)
    if found is None:
        assert not too_many(1000)
    else:
        assert not too_many(found)
        assert too_many(found + 1)


@pytest.mark.parametrize("largest", [1.0, 65504.0, 65519.99, 65520.0, 65536.0, 3e38, 1e-40, 0.9999])
def test_bits_up(largest: float, tmp_path: Path) -> None:
    """By 2**bits_up the largest weight stays finite in torch's conversion, and by one more it does not."""
    numbers = torch.tensor([largest, 1e-3 * largest])
    census = audited(tmp_path, {"w": numbers})["w"]
    up = census.bits_up
    assert up is not None
    exact = numbers[0].double()
    assert (exact * 2.0**up).float().half().isfinite()
    assert (exact * 2.0 ** (up + 1)).float().half().isinf()


def test_quantiles(tmp_path: Path) -> None:
    """The bulk of the weights is where torch finds it, to a third of a power of two."""
    numbers = SPREADS["usual"]
    census = audited(tmp_path, {"w": numbers})["w"]
    for share in (0.01, 0.5, 0.99):
        truth = math.log2(numbers[:CHUNK].double().abs().quantile(share))
        assert census.quantile(share) == pytest.approx(truth, abs=1 / 3)


def test_chunk_borders(tmp_path: Path) -> None:
    """What lies at either side of a border between chunks is counted once."""
    numbers = torch.ones(2 * CHUNK + 1, dtype=torch.bfloat16)
    for place, one in enumerate([1e5, -1e-9, float("inf"), 1e-7, float("nan"), -2e5]):
        numbers[[0, CHUNK - 1, CHUNK, 2 * CHUNK - 1, 2 * CHUNK, 1][place]] = one
    census = audited(tmp_path, {"w": numbers})["w"]
    assert counted(census) == fates(numbers)
    assert (census.overflowing, census.vanishing, census.infinite, census.nan) == (2, 1, 1, 1)


def test_odd_shapes(tmp_path: Path) -> None:
    """Tensors without elements, or without dimensions, are audited as well."""
    odd = {"empty": torch.zeros(0, 7), "scalar": torch.tensor(1e6), "three": torch.ones(3, dtype=torch.bfloat16)}
    found = audited(tmp_path, odd)
    assert {name: counted(census) for name, census in found.items()} == {name: fates(one) for name, one in odd.items()}
    assert found["empty"].bits_up is None
    assert found["empty"].bits_down(0.001) is None
    assert found["empty"].quantile(0.5) is None


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


def test_not_a_float(tmp_path: Path) -> None:
    """Integers and float8 are named, and left alone."""
    tensors = {
        "ids": torch.arange(5), "mask": torch.ones(3, dtype=torch.bool),
        "packed": torch.ones(4).to(torch.float8_e4m3fn), "w": torch.ones(2),
    }  # fmt: skip
    safetensors.torch.save_file(tensors, tmp_path / "model.safetensors")
    found = audit(tmp_path)
    assert [one.tensor.name for one in found.tensors] == ["w"]
    assert {one.name: one.dtype for one in found.left_alone} == {
        "ids": "int64", "mask": "bool", "packed": "float8_e4m3fn",
    }  # fmt: skip


def test_sums(tmp_path: Path) -> None:
    """The census of two tensors together is the sum of theirs."""
    both = {"a": SPREADS["tiny"], "b": SPREADS["huge"]}
    found = audited(tmp_path, both)
    whole = torch.cat([*both.values()])
    total = found["a"] + found["b"]
    assert counted(total) == fates(whole)
    assert sum(n for _, n in total.exponents) == sum(powers(whole).values())


def test_shards_and_threads(tmp_path: Path) -> None:
    """All shards are read; how many threads read them makes no difference; progress ends at the end."""
    model = TINY["qwen3"].make().to(torch.bfloat16)
    model.save_pretrained(tmp_path, max_shard_size=20_000)
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    told: list[tuple[int, int]] = []
    one = audit(Where(tmp_path), threads=1, progress=lambda done, total: told.append((done, total)))
    assert audit(tmp_path, threads=3) == one
    assert by_name(one).keys() == safetensors_names(tmp_path)
    assert one.total.elements == sum(p.numel() for p in model.parameters())
    assert told == sorted(told)
    assert told[-1] == (2 * one.total.elements, 2 * one.total.elements)


def safetensors_names(folder: Path) -> set[str]:
    """Return the names of all tensors, by safetensors itself."""
    return {name for file in folder.glob("*.safetensors") for name in safetensors.torch.load_file(file)}


def test_pieces(tmp_path: Path) -> None:
    """A tensor that several threads read in pieces gets one census, as if read in one go."""
    before = audited(tmp_path, {"w": SPREADS["usual"], "v": SPREADS["one-spike"]})
    after = by_name(audit(tmp_path, threads=2, piece_bytes=300_000))
    assert {name: counted(one) for name, one in after.items()} == {name: counted(one) for name, one in before.items()}
    assert after["w"].bits_down(0.001) == before["w"].bits_down(0.001)
