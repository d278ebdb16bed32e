"""A rescue that was saved beside the weights: used without a new measurement, and proven on the model like any other."""

from __future__ import annotations

import json
import logging
from dataclasses import replace

from ...checkpoints.config import read_config
from ...checkpoints.model_files import files_of
from ...errors import CheckpointError
from ...facts import FLOAT16, CheckpointFacts, HalfRange, Where
from ...planning import Policy
from ...rescaling.folding.rescale_file import FILE, Stored, is_noted
from ..request import Request

logger = logging.getLogger(__name__)

# What a file of any shape can lead to on the way through JSON.
_UNREADABLE = (OSError, LookupError, ArithmeticError, AttributeError, RecursionError, TypeError, ValueError)


def with_stored(
    checkpoint: CheckpointFacts, request: Request, policy: Policy | None, *, rounds: bool
) -> CheckpointFacts:
    """Return the facts with the rescue that was saved beside the weights; unchanged where there is none to use.

    It is used where its drift was within what the policy allows. What cannot be read is left aside with a warning. The
    Hub is asked for the file only where config.json says that there is one.

    Args:
        checkpoint: The facts of the request's checkpoint.
        request: The call.
        policy: The policy of the call.
        rounds: Whether a checkpoint that was saved in another dtype may be brought into float16.
    """
    policy = policy or Policy()
    if not _may_be_rescued(checkpoint, request) or policy.mode == "strict":
        return checkpoint
    if checkpoint.saved != FLOAT16 and not rounds:
        return checkpoint
    try:
        stored = _read(_as_read(request.where, checkpoint))
    except _UNREADABLE as exc:  # the errors of checkpoints are OSErrors
        problem = exc.problem if isinstance(exc, CheckpointError) else f"{type(exc).__name__}: {exc}"
        text = f"{checkpoint.source}: {FILE} cannot be read and is not used ({problem}): float16 may overflow"
        return replace(checkpoint, warnings=(*checkpoint.warnings, text))
    if stored is None or not (stored.rescale or stored.islands):
        return checkpoint
    if stored.max_drift is None or stored.max_drift > policy.max_drift:
        logger.info("%s: %s allows more drift than the policy, and is left aside", checkpoint.source, FILE)
        return checkpoint
    unseen = stored.rescale.unproven if stored.rescale else ()
    half = HalfRange(0.0, 0.0, rescale=stored.rescale, islands=stored.islands, unseen=unseen, stored=True)
    return replace(checkpoint, half=half)


def _may_be_rescued(checkpoint: CheckpointFacts, request: Request) -> bool:
    arguments = request.arguments
    return (
        request.source is not None
        and arguments.get("state_dict") is None
        and arguments.get("gguf_file") is None
        and not checkpoint.quantization
        and checkpoint.adapter is None
    )


def _as_read(where: Where, checkpoint: CheckpointFacts) -> Where:
    """Return where the checkpoint was read from: for a repository its commit, so that the Hub is not asked for it again."""
    commit = checkpoint.identity.commit if checkpoint.identity else None
    return replace(where, revision=commit) if commit else where


def _read(where: Where) -> Stored | None:
    """Return what lies beside the weights; None where config.json names no such file.

    Raises:
        AttributeError, KeyError, OSError, TypeError, ValueError, RecursionError: If that is not what it should be.
    """
    try:
        files = files_of(where)
        noted = is_noted(read_config(where, files))
    except CheckpointError:
        return None  # a single file, with no config.json of its own; other faults were raised when the checkpoint was read
    if not noted:
        return None
    if not files.has(FILE):
        logger.info("%s: config.json names %s, which is not there", where.name, FILE)
        return None
    return Stored.from_dict(json.loads(files.local(FILE).read_text(encoding="utf-8")))
