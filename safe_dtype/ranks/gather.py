"""What every rank has to say, read by all: for the rare moments in which a vote is not enough."""

from __future__ import annotations

import time
from datetime import timedelta

import torch

from .ballot import lost_peer
from .world import World


def gather_texts(world: World, text: str, *, seconds: float | None = None) -> list[str]:
    """Return the texts of all ranks, in their order. Every rank has to call it.

    Two messages on the private group: the lengths, and then the texts, each as long as the longest.

    Args:
        world: The ranks.
        text: What this rank says.
        seconds: How long to wait for the slowest rank; None: as long as the world says.

    Raises:
        PeerLostError: If a rank has ended, or has not come within `seconds`.
    """
    options = torch._C._distributed_c10d.AllgatherOptions()
    options.timeout = timedelta(seconds=world.seconds if seconds is None else seconds)
    own = text.encode()

    def gather(mine: torch.Tensor) -> list[torch.Tensor]:
        everybody = [torch.empty_like(mine) for _ in range(world.size)]
        world.group.allgather([everybody], [mine], options).wait()
        return everybody

    started = time.monotonic()
    try:
        lengths = [int(length) for length in gather(torch.tensor([len(own)], dtype=torch.int64, device="cpu"))]
        padded = own.ljust(max(*lengths, 1), b"\0")
        texts = gather(torch.frombuffer(bytearray(padded), dtype=torch.uint8))
    except RuntimeError as exc:
        raise lost_peer(world, exc, time.monotonic() - started) from exc
    return [bytes(part.tolist())[:length].decode() for part, length in zip(texts, lengths, strict=True)]
