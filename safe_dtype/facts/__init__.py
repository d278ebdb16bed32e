"""What is known: dtypes, devices, checkpoints, rescales. Nouns only; nothing here measures or decides."""

from .drift_limit import exceeds
from .dtypes import ALL, BFLOAT16, COMPUTE, FLOAT8_E4M3, FLOAT16, FLOAT32, INT8, Dtype, dtype_named
from .location import Where
from .measured import (
    BlockPeak,
    CacheShape,
    CheckpointFacts,
    CheckpointIdentity,
    Claim,
    DeviceFacts,
    Drift,
    HalfRange,
    LinearFacts,
    MeasuredDrift,
    MemoryFacts,
    TensorFacts,
    Timing,
    Verdict,
    VerdictKind,
)
from .rescale import Gauge, Move, Part, Rescale, Rows, gauge_from_dict, gauge_to_dict, summary
from .units import bytes_text, seconds_text

__all__ = [
    "ALL",
    "BFLOAT16",
    "COMPUTE",
    "FLOAT8_E4M3",
    "FLOAT16",
    "FLOAT32",
    "INT8",
    "BlockPeak",
    "CacheShape",
    "CheckpointFacts",
    "CheckpointIdentity",
    "Claim",
    "DeviceFacts",
    "Drift",
    "Dtype",
    "Gauge",
    "HalfRange",
    "LinearFacts",
    "MeasuredDrift",
    "MemoryFacts",
    "Move",
    "Part",
    "Rescale",
    "Rows",
    "TensorFacts",
    "Timing",
    "Verdict",
    "VerdictKind",
    "Where",
    "bytes_text",
    "dtype_named",
    "exceeds",
    "gauge_from_dict",
    "gauge_to_dict",
    "seconds_text",
    "summary",
]
