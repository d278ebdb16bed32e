"""Facts for tests, made from a few words."""

from __future__ import annotations

from safe_dtype.facts import (
    BFLOAT16,
    COMPUTE,
    BlockPeak,
    CacheShape,
    CheckpointFacts,
    DeviceFacts,
    Drift,
    Dtype,
    Gauge,
    HalfRange,
    LinearFacts,
    MemoryFacts,
    Move,
    Part,
    Rescale,
    TensorFacts,
    Verdict,
    VerdictKind,
)

GB = 10**9


def verdict(dtype: Dtype, kind: VerdictKind, gb_per_s: float, gflops: float, *, op: str = "matmul") -> Verdict:
    """Return a measured verdict with its rates."""
    runs = kind in (VerdictKind.NATIVE, VerdictKind.SLOW)
    return Verdict(
        dtype, op, kind, f"{kind} here", gb_per_s * 1e9 if runs else None, gflops * 1e9 if runs else None, 1e-3
    )


def device(
    name: str = "device",
    *,
    free_bytes: int = 80 * GB,
    extra: tuple[Verdict, ...] = (),
    prior_order: tuple[Dtype, ...] = (),
    **cells: tuple[VerdictKind, float, float],
) -> DeviceFacts:
    """Return a measured device from `dtype=(kind, decode GB/s, prefill GFLOP/s)`."""
    verdicts = tuple(verdict(dtype, *cells[dtype.name]) for dtype in COMPUTE if dtype.name in cells)
    return DeviceFacts(
        "cuda:0", name, MemoryFacts(free_bytes, free_bytes, "device"), verdicts + extra, prior_order=prior_order
    )


# Decode GB/s and prefill GFLOP/s of the order that these devices reach; the plans depend on the ratios alone.
AMPERE = device(
    "A100",
    float32=(VerdictKind.NATIVE, 1400, 15e3),
    bfloat16=(VerdictKind.NATIVE, 1400, 220e3),
    float16=(VerdictKind.NATIVE, 1400, 220e3),
)
TURING = device(
    "T4",
    free_bytes=15 * GB,
    float32=(VerdictKind.NATIVE, 250, 4e3),
    bfloat16=(VerdictKind.SLOW, 60, 2e3),
    float16=(VerdictKind.NATIVE, 250, 25e3),
)
VOLTA = device(
    "V100",
    free_bytes=31 * GB,
    float32=(VerdictKind.NATIVE, 750, 13e3),
    bfloat16=(VerdictKind.SLOW, 200, 8e3),
    float16=(VerdictKind.NATIVE, 750, 90e3),
)
GTX_1660 = device(
    "GTX 1660",
    free_bytes=6 * GB,
    float32=(VerdictKind.NATIVE, 170, 4.5e3),
    bfloat16=(VerdictKind.SLOW, 50, 1e3),
    float16=(VerdictKind.WRONG, 0, 0),
)
P40 = device(
    "P40",
    free_bytes=24 * GB,
    float32=(VerdictKind.NATIVE, 300, 11e3),
    bfloat16=(VerdictKind.SLOW, 90, 1e3),
    float16=(VerdictKind.SLOW, 150, 180),
)
M1 = device(
    "M1",
    free_bytes=12 * GB,
    float32=(VerdictKind.NATIVE, 60, 2e3),
    bfloat16=(VerdictKind.SLOW, 40, 1.2e3),
    float16=(VerdictKind.NATIVE, 60, 2.4e3),
)
M3 = device(
    "M3",
    free_bytes=24 * GB,
    float32=(VerdictKind.NATIVE, 90, 3e3),
    bfloat16=(VerdictKind.NATIVE, 90, 3.6e3),
    float16=(VerdictKind.NATIVE, 90, 3.6e3),
)
MI210 = device(
    "MI210",
    free_bytes=64 * GB,
    float32=(VerdictKind.NATIVE, 1300, 20e3),
    bfloat16=(VerdictKind.NATIVE, 1300, 140e3),
    float16=(VerdictKind.NATIVE, 1300, 140e3),
)
RDNA2 = device(
    "RX 6800",
    free_bytes=16 * GB,
    float32=(VerdictKind.NATIVE, 450, 14e3),
    bfloat16=(VerdictKind.CRASHES, 0, 0),
    float16=(VerdictKind.NATIVE, 450, 25e3),
)
ARC = device(
    "Arc B580",
    free_bytes=12 * GB,
    float32=(VerdictKind.NATIVE, 400, 12e3),
    bfloat16=(VerdictKind.WRONG, 0, 0),
    float16=(VerdictKind.WRONG, 0, 0),
)
AVX2_CPU = device(
    "AVX2 CPU",
    free_bytes=20 * GB,
    float32=(VerdictKind.NATIVE, 14, 100),
    bfloat16=(VerdictKind.SLOW, 11, 16),
    float16=(VerdictKind.SLOW, 11, 14),
)
AMX_CPU = device(
    "AMX CPU",
    free_bytes=20 * GB,
    float32=(VerdictKind.NATIVE, 28, 150),
    bfloat16=(VerdictKind.NATIVE, 26, 1500),
    float16=(VerdictKind.NATIVE, 20, 1400),
)


def checkpoint(
    saved: Dtype = BFLOAT16,
    *,
    billions: float = 0.6,
    quantization: str | None = None,
    half: HalfRange | None = None,
    has_conv2d: bool = False,
) -> CheckpointFacts:
    """Return a decoder of Qwen3's proportions with `billions` of parameters, one row of matrices 1024 wide."""
    count = round(billions * 1e9 / (1024 * 3072))
    return CheckpointFacts(
        source=f"{billions}B-{saved}",
        files=("model.safetensors",),
        file_format="safetensors",
        tensors=tuple(
            TensorFacts(f"layers.{i}.weight", saved.name, (3072, 1024), "model.safetensors") for i in range(count)
        ),
        saved=saved,
        config_dtype=saved.name,
        architecture="Qwen3ForCausalLM",
        model_type="qwen3",
        linears=(LinearFacts(3072, 1024, count),),
        cache=CacheShape(layers=28, kv_heads=8, head_dim=128, attention_heads=16),
        vocab_size=151_936,
        hidden_size=1024,
        quantization=quantization,
        half=half,
        has_conv2d=has_conv2d,
    )


def drift(kl: float) -> Drift:
    """Return a drift of language models with this mean KL, in nats."""
    return Drift("tokens", 512, kl, 4 * kl, 0.99, 0.1, 4e-3)


RESIDUAL = Gauge("residual", (Move(Part.INPUT, "model.layers.0", -1), Move(Part.NUMBER, "model.norm.eps", -2)))


SMALL_DRIFT = drift(1e-5)


def rescued(*, drift: Drift | None = SMALL_DRIFT, problem: str = "") -> HalfRange:
    """Return the range of a model whose residual stream overflows float16, with a rescale and an island against it."""
    rescale = Rescale(((RESIDUAL, 6),))
    blocks = (BlockPeak("model.layers.0", 4.5e5, 7e3),)
    return HalfRange(4.5e5, 7e3, blocks, rescale, ("model.layers.3.mlp",), problem=problem, drift=drift)
