"""The packages that a quantized model needs: where one is missing, the error names it, whatever transformers has said."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import QuantizerPackageError
from ..planning import Plan
from ..planning.quantizers import packages_of
from ..store.installed import installed_version


@contextmanager
def naming_missing_packages(plan: Plan) -> Iterator[None]:
    """Turn an ImportError of transformers into one that says what to install for the plan's quantizer.

    A package that is there and of no use (too old, say) is left to transformers' own words.
    """
    try:
        yield
    except ImportError as exc:
        missing = tuple(
            name for name in packages_of(plan.quantization or "") if installed_version(name.partition("[")[0]) is None
        )
        if not missing:
            raise
        raise QuantizerPackageError(plan.source, str(plan.quantization), missing) from exc
