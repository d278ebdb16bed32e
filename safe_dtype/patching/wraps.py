"""What is put around the methods of transformers, accelerate and diffusers that load and train.

Each asks what is in force now, as it is called, and calls the original where nothing is. What a wrapper needs is imported by
then, and not while the module that it is put into is being imported.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from .import_hook import ACCELERATOR, ARGUMENTS, CONFIGS, MODELS, PARTS, PIPELINES, PRECISION, TRAINER
from .patch_in_force import patch_now
from .telling import tell_training

LOADS = "from_pretrained"

Wrap = Callable[[Callable[..., Any]], Callable[..., Any]]


def _loading(planned: Callable[[], Callable[..., Any]]) -> Wrap:
    """Return what wraps a class method that loads; `planned` returns what plans in its place."""

    def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
        def from_pretrained(cls: type, *args: Any, **kwargs: Any) -> Any:
            now = patch_now()
            if now is None:
                return original(cls, *args, **kwargs)
            return planned()(functools.partial(original, cls), now.policy, now.tell, args, kwargs)

        return from_pretrained

    return wrap


def _models() -> Callable[..., Any]:
    from .planned import from_pretrained_planned

    return from_pretrained_planned


def _models_of_diffusers() -> Callable[..., Any]:
    from .planned_diffusion import part_planned

    return part_planned


def _pipelines() -> Callable[..., Any]:
    from .planned_diffusion import pipeline_planned

    return pipeline_planned


def _with_unknown_types(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap `AutoConfig.from_pretrained`, which every Auto class asks before it comes to a model class."""

    def from_pretrained(cls: type, source: Any, **kwargs: Any) -> Any:
        try:
            return original(cls, source, **kwargs)
        except ValueError:
            from ..checkpoints.known_config import config_of_architecture

            config = config_of_architecture(source, **kwargs) if patch_now() is not None else None
            if config is None:
                raise
            return config

    return from_pretrained


def _with_settled_arguments(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap what checks `TrainingArguments`."""

    def __post_init__(self: Any) -> None:  # noqa: N807  (it is one)
        if (now := patch_now()) is not None:
            from ..training.arguments import settle_arguments

            settle_arguments(self, now.policy)
        original(self)

    return __post_init__


def _with_its_model(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap where a Trainer, which has its model by then, makes its Accelerator."""

    def create_accelerator_and_postprocess(self: Any) -> None:
        if patch_now() is None:
            original(self)
            return
        from ..training.arguments import accelerating

        with accelerating(self):
            original(self)

    return create_accelerator_and_postprocess


def _with_settled_precision(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap what every Accelerator, that of a Trainer too, is given its precision by."""

    def __init__(self: Any, mixed_precision: str | None = None, cpu: bool = False, **others: Any) -> None:  # noqa: N807, FBT001, FBT002  # accelerate's own signature
        if (now := patch_now()) is not None:
            from ..training.arguments import settled_precision

            mixed_precision = settled_precision(mixed_precision, cpu, others, now.policy)
        original(self, mixed_precision, cpu, **others)

    return __init__


def _evaluated(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap the loop of a Trainer's evaluations and predictions."""

    def evaluation_loop(self: Any, *args: Any, **kwargs: Any) -> Any:
        now = patch_now()
        if now is None:
            return original(self, *args, **kwargs)
        from ..training.evaluation import evaluating

        with evaluating(self.model, now.policy):
            return original(self, *args, **kwargs)

    return evaluation_loop


def _with_kept_weights(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap where an Accelerator takes a model that is to be trained, or evaluated only."""

    def prepare_model(self: Any, model: Any, *args: Any, **kwargs: Any) -> Any:
        if patch_now() is not None and not kwargs.get("evaluation_mode"):
            from ..training.evaluation import keep_weights

            keep_weights(model)
        return original(self, model, *args, **kwargs)

    return prepare_model


def _with_guarded_steps(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap `Trainer.train`, whose steps have to fit into memory, and are guarded from then on."""

    def train(self: Any, *args: Any, **kwargs: Any) -> Any:
        if (now := patch_now()) is not None:
            from ..training.arguments import fit_before_training
            from ..training.trainer.attach import attach_where_possible

            fit_before_training(self)
            name, policy, tell = type(self).__name__, now.policy, now.tell
            attach_where_possible(self, policy, lambda ladder: tell_training(name, ladder, policy, tell))
        return original(self, *args, **kwargs)

    return train


# By module: classes, their methods, and what wraps them. Every way of loading a model passes exactly once through one of those
# that load.
METHODS: dict[str, tuple[tuple[str, str, Wrap], ...]] = {
    MODELS: (("PreTrainedModel", LOADS, _loading(_models)),),
    CONFIGS: (("AutoConfig", LOADS, _with_unknown_types),),
    PARTS: (("ModelMixin", LOADS, _loading(_models_of_diffusers)),),
    PIPELINES: (("DiffusionPipeline", LOADS, _loading(_pipelines)),),
    PRECISION: (("AcceleratorState", "__init__", _with_settled_precision),),
    ARGUMENTS: (("TrainingArguments", "__post_init__", _with_settled_arguments),),
    ACCELERATOR: (("Accelerator", "prepare_model", _with_kept_weights),),
    TRAINER: (
        ("Trainer", "create_accelerator_and_postprocess", _with_its_model),
        ("Trainer", "evaluation_loop", _evaluated),
        ("Trainer", "train", _with_guarded_steps),
    ),
}
