"""The packages that a quantized model needs: where one is missing, the error names it, whatever transformers has said."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, distribution

from ..errors import QuantizerPackageError
from ..planning import Plan
from ..planning.quantizers import packages_of


@contextmanager
def naming_missing_packages(plan: Plan) -> Iterator[None]:
    """Turn an ImportError of transformers into one that says what to install for the plan's quantizer.

    A package that is there and of no use (too old, say) is left to transformers' own words.
    """
    try:
        yield
    except ImportError as exc:
        missing = tuple(name for name in packages_of(plan.quantization or "") if not _is_installed(name))
        if not missing:
            raise
        raise QuantizerPackageError(plan.source, str(plan.quantization), missing) from exc


def _is_installed(package: str) -> bool:
    try:
        distribution(package.partition("[")[0])
    except PackageNotFoundError:
        return False
    return True
