"""What makes steps quicker, and leaves their numbers as they are or within one rounding."""

from .decoder_stack import Attention, stack_layers
from .growing_layers import GrowingLayer, GrowingWindowLayer, give_room, take_room
from .one_row_attention import attention_by_rows, is_quicker_by_rows
from .prompt_attention import can_be_in_chunks

__all__ = [
    "Attention",
    "GrowingLayer",
    "GrowingWindowLayer",
    "attention_by_rows",
    "can_be_in_chunks",
    "give_room",
    "is_quicker_by_rows",
    "stack_layers",
    "take_room",
]
