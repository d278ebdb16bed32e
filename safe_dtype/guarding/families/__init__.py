"""The texts of torch and of the libraries around it: one file a family, in the order in which they are looked for.

A new family is a file with its `FAMILY`, named in the tuple below.
"""

from . import dtype_mismatch, export_graph, kernel_arch, nonfinite, op_unsupported, policy_refusal

# The first family with a matching text decides. NaN comes first, for texts about it name operations and dtypes too; a
# missing kernel comes last, for most other texts say somewhere that something is not supported.
FAMILIES = (
    nonfinite.FAMILY,
    export_graph.FAMILY,
    kernel_arch.FAMILY,
    policy_refusal.FAMILY,
    dtype_mismatch.FAMILY,
    op_unsupported.FAMILY,
)

__all__ = ["FAMILIES"]
