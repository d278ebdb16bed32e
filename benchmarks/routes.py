"""Ways to multiply rows by a weight in 16 bit on a CPU: what was tried, how fast each is, how far off.

    python benchmarks/routes.py                # 3 CPU settings, about 5 minutes

Weights take turns from a set larger than the caches. Errors are the largest |difference| from float64 over the largest
|value|. Kept are "blocks" (safe_dtype.numerics.block_product) and "cast" (computed in float32, the weight cast in pieces).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import click
import torch
import torch.nn.functional as F  # noqa: N812  # torch's own name for it
from generation import CPUS, in_child, limits
from results_file import write_results
from torch import Tensor

from safe_dtype.devices.probing.timing import by_wall, seconds_per_call
from safe_dtype.numerics import Blocks, product
from safe_dtype.numerics.cast_products import cast_linear

SHAPES = ((3072, 1024), (1024, 3072), (32000, 1024))
ROWS = (1, 2, 4, 8, 16, 64, 512)
POOL = 4e8  # bytes of weights
LONGEST = 1.0  # seconds; what takes longer at some rows is not run with more

Prepare = Callable[[Tensor], Any]
Multiply = Callable[[Tensor, Any], Tensor]


def _packed(weight: Tensor) -> Any:
    return torch.ops.mkldnn._reorder_linear_weight(weight, 1)


def _by_packed(x: Tensor, weight: Any) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")  # type: ignore[no-any-return]


def _fbgemm(weight: Tensor) -> Any:
    return torch.ops.quantized.linear_prepack_fp16(weight.float(), None)


def _by_fbgemm(x: Tensor, weight: Any) -> Tensor:
    return torch.ops.quantized.linear_dynamic_fp16(x.float(), weight).to(x.dtype)  # type: ignore[no-any-return]


def _int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    scales = weight.float().abs().amax(1) / 127
    return (weight.float() / scales[:, None]).round().to(torch.int8), scales.to(weight.dtype)


def _padded(x: Tensor, weight: Tensor) -> Tensor:
    return F.linear(F.pad(x, (0, 0, 0, max(0, 16 - len(x)))), weight)[: len(x)]


def _row(x: Tensor, weight: Tensor) -> Tensor:
    if len(x) > 1:
        raise RuntimeError("for one row only")
    return torch.mv(weight, x[0])[None]


KERNELS: dict[str, tuple[Prepare, Multiply]] = {
    "linear": (lambda weight: weight, F.linear),
    "mv": (lambda weight: weight, _row),
    "rows padded to 16": (lambda weight: weight, _padded),
    "cast": (lambda weight: weight, lambda x, weight: cast_linear(x, weight, None, torch.float32).to(x.dtype)),
    "float32 weight": (lambda weight: weight.float(), lambda x, weight: F.linear(x.float(), weight).to(x.dtype)),
    "oneDNN prepacked": (_packed, _by_packed),
    "FBGEMM float16 packed": (_fbgemm, _by_fbgemm),
    "int8 weight only": (_int8, lambda x, weight: torch._weight_int8pack_mm(x, *weight)),
    "blocks": (Blocks.of, product),
}


def measure() -> list[dict[str, Any]]:
    """Time every kernel on every shape and number of rows, in bfloat16."""
    found = []
    for shape in SHAPES:
        torch.manual_seed(0)
        count = max(2, int(POOL / (2 * shape[0] * shape[1])))
        plain = [torch.randn(shape).mul_(0.02).to(torch.bfloat16) for _ in range(count)]
        for name, (prepare, multiply) in KERNELS.items():
            found += _of_kernel(name, prepare, multiply, plain)
    return found


def _of_kernel(name: str, prepare: Prepare, multiply: Multiply, plain: list[Tensor]) -> list[dict[str, Any]]:
    shape = tuple(plain[0].shape)
    few = plain[: 4 if name.startswith("FBGEMM") and shape[0] > 10_000 else 24]  # packing 10 of them takes a minute
    rows_found: list[dict[str, Any]] = []
    try:
        seconds = by_wall(lambda number: prepare(few[number]), 0, 1)
        weights = [prepare(one) for one in (few if name.startswith("FBGEMM") else plain)]
    except (RuntimeError, AttributeError) as exc:
        return [{"kernel": name, "shape": shape, "missing": str(exc).partition("\n")[0][:200]}]
    for rows in ROWS:
        x = torch.randn(rows, shape[1]).to(torch.bfloat16)
        exact = x.double() @ plain[0].double().T
        try:
            error = (multiply(x, weights[0]).double() - exact).abs().max() / exact.abs().max()
        except RuntimeError:
            break
        call = _in_turn(multiply, x, weights)
        known = by_wall(call, 0, 1)
        if known > LONGEST:
            break
        took = seconds_per_call(call, by_wall, 0.3, known)
        rows_found.append(
            {"kernel": name, "shape": shape, "rows": rows, "seconds": took, "gb_per_s": plain[0].nbytes / took / 1e9,
             "gflop_per_s": 2 * rows * plain[0].numel() / took / 1e9, "error": error.item(),
             "prepare_seconds": seconds}
        )  # fmt: skip
    return rows_found


def _in_turn(multiply: Multiply, x: Tensor, weights: list[Any]) -> Callable[[int], Tensor]:
    return lambda number: multiply(x, weights[number % len(weights)])


@click.command()
@click.option("--cpu", "cpus", multiple=True, type=click.Choice(list(CPUS)), default=list(CPUS), show_default=True)
def main(*, cpus: tuple[str, ...]) -> None:
    """Time all of it, and write the table."""
    figures = {cpu: in_child(__file__, cpu) for cpu in cpus}
    for cpu, found in figures.items():
        for row in found["kernels"]:
            if row.get("rows") in (1, 16, 512):
                click.echo(
                    f"{cpu:12} {row['shape']!s:14} {row['rows']:4} {row['kernel']:22} {row['seconds'] * 1e3:9.3f} ms "
                    f"{row['gb_per_s']:6.1f} GB/s {row['gflop_per_s']:6.0f} GFLOP/s, error {row['error']:.1e}", err=True,
                )  # fmt: skip
    click.echo(write_results("routes", figures))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        with torch.inference_mode():
            sys.stdout.write(json.dumps({"limits": limits(), "kernels": measure()}) + "\n")
    else:
        main()
