"""The config of a checkpoint, also where transformers does not know its model type and has its architecture (Kimi-K2)."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import transformers
from transformers import CONFIG_MAPPING, PreTrainedConfig, PreTrainedModel

from ..errors.warn import warn


def known_config(source: Any, **arguments: Any) -> Any:
    """Return the config that `AutoConfig.from_pretrained` returns, else that of the architecture which it names.

    Whether code of the checkpoint may be run is asked, as transformers asks it, only where nothing else makes a config.

    Raises:
        ValueError: Transformers' own, where it knows neither.
    """
    trusted = arguments.get("trust_remote_code")
    try:
        config = transformers.AutoConfig.from_pretrained(
            source, **{**arguments, "trust_remote_code": trusted or False}
        )
    except ValueError:
        config = config_of_architecture(source, **arguments)
        if config is None and trusted is None:
            return transformers.AutoConfig.from_pretrained(source, **arguments)
        if config is None:
            raise
    return config


def config_of_architecture(source: Any, **arguments: Any) -> Any:
    """Return what `AutoConfig.from_pretrained` would for a model type that it does not know, by the architecture; or None.

    That is warned of. None is for everything that is its own affair: a model type that it knows, or that is none, code
    that comes with the checkpoint and may be run, an architecture that it has not, a config that cannot be read.
    """
    arguments = {name: value for name, value in arguments.items() if name not in ("code_revision", "_from_auto")}
    trusted = bool(arguments.pop("trust_remote_code", False))
    try:
        config, unused = PreTrainedConfig.get_config_dict(source, **arguments, _from_auto=True, name_or_path=source)
    except (OSError, TypeError, ValueError):
        return None
    if trusted and isinstance(config.get("auto_map"), Mapping) and "AutoConfig" in config["auto_map"]:
        return None
    architecture = next(iter(config.get("architectures") or ()), "")
    text = unknown_type(str(source), config.get("model_type"), architecture)
    if text is None:
        return None
    warn(text)
    config_class = getattr(transformers, architecture).config_class
    _convert_as(config["model_type"], config_class.model_type)
    return config_class.from_dict(config, **unused)


def convert_as_class(model_class: Any, source: Any, config: Any = None, **arguments: Any) -> None:
    """Have the weights converted as those of the class that loads them, where transformers does not know their model type.

    An Auto class gets such a config from `known_config`. Who names the class, or passes a config that its class has read,
    does not come by there.

    Args:
        model_class: A model class, or an Auto class: of that only `config` tells which class will load.
        source: Where the config is read from if none is passed.
        config: The config of the call.
        arguments: Where the config is looked for.
    """
    config_class: Any
    if isinstance(config, PreTrainedConfig):
        config_class, model_type = type(config), config.model_type
    else:
        config_class = getattr(model_class, "config_class", None)
        if source is None or config is not None or config_class is None:
            return
        try:
            model_type = PreTrainedConfig.get_config_dict(source, **arguments)[0].get("model_type")
        except (OSError, TypeError, ValueError):
            return  # loading will raise it
    known = config_class.model_type
    is_known = known in CONFIG_MAPPING and CONFIG_MAPPING[known] is config_class
    if is_known and isinstance(model_type, str) and model_type not in CONFIG_MAPPING:
        _convert_as(model_type, known)


def _convert_as(model_type: str, known: str) -> None:
    """Have the weights of a type that transformers does not know renamed and joined on loading as those of a known one.

    Transformers goes by the type that the config says. Without this the experts of Kimi-K2 are not found among its files,
    and made anew from random numbers.
    """
    registry = importlib.import_module("transformers.conversion_mapping")
    conversions = registry.get_checkpoint_conversion_mapping(known)
    if conversions is not None and registry.get_checkpoint_conversion_mapping(model_type) is None:
        registry.register_checkpoint_conversion_mapping(model_type, conversions)
        # What is listed there is applied to code that comes with a checkpoint, too, which has names of its own.
        registry.USER_REGISTERED_MAPPINGS.discard(model_type)


def unknown_type(source: str, model_type: Any, architecture: Any) -> str | None:
    """Return the warning that a checkpoint is loaded by its architecture; None where transformers knows its model type.

    None, too, where transformers has no such architecture: then it is not loaded.
    """
    if not isinstance(model_type, str) or model_type in CONFIG_MAPPING:
        return None
    model_class = getattr(transformers, architecture, None) if isinstance(architecture, str) else None
    is_model = isinstance(model_class, type) and issubclass(model_class, PreTrainedModel)
    if not is_model or model_class.config_class is None:  # type: ignore[union-attr]
        return None
    return (
        f"{source}: transformers knows no model type {model_type!r}; it is loaded as the architecture that its config "
        f"names, {architecture}. Next: compare its outputs with its author's"
    )
