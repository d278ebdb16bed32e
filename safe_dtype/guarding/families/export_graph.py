"""A graph that cannot be traced, or that another runtime does not take; its dtypes may be the cause."""

from __future__ import annotations

from ..failure import FailureKind
from .family import Family, any_of

_EXCEPTION_NAMES = frozenset({
    "Unsupported", "UserError", "GuardOnDataDependentSymNode", "ConstraintViolationError", "InvalidGraph",
    "UnsupportedOperatorError", "TorchExportError",
})  # fmt: skip
FAMILY = Family(
    FailureKind.EXPORT_GRAPH,
    any_of(
        r"INVALID_GRAPH|bound to different types|Type '?tensor\((?:b?float16|float8\w*)\)",
        r"Tracer cannot infer|traced functions|dynamic control flow|data[- ]dependent|Could not guard on",
        r"torch\.export\.export|torch\._dynamo\.exc|Constraints? violated|Graph break|skip_files|fullgraph=True",
        r"op returned non-Tensor|dynamo-exported|Unsupported operator aten",
        r"Exporting the operator|Unsupported ONNX|Failed to export|(?:onnx|opset)\b.{0,80}(?:not supported|unsupported)",
    ),
    exception_names=_EXCEPTION_NAMES,
)
