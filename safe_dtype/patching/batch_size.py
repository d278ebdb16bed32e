"""Whether a smaller batch can help: accelerate takes cuDNN's "not supported" for a lack of memory, whatever it means.

`find_executable_batch_size`, and `Trainer(auto_find_batch_size=True)` through it, then make the batch smaller until
nothing is left of it, and end with "No executable batch size found" where a dtype has no kernel on this device.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from ..devices import facts_of
from ..errors import DeviceError
from ..facts import VerdictKind
from ..guarding.classify import classify
from ..guarding.diagnosis.computed_in import Place, places_of

logger = logging.getLogger(__name__)


def convolves(place: Place) -> bool | None:
    """Return whether a device was measured to have convolutions in a dtype, now if not before; None where nobody knows."""
    dtype, device = place
    try:
        verdict = facts_of(device, dtypes=(dtype,), ops=("conv2d",)).verdict(dtype, "conv2d")
    except DeviceError:  # also one that cannot be measured while it fails
        return None
    return None if verdict.kind is VerdictKind.UNKNOWN else verdict.runs


def is_of_a_dtype(
    exception: Exception, batch_size: int | None, convolves: Callable[[Place], bool | None] = convolves
) -> bool:
    """Return whether another dtype cures `exception`, and no smaller batch.

    By its text it may be either, for cuDNN also refuses what is too large. It is the dtype's where not even one row
    works, or where a convolution was computed in a dtype in which the device has none.

    Args:
        exception: What accelerate takes for a lack of memory.
        batch_size: The batch that it was raised with; None: nobody knows.
        convolves: Returns whether a device has convolutions in a dtype; None where nobody knows.
    """
    if classify(exception) is None:
        return False
    without = [
        f"{device} has no convolution in {dtype}"
        for dtype, device in places_of(exception)
        if convolves((dtype, device)) is False
    ]
    if not without and (batch_size is None or batch_size > 1):
        return False
    reason = without[0] if without else "not even one row works"
    logger.warning("no smaller batch helps, %s: %s", reason, exception)
    return True
