"""Dtypes in which ranks failed for good: written by the rank that failed, read by all when they start again.

They are kept where guards keep what they have learned on a device, so that another torch, another device and
`safe-dtype doctor --refresh` forget them as well. Loads for inference heed those of a model that was not in training, and
in the same launch alone: what failed in training may be a backward pass.
"""

from __future__ import annotations

import json
import logging
import os
import socket
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from ..devices import checkpoint_key, learned_on, remember_learned
from ..devices.inventory import identity_of
from ..errors import NoSuchDeviceError
from ..errors.of_the_moment import is_of_communication
from ..facts import BFLOAT16, FLOAT16, FLOAT32, Dtype, LearnedFailure
from ..guarding import Failure, FailureKind, classify
from ..guarding.blame import module_raising, name_of
from ..guarding.classify import links_of, text_of
from ..guarding.diagnosis.computed_in import places_of
from ..guarding.diagnosis.learn import without_personal_paths
from .gather import gather_texts
from .model_key import class_of, model_key, unwrapped
from .world import World

logger = logging.getLogger(__name__)

# What is missing stays missing: numbers that are none may come from this data alone, and dtypes that meet from the program.
_LASTING = (FailureKind.OP_UNSUPPORTED, FailureKind.KERNEL_ARCH, FailureKind.POLICY_REFUSAL)
_SIXTEEN_BITS = (BFLOAT16, FLOAT16)


def write_verdict(error: BaseException) -> LearnedFailure | None:
    """Remember that a model fails in a dtype on a device, where `error` says so; return what was remembered, or None.

    Only the failures that guards know are: never memory, communication, the program's own errors, or numbers of one batch.
    The model and the dtype are those of the frames that `error` came through.
    """
    failure = classify(error)
    if failure is None or any(is_of_communication(link) for link in links_of(error)):
        return None
    places = places_of(error)
    dtype, model = _dtype_of(failure, {dtype for dtype, _ in places}), model_in(error)
    if dtype is None or model is None or not (failure.kind in _LASTING or failure.sticky):
        return None
    device = next((device for place, device in sorted(places, key=str) if place == dtype), None) or _device_of(model)
    module = module_raising(model, error.__traceback__)
    failed = class_of(module or model).__name__
    lesson = LearnedFailure(
        family=class_of(model).__name__,
        op=f"training of {failed}" if model.training else failed,
        dtype=dtype.name,
        device=device,
        module=name_of(model, module),
        error=type(error).__name__,
        text=without_personal_paths(text_of(error)),
        checkpoint=_key(model) if model.training else _source_of(model) or _key(model),
        launch=launch_name(),
    )
    try:
        remember_learned(lesson)
    except (NoSuchDeviceError, RuntimeError) as exc:  # the device may not even say its name any more
        logger.warning("that it fails in %s cannot be remembered: %s", dtype, exc)
        return None
    return lesson


def failed_dtypes(world: World | None, device: str, model: nn.Module | None = None) -> dict[str, str]:
    """Return the dtypes in which training has failed, by name, each with the reason: on any rank, the same on all.

    Every rank has to call it. What an earlier attempt of this very launch has met counts for any model.

    Args:
        world: The ranks; None is a job of one.
        device: That of this rank.
        model: What is to be trained; None: it is not known yet.

    Raises:
        PeerLostError: If a rank has ended or does not come.
    """
    own = dict(_failed_here(device, model))
    if world is None:
        return own
    united: dict[str, str] = {}
    for rank, text in enumerate(gather_texts(world, json.dumps(own))):
        for dtype, reason in json.loads(text).items():
            united.setdefault(dtype, f"rank {rank}: {reason}")
    return united


def met_in_this_launch(devices: Iterable[str], source: str) -> tuple[LearnedFailure, ...]:
    """Return in what dtypes a checkpoint, loaded and not trained, has ended an earlier attempt of this launch.

    Args:
        devices: Of this rank.
        source: The checkpoint, as the caller names it.
    """
    launch, checkpoint = _earlier_launch(), checkpoint_key(source)
    if launch is None:
        return ()
    learned = (lesson for device in devices for lesson in learned_on(identity_of(device)))
    return tuple(lesson for lesson in learned if lesson.launch == launch and lesson.checkpoint == checkpoint)


def first_allowed(ladder: Sequence[Dtype], failed: dict[str, str]) -> Dtype:
    """Return the first dtype of a ladder in which training has not failed; float32 where it has failed in all."""
    return next((dtype for dtype in ladder if dtype.name not in failed), FLOAT32)


def model_in(error: BaseException) -> nn.Module | None:
    """Return the model in which `error` was raised: the outermost that ran, or in a backward pass the largest at hand."""
    at_hand: list[nn.Module] = []
    traceback = error.__traceback__
    while traceback is not None:
        values = dict(traceback.tb_frame.f_locals)
        if isinstance(running := values.get("self"), nn.Module):
            return unwrapped(running)
        at_hand += [value for value in values.values() if isinstance(value, nn.Module)]
        traceback = traceback.tb_next
    return unwrapped(max(at_hand, key=_size)) if at_hand else None


def launch_name() -> str | None:
    """Return what all attempts of one launch have in common on a node; None where nothing restarts this process."""
    run = os.environ.get("TORCHELASTIC_RUN_ID")
    return f"{run} {socket.gethostname()} {os.getppid()}" if run else None


def _failed_here(device: str, model: nn.Module | None) -> Iterator[tuple[str, str]]:
    key = None if model is None else _key(unwrapped(model))
    launch = _earlier_launch()
    try:
        lessons = learned_on(identity_of(device))
    except NoSuchDeviceError:
        return
    for lesson in lessons:
        is_of_model = key is not None and lesson.checkpoint == key
        if is_of_model or (launch is not None and lesson.launch == launch):
            yield lesson.dtype, lesson.cause


def _earlier_launch() -> str | None:
    return launch_name() if int(os.environ.get("TORCHELASTIC_RESTART_COUNT") or 0) else None


def _source_of(model: nn.Module) -> str | None:
    source = getattr(getattr(model, "config", None), "_name_or_path", None)
    return checkpoint_key(os.fspath(source)) if source and isinstance(source, str | os.PathLike) else None


def _key(model: nn.Module) -> str:
    return f"training {model_key(model)}"


def _dtype_of(failure: Failure, computed_in: set[Dtype]) -> Dtype | None:
    """Return the 16-bit dtype that has failed: the one of the text, else the only one that was computed in."""
    if failure.dtype is not None:
        return failure.dtype if failure.dtype in _SIXTEEN_BITS else None
    return next(iter(computed_in)) if len(computed_in) == 1 else None


def _device_of(model: nn.Module) -> str:
    devices: list[Any] = [weight.device for weight in model.parameters() if not weight.is_meta]
    return str(devices[0]) if devices else str(torch.get_default_device())


def _size(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
