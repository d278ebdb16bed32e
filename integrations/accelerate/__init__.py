"""Hugging Face's accelerate: configs for `accelerate launch` that fit the devices, and launches that come up again.

Importing this package imports no torch.
"""

from .fleet import Engine, Fleet
from .fleet_here import fleet_here, fleet_named
from .launch_config import LaunchConfig, Setting, launch_config
from .launching import Launch, launch_of
from .mixed_precision import MixedPrecision, mixed_precision_for
from .ready_configs import config_file, ready_config, ready_names

__all__ = [
    "Engine",
    "Fleet",
    "Launch",
    "LaunchConfig",
    "MixedPrecision",
    "Setting",
    "config_file",
    "fleet_here",
    "fleet_named",
    "launch_config",
    "launch_of",
    "mixed_precision_for",
    "ready_config",
    "ready_names",
]
