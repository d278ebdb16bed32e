"""Load with a plan: the caller's own call of `from_pretrained`, with one concrete dtype in it."""

from __future__ import annotations

import gc
import logging
import os
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..checkpoints.known_config import convert_as_class
from ..checkpoints.weight_files import WeightFiles, mark_weight_files
from ..errors import RescaleError
from ..errors.warn import warn
from ..facts import CODES, FLOAT16, FLOAT32
from ..guarding import guard
from ..models.load_lock import one_at_a_time
from ..models.origin import Origin, keep_origin
from ..models.planned_layout import compile_as_planned, lay_out_as_planned
from ..models.recast import recast
from ..planning import Candidate, Plan, beyond_texts
from ..rescaling.folding.rescale_file import FILE
from ..rescaling.folding.rounded_weights import RoundedWeights
from ..rescaling.folding.save import save_in_saved_dtype
from ..rescaling.to_float16 import before_half, computing_in_full, halve
from ..store.temporary import TemporaryPlace
from ..verifying.in_one_dtype import in_one_dtype
from .least_room import require_least_room
from .plan_request import plan_request
from .planned_once import already_planned
from .quantizer_packages import naming_missing_packages
from .random_weights import looking_for_random_weights
from .request import Request
from .trials.recipe_proof import proved_at_load
from .wide_weights import bring_back_float32, keep_out_of_range

logger = logging.getLogger(__name__)

_NOT_REMEMBERED = ("state_dict", "token", "use_auth_token")  # too big to keep, too secret to pickle


def load(target: Any, request: Request, plan: Plan, *model_args: Any) -> Any:
    """Call `target.from_pretrained` as requested, in the plan's dtype; return what it returns, the model guarded.

    Args:
        target: A model class or Auto class of transformers.
        request: The caller's own call. What the plan fills in is the dtype and, where it needs them,
            `attn_implementation` and `device_map`.
        plan: The plan for this request.
        model_args: Handed on.

    Raises:
        CheckpointError: If the plan's policy is strict, and names do not meet so that weights are random. Else that is a
            warning; with `output_loading_info` neither, for the caller is handed the names.
    """
    require_least_room(plan, request)
    arguments = _arguments(plan, request)
    _convert(target, request, plan)
    with one_at_a_time(), already_planned(), naming_missing_packages(plan), looking_for_random_weights() as names:
        loaded = _with_offload_folder(target, request, arguments, *model_args)
    is_told = isinstance(loaded, tuple)  # by `output_loading_info`, which has the names on both sides
    model = loaded[0] if is_told else loaded
    at_random = None if is_told else names.error_of(model, plan.source)
    if at_random is not None and plan.policy.mode == "strict":
        raise at_random
    if plan.dequantized:
        in_one_dtype(model, arguments["dtype"])
    origin = _origin(model, plan, request)
    keep_origin(model, origin)
    if halves(plan):
        halved = _halved(model, plan, request)
        if halved is None:
            loaded = model = None  # the next one needs the room
            gc.collect()
            return load(target, request, _plan_without_rescue(plan, request), *model_args)
        plan = halved
    if at_random is not None:
        warn(str(at_random))
    _join_parts(model, plan)
    _verify(model, plan)
    if plan.policy.mode != "strict" and keep_out_of_range(model, plan):
        plan = in_float32(plan, "float16 does not reach what its files hold")
    keep_origin(model, replace(origin, plan=plan))
    candidate = Candidate(plan.storage, plan.compute, plan.codes)
    if lay_out_as_planned(model, candidate, plan.routes) == 0:
        if plan.codes in CODES:
            warn(
                f"{plan.source} was to be loaded in {plan.codes}, and no linear weight of it lies in its files as saved"
            )
        logger.info("%s: no weight of it can be laid out, so they stay as they are", plan.source)
        if plan.codes is not None:
            plan = without_codes(plan)
            candidate = Candidate(plan.storage, plan.compute)
            keep_origin(model, replace(origin, plan=plan))
    compile_as_planned(model, candidate, plan.routes)
    save_in_saved_dtype(model, plan)
    guard(model)
    return loaded


def _convert(target: Any, request: Request, plan: Plan) -> None:
    """Have the weights of a model type that transformers does not know converted as those of the class they are loaded by."""
    checkpoint = plan.made_for.checkpoint if plan.made_for else None
    names = ("cache_dir", "local_files_only", "revision", "subfolder", "token")
    where = {name: request.arguments[name] for name in names if request.arguments.get(name) is not None}
    if checkpoint and checkpoint.commit:
        where["_commit_hash"] = checkpoint.commit  # read already, so that the Hub is not asked again
    if not request.arguments.get("gguf_file"):
        convert_as_class(target, request.source, request.arguments.get("config"), **where)


def _origin(model: Any, plan: Plan, request: Request) -> Origin:
    source = None if request.source is None else os.fspath(request.source)
    # A relative path is another one after `chdir`, and a link may be moved.
    place = str(Path(source).resolve()) if source is not None and Path(source).exists() else source
    arguments = {name: value for name, value in request.arguments.items() if name not in _NOT_REMEMBERED}
    made_for = plan.made_for
    if made_for and made_for.source == source and made_for.checkpoint and made_for.checkpoint.commit:
        arguments["revision"] = made_for.checkpoint.commit  # main may move before the weights are read again
    return Origin(plan, type(model), place, arguments, _files(model, request, arguments.get("revision")))


def _files(model: Any, request: Request, revision: str | None) -> WeightFiles:
    """Return the files that the weights came from, as they are now."""
    if request.source is None or request.arguments.get("state_dict") is not None:
        return WeightFiles("state_dict", problem="its weights were passed as `state_dict`")
    explicit = getattr(getattr(model, "config", None), "transformers_weights", None)
    return mark_weight_files(replace(request.where, revision=revision), explicit)


