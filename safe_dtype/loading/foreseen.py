"""What loading a checkpoint will fail at, foreseen from its files: said before weights are read, or in place of the failure."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import transformers

from ..checkpoints.known_config import unknown_type
from ..errors import CheckpointError, NothingToCompareError
from ..facts import CheckpointFacts, ForeseenFailure
from ..hub.errors import InvalidConfigError
from .foreseen_text import foreseen_of_text, has_pointers
from .foreseen_weights import foreseen_of_weights
from .plan_request import checkpoint_for
from .request import Request

_OF_LANGUAGE = ("ForCausalLM", "LMHeadModel")

# What transformers raises over a checkpoint that it cannot read.
_UNREADABLE = (OSError, ValueError, TypeError, LookupError, AttributeError, ImportError, InvalidConfigError)

_OTHER_SHAPES = "ignore_mismatched_sizes"  # what transformers names where it refuses them


def foreseen(request: Request, *, reads_text: bool | None = None) -> tuple[ForeseenFailure, ...]:
    """Return what loading by transformers, which runs no code of the checkpoint, will fail at. Reads the config alone.

    `reads_text`: whether its tokenizer is wanted as well; by default that of a language model.
    """
    folder = Path(os.fspath(request.source or ""))
    is_gguf = request.arguments.get("gguf_file") is not None  # which may hold its tokenizer
    if folder.is_file() or (folder / "adapter_config.json").is_file():
        return ()  # the config beside an adapter is that of its base, which has been read
    config = _config_of(request)
    reads_text = _architecture(config).endswith(_OF_LANGUAGE) if reads_text is None else reads_text
    return (
        *_of_config(config, request),
        *(foreseen_of_text(folder) if reads_text and folder.is_dir() and not is_gguf else ()),
    )


def foreseen_in_all(
    request: Request, checkpoint: CheckpointFacts | None = None, *, reads_text: bool | None = None
) -> tuple[ForeseenFailure, ...]:
    """Return the same, and what is foreseen of the weights: their shapes, and what the files lack. Reads headers as well.

    Args:
        request: The call that will load it.
        checkpoint: What its files hold; None: they are read.
        reads_text: As in `foreseen`.
    """
    failures = foreseen(request, reads_text=reads_text)
    if any(failure.stops_loading for failure in failures):
        return failures
    facts = checkpoint_for(request) if checkpoint is None else checkpoint
    return *failures, *foreseen_of_weights(request, facts)


@contextmanager
def explained(request: Request, *, reads_text: bool) -> Iterator[None]:
    """Raise CheckpointError at once where the config cannot be loaded, and later where the tokenizer had to fail.

    Any other error is raised as it is.
    """
    source = str(request.source)
    for failure in foreseen(request, reads_text=False):
        raise CheckpointError(source, failure.problem, failure.advice)
    try:
        yield
    except (NothingToCompareError, *_UNREADABLE) as exc:
        if isinstance(exc, CheckpointError) and not (reads_text and has_pointers(Path(source))):
            raise  # an OSError, which says already what is wrong
        for failure in foreseen(request, reads_text=reads_text):
            if failure.stops_reading:
                raise CheckpointError(source, failure.problem, failure.advice) from exc
        raise
    except RuntimeError as exc:
        if _OTHER_SHAPES not in str(exc):
            raise
        problem = "its weights have other shapes than its config.json says"
        raise CheckpointError(source, problem, "take both as their author published them") from exc


def _arguments(request: Request) -> dict[str, Any]:
    names = ("revision", "subfolder", "cache_dir", "token", "local_files_only", "gguf_file")
    return {name: request.arguments[name] for name in names if request.arguments.get(name) is not None}


def _config_of(request: Request) -> Mapping[str, Any]:
    try:
        table, _ = transformers.PreTrainedConfig.get_config_dict(request.source, **_arguments(request))
    except (OSError, ValueError):
        return {}
    return dict(table)


def _architecture(config: Mapping[str, Any]) -> str:
    named = config.get("architectures")
    return str(named[0]) if isinstance(named, list) and named else ""


def _of_config(config: Mapping[str, Any], request: Request) -> Iterator[ForeseenFailure]:
    if not config:
        folder = Path(os.fspath(request.source or ""))
        if folder.is_dir() and not (folder / "config.json").is_file():
            problem = "it has no config.json, so that transformers cannot tell what it is"
            yield ForeseenFailure(problem, "download all of its files")
        return
    kind, is_known = config.get("model_type"), config.get("model_type") in transformers.CONFIG_MAPPING
    if not is_known and unknown_type("", kind, _architecture(config)):
        return  # it is loaded as that architecture, whatever code comes with it
    if "AutoConfig" in (config.get("auto_map") or {}) and not is_known:
        problem = "it brings Python code of its own, which this command does not run"
        yield ForeseenFailure(problem, "read that code, then load it in Python with trust_remote_code=True")
    elif is_known or not hasattr(transformers, _architecture(config)):
        try:
            transformers.AutoConfig.from_pretrained(request.source, trust_remote_code=False, **_arguments(request))
        except _UNREADABLE as exc:
            yield _of_unreadable(kind, exc)


def _of_unreadable(kind: object, exc: Exception) -> ForeseenFailure:
    if kind is None:
        return ForeseenFailure(
            "its config.json names no `model_type`", "take the config.json that its author published"
        )
    if kind not in transformers.CONFIG_MAPPING:
        problem = f"transformers {transformers.__version__} does not know its model_type {kind!r}"
        return ForeseenFailure(problem, "`python -m pip install --upgrade transformers`, or check config.json")
    why = " ".join(str(exc).split())
    return ForeseenFailure(f"transformers refuses its config.json: {why}", "take the one that its author published")
