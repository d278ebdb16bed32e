"""Forwards that most models of transformers have, by digests of what they say.

`tests/models/forwards/test_known_code.py` holds the digests against the transformers that is installed, and tells new ones.
Whoever adds one compares what the new text computes with what is computed in its place.
"""

from __future__ import annotations

import torch
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .known_code import ANY, KnownCode

# A row divided by its root mean square, in float32, times a weight.
NORM = KnownCode(frozenset({"ab976057508269c9"}), frozenset({"variance_epsilon", "rsqrt", "weight"}), {"torch": torch})
# One product, activated, times another, and their product by a third weight.
GATED = KnownCode(frozenset({"8d9c30ca200ab500"}), frozenset({"gate_proj", "up_proj", "act_fn", "down_proj"}))
SILU = KnownCode(frozenset({"b6a7745856aa8bc9"}), frozenset({"silu"}), {"nn": nn})
# The second half of a row, negative, before the first.
ROTATE_HALF = KnownCode(frozenset({"2fe1910d039f824f"}), frozenset({"cat", "shape"}), {"torch": torch})
# Queries and keys turned by cosines and sines.
ROTARY = KnownCode(
    frozenset({"9759618c8ab33259"}), frozenset({"rotate_half", "unsqueeze"}), {"rotate_half": ROTATE_HALF}
)

_OF_ATTENTION = frozenset({"q_proj", "k_proj", "v_proj", "o_proj", "layer_idx", "scaling", "apply_rotary_pos_emb"})
_CALLED = {
    "apply_rotary_pos_emb": ROTARY,
    "ALL_ATTENTION_FUNCTIONS": ALL_ATTENTION_FUNCTIONS,
    "eager_attention_forward": ANY,  # what attention is computed by is asked at every call
}
# Each has two digests: from transformers 5.24 on a cache is called `cache`, and is given the arguments of attention too.
# Attention to turned keys.
ATTENTION = KnownCode(frozenset({"29656b07a3dd664c", "6a7503f4c7c6f4dd"}), _OF_ATTENTION, _CALLED)
# ... within a window of the module's own,
ATTENTION_IN_WINDOW = KnownCode(
    frozenset({"2fd2a5518206c493", "48f7d2410630533d"}), _OF_ATTENTION | {"sliding_window"}, _CALLED
)
# ... within the window of the config, where it has one,
ATTENTION_IN_WINDOW_OF_CONFIG = KnownCode(
    frozenset({"76f4b4c921cc6c56", "9c9a08aff4a4428c"}), _OF_ATTENTION | {"getattr"}, {**_CALLED, "getattr": getattr}
)
# ... within a window of the module's own, with queries and keys divided by their root mean square.
ATTENTION_WITH_NORMS = KnownCode(
    frozenset({"3b6a6dfa11a12d52", "50d7d0e19997510e"}),
    _OF_ATTENTION | {"q_norm", "k_norm", "sliding_window"},
    _CALLED,
)
# Those that give it their arguments, which a cache of pages changes for what is called next.
TELL_CACHE = frozenset({"6a7503f4c7c6f4dd", "48f7d2410630533d", "9c9a08aff4a4428c", "50d7d0e19997510e"})

# Attention of a norm added, then an MLP of a norm.
DECODER_LAYER = KnownCode(
    frozenset({"17c4b6c0eb01574d", "327b47c13ac56c59"}),
    frozenset({"input_layernorm", "self_attn", "post_attention_layernorm", "mlp"}),
)
