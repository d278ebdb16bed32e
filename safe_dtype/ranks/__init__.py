"""Several processes that hold one model: they agree on the dtype before it loads, and on every step down."""

from ..guarding.entries.peers import ask_peers
from ..loading.meeting import meet_by
from .announcements import Announcements
from .ballot import LARGEST_PAYLOAD, Vote, VoteTally, cast_vote
from .failed_dtypes import failed_dtypes, first_allowed
from .gather import gather_texts
from .generation import agreeing
from .one_plan.board import Board, current_board
from .one_plan.consensus import agree
from .one_plan.meeting_of_ranks import meet
from .one_plan.started import tell_devices
from .rendezvous import init_process_group
from .restart import FAILED_IN_DTYPE, PEER_LOST, restarting
from .tensor_parallel import share_steps
from .world import World, current_world, is_first_rank, known_world

__all__ = [
    "FAILED_IN_DTYPE",
    "LARGEST_PAYLOAD",
    "PEER_LOST",
    "Board",
    "Vote",
    "VoteTally",
    "World",
    "agree",
    "agreeing",
    "cast_vote",
    "current_board",
    "current_world",
    "failed_dtypes",
    "first_allowed",
    "gather_texts",
    "init_process_group",
    "is_first_rank",
    "known_world",
    "meet",
    "restarting",
    "tell_devices",
]

meet_by(meet)  # every load of several ranks goes through a meeting from now on
ask_peers(Announcements())  # and every guarded model hears where its copies on other ranks have failed
share_steps()  # and tensor parallel models that are guarded settle a failure in the step that it occurs in
