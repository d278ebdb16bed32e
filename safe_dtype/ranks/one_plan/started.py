"""What is known of every rank's device from the start of the job on, whichever ranks load a model later."""

from __future__ import annotations

import logging
from dataclasses import replace

from ...devices import default_device, facts_of
from ...errors import PeerLostError, ProbeError
from ...facts import DeviceFacts, MemoryFacts
from .board import Board, Groups, current_board

logger = logging.getLogger(__name__)

_NAME = "devices"
_left: list[Board] = []  # the last one on which this process has left its own


def tell_devices() -> None:
    """Measure this rank's device, or look it up, and leave what it is for the others. Waits for nobody.

    It belongs where every rank passes: at `init_process_group`. A rank that loads a model alone then knows the devices of
    those that do not.
    """
    board = current_board()
    if board is None or board in _left:
        return
    try:
        facts = replace(facts_of(default_device()), memory=MemoryFacts(0, 0, "ranks"))  # whatever is loaded there
        board.leave(_NAME, shared(facts))
        _left[:] = [board]
    except (ProbeError, PeerLostError) as exc:
        logger.info("the device of this rank is not known to the others: %s", exc)


def devices_at_start(board: Board) -> Groups:
    """Return the devices of the ranks that have told of theirs, like ones together."""
    return board.left(_NAME)


def shared(facts: DeviceFacts) -> DeviceFacts:
    """Return the facts without what no other rank plans from, so that like devices are equal."""
    return replace(facts, device=facts.device.partition(":")[0], claims=())
