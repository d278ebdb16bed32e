"""A variant of a checkpoint that somebody published in the dtype of the plan: found on the Hub, and named in the log or loaded."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import SafeDtypeError, UnknownDtypeError
from ..facts import BFLOAT16, FLOAT16, INT8, Drift, Dtype, drift_from_dict, dtype_named, exceeds, worst_output
from ..facts.variant import NEEDS, VARIANT_FILE, VARIANT_SCHEMA
from ..hub.errors import HubError
from ..hub.lookup import described, is_offline, json_file
from ..planning import Plan
from .plan_request import is_one_of_many
from .request import Request

logger = logging.getLogger(__name__)

_SUFFIXES = {FLOAT16: "fp16", BFLOAT16: "bf16", INT8: "int8"}

# No answer; and what an answer of any shape can lead to on the way through JSON and YAML.
_NO_ANSWER = (
    HubError, OSError, LookupError, ArithmeticError, AttributeError, RecursionError, TypeError, ValueError,
)  # fmt: skip

# With one of these a checkpoint is not the repository as such, and another repository does not stand for it. One whose
# code the caller trusts least of all: the code would be another's.
_OF_THIS_REPOSITORY = (
    "config", "state_dict", "gguf_file", "subfolder", "variant", "quantization_config", "local_files_only",
    "trust_remote_code", "code_revision", "adapter_kwargs",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Variant:
    """A repository that says of itself which checkpoint it holds, in which dtype, and how far that drifts."""

    repo: str
    revision: str  # the commit whose files say so
    dtype: Dtype
    base_revision: str | None  # the commit of the base that it was made of, where known
    drift: Drift  # from the base in float32, as safe_dtype loads it
    needs: str | None = None  # what must load it, of NEEDS

    def __str__(self) -> str:
        output, drift = worst_output(self.drift)
        figures = {"pixels": f"mean IoU {drift.miou}", "values": f"relative RMS difference {drift.rel_rms:.2g}"}
        far = figures.get(drift.kind, f"{drift.kl_mean:.2g} nats of mean KL") + (f" in {output}" if output else "")
        made_of = f", made of commit {self.base_revision[:7]}" if self.base_revision else ""
        return f"{self.repo} ({self.dtype}{made_of}; measured drift from float32: {far})"


def with_variant(request: Request, plan: Plan, replan: Callable[[Request], Plan]) -> tuple[Request, Plan]:
    """Look for a published variant of the checkpoint in the dtype of the plan; return the request and plan to load.

    Nothing is asked unless the plan changes the dtype of a checkpoint on the Hub, and then two requests at the most.
    By the policy, the variant is only named in the log (the default), or its plan made with `replan` and returned with its
    request. Whatever goes wrong on the way, the checkpoint itself is loaded as planned.
    """
    variant = published_variant(request, plan)
    if variant is None:
        return request, plan
    if plan.policy.variants == "say":
        policy = replace(plan.policy, variants="use")
        logger.info("%s: published already as %s; to load that, policy=%r", plan.source, variant, str(policy))
        return request, plan
    other = Request(variant.repo, {**request.arguments, "revision": variant.revision})
    try:
        other_plan = replan(other)
    except SafeDtypeError as exc:
        logger.debug("%s: no plan for %s (%s)", plan.source, variant.repo, type(exc).__name__)
        return request, plan
    if other_plan.storage != variant.dtype:
        logger.debug("%s: %s would be loaded in %s", plan.source, variant.repo, other_plan.storage)
        return request, plan
    logger.warning("%s: loading %s at commit %.7s instead", plan.source, variant, variant.revision)
    return other, other_plan


def published_variant(request: Request, plan: Plan) -> Variant | None:
    """Return the published variant that may stand for the checkpoint, or None. Raises nothing."""
    if not _worth_asking(request, plan):
        return None
    try:
        variant = _find(request, plan)
    except _NO_ANSWER as exc:
        # The text of an error may hold an address with a token.
        logger.debug("%s: no published variant (%s)", plan.source, type(exc.__cause__ or exc).__name__)
        return None
    if variant is not None and (why := exceeds(variant.drift, plan.policy.max_drift)):
        logger.debug("%s: %s does not count: %s", plan.source, variant.repo, why)
        return None
    return variant


def _worth_asking(request: Request, plan: Plan) -> bool:
    return (
        plan.policy.variants != "ignore"
        and plan.storage != plan.saved
        and plan.storage in _SUFFIXES
        and plan.quantization is None
        and isinstance(request.source, str)
        and re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", request.source) is not None
        and not Path(request.source).exists()
        and not any(request.arguments.get(name) for name in _OF_THIS_REPOSITORY)
        and not is_offline()
        and not is_one_of_many(request)  # each would ask for itself, and they might not agree
    )


def _find(request: Request, plan: Plan) -> Variant | None:
    base, token = str(request.source), request.arguments.get("token")
    revision = request.arguments.get("revision")
    base_now = described(base, revision=revision, token=token)
    repo = _listed(base_now.card, plan.storage) or f"{base}-{_SUFFIXES[plan.storage]}"
    evidence = json_file(repo, VARIANT_FILE, token=token)
    variant = _read(evidence.content, base, repo, evidence.commit)
    if variant is None or variant.dtype != plan.storage:
        return None
    # Who names a revision wants those weights and no others; who does not takes what there is of the model.
    pinned = revision not in (None, "main")
    return None if pinned and variant.base_revision != base_now.commit else variant


def _listed(card: Any, dtype: Dtype) -> str | None:
    """Return the repository that the base's card names: `safe_dtype: {variants: {float16: org/model-fp16}}`."""
    ours = card.get("safe_dtype") if card is not None else None
    variants = ours.get("variants") if isinstance(ours, Mapping) else None
    repo = variants.get(dtype.name) if isinstance(variants, Mapping) else None
    return repo if isinstance(repo, str) else None


def _read(evidence: Any, base: str, repo: str, revision: str) -> Variant | None:
    """Read a variant's `safe_dtype.json`; None where it is no variant of `base`, or one that needs more than safe_dtype."""
    if evidence["schema"] != VARIANT_SCHEMA or evidence["base"]["repo"] != base or evidence["needs"] not in NEEDS:
        return None
    if not re.fullmatch("[0-9a-f]{40}", revision):
        return None
    try:
        dtype = dtype_named(evidence["dtype"])
    except UnknownDtypeError:
        return None
    figures = evidence["drift"]["safe_dtype"]
    drift = drift_from_dict(figures)
    made_of = evidence["base"].get("revision")
    return Variant(repo, revision, dtype, None if made_of is None else str(made_of), drift, evidence["needs"])
