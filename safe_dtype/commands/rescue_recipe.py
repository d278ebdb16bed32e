"""A rescue as a recipe for others who have the same weights."""

from __future__ import annotations

import platform

from ..errors import CheckpointError
from ..facts import MOST_BITS_FOR_ROOM
from ..facts.recipe import Recipe, recipe_keys
from ..loading import Request, checkpoint_for
from ..store.installed import installed_version
from .rescue import Rescue

_PACKAGES = ("safe_dtype", "torch", "transformers")
_LONGEST = 120  # characters of a name


def recipe_of(rescue: Rescue, *, revision: str | None) -> Recipe:
    """Return the recipe of a rescue; it names digests of the weights, a device and versions, and nothing else.

    Raises:
        CheckpointError: If float16 is rejected, nothing had to be moved, or the files of the weights are not known.
    """
    half = rescue.half
    if rescue.beyond is not None or half.drift is None:
        advice = "load it in bfloat16 or float32; where its drift is what is too large, --max-drift allows more"
        raise CheckpointError(
            rescue.model, f"there is no recipe: {rescue.beyond or 'nobody measured its drift'}", advice
        )
    if not rescue.mends:
        why = "there is no recipe: float16 works as it is, so there is nothing to share"
        raise CheckpointError(rescue.model, why, "load it with dtype='float16', for which nobody needs one")
    if (most := max((bits for _, bits in half.rescale.shifts), default=0) if half.rescale else 0) > MOST_BITS_FOR_ROOM:
        why = f"it moves by {most} bits, and {MOST_BITS_FOR_ROOM} are the most that are taken from others"
        raise CheckpointError(rescue.model, f"there is no recipe: {why}", "let everybody measure these weights")
    keys = recipe_keys(checkpoint_for(Request(rescue.model, {"revision": revision})).identity)
    if not keys:
        advice = "share it for a folder or a repository that holds its weights"
        raise CheckpointError(rescue.model, "there is no recipe: the files of its weights are not known", advice)
    measured_on = {"device": rescue.device[:_LONGEST], "python": platform.python_version()}
    measured_on |= {name: known for name in _PACKAGES if (known := installed_version(name)) is not None}
    return Recipe(keys, half.rescale, half.islands, half.drift, rescue.max_drift, half.reference.name, measured_on)
