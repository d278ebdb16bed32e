"""`SafeAutoModel`, and a `SafeAutoModelForX` for every `AutoModelForX` of the installed transformers."""

from __future__ import annotations

import json
import logging
import os
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import transformers
from transformers.models.auto.auto_factory import _get_model_class

from ..checkpoints.known_config import config_of_architecture, known_config
from ..errors.warn import warn
from ..models.origin import plan_of
from ..planning import Plan, Policy
from .load import load
from .meeting import Meeting, meeting_for
from .plan_agreement import check_agreement
from .plan_request import plan_request
from .published_variants import with_variant
from .request import Request

logger = logging.getLogger(__name__)


class SafeAuto:
    """An Auto class whose `from_pretrained` chooses the dtype that is right and fast on this machine."""

    auto_class: ClassVar[Any]  # transformers' Auto class

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str] | None, *model_args: Any,
        policy: Policy | str | None = None, plan: Plan | None = None, **kwargs: Any,
    ) -> Any:  # fmt: skip
        """Load as `from_pretrained` of the Auto class does, in the planned dtype. See `safe_dtype.plan_of`.

        Args:
            pretrained_model_name_or_path: A folder, a GGUF file, a repository on the Hub, or None with `state_dict` and
                `config`.
            model_args: Handed on untouched.
            policy: How to choose: a `Policy`, or its short text such as "auto,prefer=memory".
            plan: A plan made before, for this checkpoint and a device like this one; loading then decides nothing, but
                measures what `plan.pending` says is still to be measured.
            kwargs: Handed on untouched, but for the dtype where it is left to us (absent, None or "auto").

        Returns:
            Transformers' own model, or with `output_loading_info=True` the pair of it and the loading info.

        Raises:
            CheckpointError: If the checkpoint cannot be found or read; with a strict policy, also if weights are left random
                because names do not meet.
            PlanError: If no dtype is accepted here, or `plan` contradicts the other arguments.
        """
        request = Request(pretrained_model_name_or_path, kwargs).in_folder()
        if plan is None:
            with meeting_for(request, policy) as meeting:
                plan = plan_request(request, policy, drifts="measured", meeting=meeting)
            request, plan = with_variant(
                request, plan, lambda other: plan_request(other, policy, drifts="measured")
            )  # fmt: skip
        else:
            check_agreement(plan, request, policy)
            with meeting_for(request, plan.policy, plan) as meeting:
                if plan.pending:
                    plan = _measured(plan, request, meeting)
                elif meeting is not None:
                    meeting.check_passed_plan()
        for text in plan.warnings:
            warn(text)
        loaded = load(cls._target(request), request, plan, *model_args)
        logger.info("%s", plan_of(loaded[0] if isinstance(loaded, tuple) else loaded).summary)
        return loaded

    @classmethod
    def from_config(cls, config: Any, **kwargs: Any) -> Any:
        """Make a model without weights, exactly as the Auto class does: there is no checkpoint to plan for."""
        return cls.auto_class.from_config(config, **kwargs)

    @classmethod
    def register(cls, config_class: Any, model_class: Any, *, exist_ok: bool = False) -> None:
        """Register a model class with the Auto class."""
        cls.auto_class.register(config_class, model_class, exist_ok=exist_ok)

    @classmethod
    def _target(cls, request: Request) -> Any:
        return _WithUnknownTypes(cls.auto_class, request)


class _WithUnknownTypes:
    """An Auto class, and in its place its class for an architecture whose model type transformers does not know."""

    def __init__(self, auto_class: Any, request: Request) -> None:
        self._auto_class, self._request = auto_class, request

    def from_pretrained(self, source: Any, *args: Any, **kwargs: Any) -> Any:
        """Load as the Auto class does."""
        try:
            return self._auto_class.from_pretrained(source, *args, **kwargs)
        except ValueError:
            config = config_of_architecture(_config_source(source), **_config_arguments(self._request))
            if config is None or type(config) not in self._auto_class._model_mapping:
                raise
        model_class = _get_model_class(config, self._auto_class._model_mapping)
        return model_class.from_pretrained(source, *args, **kwargs)


class SafeAutoModel(SafeAuto):
    """Loads the architecture that the checkpoint names, head and all, so that `generate` works."""

    auto_class = transformers.AutoModel

    @classmethod
    def _target(cls, request: Request) -> Any:
        config = request.arguments.get("config")
        if not isinstance(config, transformers.PreTrainedConfig):
            config = _read_config(request.source if config is None else config, request)
        # A GGUF file names no class of transformers; all that transformers reads are language models.
        otherwise = transformers.AutoModelForCausalLM if request.arguments.get("gguf_file") else transformers.AutoModel
        return _class_for(config, otherwise)


def _measured(plan: Plan, request: Request, meeting: Meeting | None) -> Plan:
    """Return what a plan comes to when what it only expects is measured."""
    ordered = {} if plan.ordered is None else {"dtype": plan.ordered.name}
    as_planned = Request(request.source, {**request.arguments, **ordered})
    return plan_request(as_planned, plan.policy, drifts="measured", meeting=meeting)


_CONFIG_ARGUMENTS = (
    "cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token", "trust_remote_code",
    "code_revision", "gguf_file",
)  # fmt: skip


def _read_config(source: Any, request: Request) -> Any:
    return known_config(_config_source(source), **_config_arguments(request))


def _config_arguments(request: Request) -> dict[str, Any]:
    return {name: request.arguments[name] for name in _CONFIG_ARGUMENTS if name in request.arguments}


def _config_source(source: Any) -> Any:
    """Return where the config lies: with the base, of an adapter."""
    adapter = transformers.utils.find_adapter_config_file(source)
    return source if adapter is None else _base_of(source, adapter)


def _base_of(source: Any, adapter: str) -> Any:
    """Return the adapter's base, or `source` itself where the folder holds the whole model as well."""
    if (Path(source) / "config.json").is_file():
        return source
    return json.loads(Path(adapter).read_text(encoding="utf-8"))["base_model_name_or_path"]


def _class_for(config: Any, otherwise: Any) -> Any:
    """Return the class that loads the architecture named in `config`; `otherwise` where it names none."""
    architecture = next(iter(config.architectures or ()), None)
    for auto_name, reference in (getattr(config, "auto_map", None) or {}).items():
        if architecture and str(reference).endswith(f".{architecture}"):
            return getattr(transformers, auto_name)
    return getattr(transformers, architecture or "", otherwise)


@cache
def safe_auto_class(name: str) -> type[SafeAuto]:
    """Return the class called `name`: `Safe` and the name of one of transformers' Auto model classes.

    Raises:
        AttributeError: If the installed transformers has no such Auto class.
    """
    if name == "SafeAutoModel":
        return SafeAutoModel
    auto_class = getattr(transformers, name.removeprefix("Safe"), None)
    if not name.startswith("SafeAutoModelFor") or not hasattr(auto_class, "_model_mapping"):
        raise AttributeError(f"transformers {transformers.__version__} has no {name.removeprefix('Safe')}")
    doc = f"`transformers.{name.removeprefix('Safe')}`, in the dtype that is right and fast on this machine."
    return type(name, (SafeAuto,), {"auto_class": auto_class, "__doc__": doc, "__module__": "safe_dtype"})
