"""A foreign model is built without a trace in the process, and not where it is too large."""

from __future__ import annotations

import logging
import random
import warnings

import numpy as np
import pytest
import torch
import transformers as tf
from rescaling.real_configs import REAL

from safe_dtype.rescaling.discovery.twin import TwinError, make_twin


def test_leaves_the_process_as_it_was() -> None:
    """Random states, the default dtype, logging, the config and the list of warnings are what they were."""
    config = REAL["gpt_oss"].config()
    said = config.to_dict()
    state, python, numpy = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    level = logging.getLogger("transformers").level
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        make_twin(tf.GptOssForCausalLM, config)
    assert torch.equal(torch.get_rng_state(), state)
    assert random.getstate() == python
    assert np.array_equal(np.random.get_state()[1], numpy)
    assert torch.get_default_dtype() == torch.float32
    assert logging.getLogger("transformers").level == level
    assert config.to_dict() == said
    assert not caught


def test_too_large() -> None:
    """What stays large when it is shrunk is refused before it fills the memory."""
    config = tf.ResNetConfig(hidden_sizes=[2**15, 2**15, 2**15, 2**15])
    with pytest.raises(TwinError, match="more than 3,000,000 parameters"):
        make_twin(tf.ResNetModel, config)
