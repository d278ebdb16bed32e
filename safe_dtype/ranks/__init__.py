"""Several processes that hold one model: they agree on the dtype before it loads, and on every step down."""

from .ballot import LARGEST_PAYLOAD, Vote, VoteTally, cast_vote
from .failed_dtypes import failed_dtypes, first_allowed
from .gather import gather_texts
from .generation import agreeing, announce_failures
from .restart import FAILED_IN_DTYPE, PEER_LOST, restarting
from .world import World, current_world, known_world

__all__ = [
    "FAILED_IN_DTYPE",
    "LARGEST_PAYLOAD",
    "PEER_LOST",
    "Vote",
    "VoteTally",
    "World",
    "agreeing",
    "announce_failures",
    "cast_vote",
    "current_world",
    "failed_dtypes",
    "first_allowed",
    "gather_texts",
    "known_world",
    "restarting",
]
