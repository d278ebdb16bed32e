"""A recipe for the weights of a request, looked up on the Hub by their digest: nothing is measured then, only proved."""

from __future__ import annotations

import logging
import os
from http import HTTPStatus

from ...errors.warn import warn
from ...facts import FLOAT16, CheckpointFacts, HalfRange, dtype_named, exceeds
from ...facts.recipe import MOST_BYTES, Recipe, recipe_keys, recipe_path
from ...hub.errors import HubError
from ...hub.lookup import SmallFile, is_offline, small_file
from ...planning import Policy
from ...store.json_text import parse_unambiguous_json
from ..request import Request

logger = logging.getLogger(__name__)

_MOST_QUOTED = 160  # characters
_NOT_FOR_YOU = (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)
_LOG_IN = "log in with `hf auth login`"
REPOSITORY = "SAFE_DTYPE_RECIPES"  # the variable that names where `recipes=use` looks

# What a file of any shape can lead to on the way through JSON.
_UNREADABLE = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)


def recipe_for(request: Request, checkpoint: CheckpointFacts, policy: Policy) -> HalfRange | None:
    """Return what a recipe says it takes to run the checkpoint in float16; None where there is none to use.

    One request for each digest of the weights, two at most; none offline. What is no recipe is left aside with a warning,
    and so is a repository that is not there, or not for everybody; one whose drift is beyond the policy's limit, or that
    cannot be asked for now, with a line in the log.
    """
    if policy.recipes == "ignore" or checkpoint.saved == FLOAT16:
        return None
    repo = os.environ.get(REPOSITORY, "").strip() if policy.recipes == "use" else policy.recipes
    if not repo:
        warn(f"recipes=use: no repository is named: set {REPOSITORY}=org/recipes, or write recipes=org/recipes")
        return None
    if is_offline() or request.arguments.get("local_files_only"):
        logger.info("%s: offline, so %s is not asked for a recipe", checkpoint.source, repo)
        return None
    for key in recipe_keys(checkpoint.identity):
        try:
            file = small_file(repo, recipe_path(key), most_bytes=MOST_BYTES, token=request.arguments.get("token"))
        except HubError as error:
            if error.missing == "repository" or error.ours or error.status in _NOT_FOR_YOU:  # else unseen for ever
                warn(f"recipes={repo}: it cannot be read ({error.happened}). Next: check its name, or {_LOG_IN}")
            logger.info("%s: no recipe of %s: %s", checkpoint.source, repo, error.happened)
            return None
        if file is not None:
            return _half_of(file, key, repo, checkpoint, policy)
    logger.info("%s: %s has no recipe for these weights", checkpoint.source, repo)
    return None


def _in_short(exc: Exception) -> str:
    """Return one line of an error that may quote the file: no orders to a terminal, and no megabyte."""
    return "".join(one if one.isprintable() else "?" for one in str(exc)[:_MOST_QUOTED])


def _half_of(
    file: SmallFile, key: str, repo: str, checkpoint: CheckpointFacts, policy: Policy
) -> HalfRange | None:  # fmt: skip
    try:
        recipe = Recipe.from_dict(parse_unambiguous_json(file.content), key)
        reference = dtype_named(recipe.reference)
    except _UNREADABLE as exc:
        warn(f"{checkpoint.source}: what {repo} has for it is no recipe, and is not used ({_in_short(exc)})")
        return None
    if reason := exceeds(recipe.drift, policy.max_drift):
        logger.info("%s: the recipe of %s is left aside: %s", checkpoint.source, repo, reason)
        return None
    unseen = recipe.rescale.unproven if recipe.rescale else ()
    named = f"{repo}@{file.commit[:7]}" if file.commit else repo
    return HalfRange(
        0.0, 0.0, rescale=recipe.rescale, islands=recipe.islands, unseen=unseen, drift=recipe.drift, reference=reference,
        recipe=named,
    )  # fmt: skip