def _arguments(plan: Plan, request: Request) -> dict[str, Any]:
    """Return the caller's arguments, with those of the plan where the caller set none."""
    arguments = dict(request.arguments)
    if not plan.quantization:
        arguments.pop("torch_dtype", None)
        arguments["dtype"] = getattr(torch, (before_half(plan.saved) if halves(plan) else plan.storage).name)
    if plan.attention:
        arguments.setdefault("attn_implementation", plan.attention)
    if plan.device_map and arguments.get("device_map") is None:
        arguments["device_map"] = plan.device_map
    return arguments


def _with_offload_folder(target: Any, request: Request, arguments: dict[str, Any], *model_args: Any) -> Any:
    """Call `target.from_pretrained`, with a folder that is there for as long as the model where the plan spreads it.

    Weights whose layout changes on loading (experts, say) are written again before they are offloaded.
    """
    is_planned = arguments.get("device_map") is not request.arguments.get("device_map")
    if not is_planned or "offload_folder" in arguments:
        return target.from_pretrained(request.source, *model_args, **arguments)
    place = TemporaryPlace("safe_dtype-offload-")
    try:
        loaded = target.from_pretrained(request.source, *model_args, **arguments, offload_folder=str(place.path))
    except BaseException:
        place.remove()
        raise
    weakref.finalize(loaded[0] if isinstance(loaded, tuple) else loaded, place.remove)
    return loaded


def halves(plan: Plan) -> bool:
    """Whether the model is loaded as it was saved, and then rescaled or given islands in float16."""
    return plan.storage == FLOAT16 and bool(plan.rescale or plan.islands)


def _halved(model: nn.Module, plan: Plan, request: Request) -> Plan | None:
    """Bring `model` into float16 as planned; return the plan, or one in float32 where its rescale cannot be proven.

    None: the rescale that was saved beside the weights, or the recipe, cannot be proven: `model` has to be loaded again.
    """
    try:
        with proved_at_load(model, plan, request):
            halve(model, plan.rescale, plan.islands, computing=computing_in_full(plan))
    except RescaleError as exc:
        if plan.recipe:
            text = f"{plan.source}: the recipe of {plan.recipe} does not hold for this model: {exc.problem}. It is not used"
            warn(text)
            return None
        if plan.stored:
            text = f"{plan.source}: {FILE} does not hold for this model: {exc.problem}. It is not used"
            warn(text)
            return None
        text = (
            f"{plan.source} was to be loaded in float16, and cannot be rescaled: {exc.problem}. It is in float32 now"
        )
        warn(f"{text}. Next: dtype='bfloat16', if that takes too much memory")
        with RoundedWeights(model) as weights:  # wherever it stopped
            recast(model, {torch.bfloat16, torch.float16}, torch.float32, original=weights.restored)
        return in_float32(plan, f"it cannot be rescaled for float16: {exc.problem}")
    if plan.recipe and plan.rescale is not None and plan.rescale.unproven:  # said of others when they are planned
        warn(beyond_texts(plan.source, plan.rescale.unproven))
    bring_back_float32(model, plan)
    return plan


def in_float32(plan: Plan, reason: str) -> Plan:
    """Return the plan of a model that was to be in 16 bit and is in float32."""
    full = replace(plan, storage=FLOAT32, compute=FLOAT32, rescale=None, islands=(), routes=None, codes=None)
    return replace(full, ladder=(FLOAT32,), rounded=None, reason=reason)


def without_codes(plan: Plan) -> Plan:
    """Return the plan of a model none of whose linear weights are held in fewer bits, although that was planned.

    Products by codes may be computed in another dtype than the weights'; those of plain weights are not.
    """
    plain = replace(plan, compute=plan.storage, codes=None, routes=None)
    return replace(plain, reason=f"none of its linear weights can be held in {plan.codes}")


def _plan_without_rescue(plan: Plan, request: Request) -> Plan:
    """Return the plan that there would be without the rescale beside the weights or the recipe; warn of what it warns of."""
    if plan.recipe:
        other = replace(
            plan_request(request, replace(plan.policy, recipes="ignore"), drifts="measured"), policy=plan.policy
        )
    else:
        # Nothing is rounded that the first plan did not round; an order for float16 is measured all the same.
        other = plan_request(request, plan.policy, drifts="ignored", stored=False)
    for text in other.warnings:
        if text not in plan.warnings:
            warn(text)
    return other


def _join_parts(model: nn.Module, plan: Plan) -> None:
    """Bring parts that came out in another 16-bit dtype, that of their own config, into that of the rest.

    transformers tells the dtype to a config and to those within it, not to those within these (T5Gemma 2's encoder).
    """
    storage: torch.dtype = getattr(torch, plan.storage.name)
    dtypes = {one.dtype for one in model.parameters()}
    others = dtypes & ({torch.bfloat16, torch.float16} - {storage})
    if plan.quantization or not others or storage not in dtypes:
        return
    with RoundedWeights(model) as weights:
        recast(model, others, storage, original=weights.restored)


def _verify(model: nn.Module, plan: Plan) -> None:
    """Warn where no weight came out in the plan's dtype: a class that sets its own, say."""
    if plan.quantization:
        return
    dtypes = {str(one.dtype).removeprefix("torch.") for one in model.parameters() if one.is_floating_point()}
    if dtypes and plan.storage.name not in dtypes:
        text = f"{plan.source} was to be loaded in {plan.storage} and came out in {', '.join(sorted(dtypes))}: "
        warn(text + f"{type(model).__name__} sets its own dtype")
    logger.debug("%s: parameters in %s", plan.source, sorted(dtypes))
