"""A variant of a checkpoint that somebody published in the dtype of the plan: found on the Hub, and said or loaded."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from ..errors import SafeDtypeError, UnknownDtypeError
from ..facts import BFLOAT16, FLOAT16, INT8, Drift, Dtype, dtype_named, exceeds
from ..planning import Plan
from .plan_request import is_one_of_many
from .request import Request

logger = logging.getLogger(__name__)

_SECONDS = 3.0  # to wait for each of the two answers
_EVIDENCE, _SCHEMA = "safe_dtype.json", "safe_dtype.variant/1"
_SUFFIXES = {FLOAT16: "fp16", BFLOAT16: "bf16", INT8: "int8"}

# What an answer of any shape can lead to on the way through JSON, YAML and the client.
_NO_ANSWER = (OSError, LookupError, ArithmeticError, AttributeError, RecursionError, TypeError, ValueError)

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
    revision: str  # the commit that said so
    dtype: Dtype
    base_revision: str | None  # the commit of the base that it was made of, where known
    drift: Drift  # from the base in float32, as safe_dtype loads it

    def __str__(self) -> str:
        figures = {
            "pixels": f"mean IoU {self.drift.miou}",
            "values": f"relative RMS difference {self.drift.rel_rms:.2g}",
        }
        far = figures.get(self.drift.kind, f"{self.drift.kl_mean:.2g} nats of mean KL")
        made_of = f", made of commit {self.base_revision[:7]}" if self.base_revision else ""
        return f"{self.repo} ({self.dtype}{made_of}; measured drift from float32: {far})"


def with_variant(request: Request, plan: Plan, replan: Callable[[Request], Plan]) -> tuple[Request, Plan]:
    """Look for a published variant of what is loaded, in the dtype of the plan; return the request and plan to load.

    Nothing is asked unless the plan changes the dtype of a checkpoint on the Hub, and then two requests at the most.
    By the policy, what is found is only said (the default), or its plan made with `replan` and returned with its
    request. Whatever goes wrong on the way, the checkpoint itself is loaded as planned.
    """
    variant = _published_variant(request, plan)
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


def _published_variant(request: Request, plan: Plan) -> Variant | None:
    """Return the variant that counts, or None. Raises nothing."""
    from huggingface_hub.errors import HfHubHTTPError

    if not _worth_asking(request, plan):
        return None
    # The client hands on errors of its HTTP library, which is not the same in every version; its own come of them.
    http_error: Any = next(one for one in HfHubHTTPError.__mro__ if one.__name__ == "HTTPError")
    try:
        found = _find(request, plan)
    except (http_error, *_NO_ANSWER) as exc:
        # The text of an error may hold an address with a token.
        logger.debug("%s: no published variant (%s)", plan.source, type(exc).__name__)
        return None
    if found is not None and (why := exceeds(found.drift, plan.policy.max_drift)):
        logger.debug("%s: %s does not count: %s", plan.source, found.repo, why)
        return None
    return found


def _worth_asking(request: Request, plan: Plan) -> bool:
    from huggingface_hub import constants

    return (
        plan.policy.variants != "ignore"
        and plan.storage != plan.saved
        and plan.storage in _SUFFIXES
        and plan.quantization is None
        and isinstance(request.source, str)
        and re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", request.source) is not None
        and not Path(request.source).exists()
        and not any(request.arguments.get(name) for name in _OF_THIS_REPOSITORY)
        and not constants.is_offline_mode()
        and not is_one_of_many(request)  # each would ask for itself, and they might not agree
    )


def _find(request: Request, plan: Plan) -> Variant | None:
    from huggingface_hub import HfApi, get_session, hf_hub_url, hf_raise_for_status
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # public, and exported lazily

    base, token = str(request.source), request.arguments.get("token")
    revision = request.arguments.get("revision")
    described = HfApi().model_info(
        base, revision=revision, token=token, timeout=_SECONDS, expand=["cardData", "sha"]
    )  # fmt: skip
    repo = _listed(described.card_data, plan.storage) or f"{base}-{_SUFFIXES[plan.storage]}"
    answer: Any = get_session().get(
        hf_hub_url(repo, _EVIDENCE), headers=build_hf_headers(token=token), timeout=_SECONDS
    )
    hf_raise_for_status(answer)
    commits = (one.headers.get("X-Repo-Commit") for one in (*answer.history, answer))
    variant = _read(answer.json(), base, repo, next(filter(None, commits), ""))
    if variant is None or variant.dtype != plan.storage:
        return None
    # Who names a revision wants those weights and no others; who does not takes what there is of the model.
    pinned = revision not in (None, "main")
    return None if pinned and variant.base_revision != described.sha else variant


def _listed(card: Any, dtype: Dtype) -> str | None:
    """Return the repository that the base's card names: `safe_dtype: {variants: {float16: org/model-fp16}}`."""
    ours = card.get("safe_dtype") if card is not None else None
    variants = ours.get("variants") if isinstance(ours, Mapping) else None
    found = variants.get(dtype.name) if isinstance(variants, Mapping) else None
    return found if isinstance(found, str) else None


def _read(found: Any, base: str, repo: str, revision: str) -> Variant | None:
    """Read a variant's `safe_dtype.json`; None where it is no variant of `base`, or one that needs more than us."""
    if found["schema"] != _SCHEMA or found["base"]["repo"] != base or found["needs"] not in (None, "safe_dtype"):
        return None
    if not re.fullmatch("[0-9a-f]{40}", revision):
        return None
    try:
        dtype = dtype_named(found["dtype"])
    except UnknownDtypeError:
        return None
    given = found["drift"]["safe_dtype"]
    # JSON has no infinity: it is the text "inf".
    numbers = {
        one.name: _number(given.get(one.name)) for one in fields(Drift) if one.name not in ("kind", "positions")
    }
    drift = Drift(str(given["kind"]), int(given["positions"]), **numbers)
    made_of = found["base"].get("revision")
    return Variant(repo, revision, dtype, None if made_of is None else str(made_of), drift)


def _number(value: Any) -> Any:
    return None if value is None else float(value)
