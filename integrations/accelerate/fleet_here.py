"""The fleet of a launch, from what was measured on this machine, or from published facts of devices by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from safe_dtype.devices.priors import prior_facts
from safe_dtype.devices.products import is_a_place
from safe_dtype.facts import DeviceFacts

from .fleet import Engine, Fleet


def fleet_here(per_machine: int | None = None, machines: int = 1, engine: Engine = Engine.DDP) -> Fleet:
    """Return the accelerators of this machine, else its CPU; every kind is measured unless that is remembered.

    Args:
        per_machine: Processes on each machine; None: one for each accelerator, one for a CPU.
        machines: How many machines like this one there are.
        engine: Who holds which part of the model.

    Raises:
        ProbeError: If a device cannot be measured.
    """
    from safe_dtype.devices import detect  # loads torch: not for --help

    first, *others = detect()
    alike = [device for device in (first, *others) if device.vendor == first.vendor]
    kinds = {device.name: device.device for device in reversed(alike)}
    measured = tuple(map(_measured, reversed(kinds.values())))
    return Fleet(measured, per_machine or len(alike), machines, engine)


def fleet_named(names: Sequence[str], per_machine: int = 1, machines: int = 1, engine: Engine = Engine.DDP) -> Fleet:
    """Return a fleet of devices by name: "NVIDIA Tesla T4" by published facts, "cuda:0" as it is measured here.

    Raises:
        UnknownDeviceError: If no product of a name is known; it lists the names that are close.
        NoSuchDeviceError: If a device that is named as torch names it is not here.
    """
    return Fleet(tuple(dict.fromkeys(map(_facts, names))), per_machine, machines, engine)


def _facts(name: str) -> DeviceFacts:
    if not is_a_place(name):
        return prior_facts(name)
    return _measured(name)


def _measured(place: str) -> DeviceFacts:
    """Return a device with its verdicts on inference, and on steps of training, which decide."""
    from safe_dtype.devices import facts_of
    from safe_dtype.training.training_precision import measure_training

    facts = facts_of(place)
    trained = (verdict for verdict in measure_training(place).verdicts if verdict.op.endswith("_training"))
    return replace(facts, verdicts=(*facts.verdicts, *trained))
