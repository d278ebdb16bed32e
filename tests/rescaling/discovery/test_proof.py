"""The proof of a gauge: the right one leaves every bit as it is, and every spoilt one is caught."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
import transformers as tf
from huggingface_hub.errors import StrictDataclassError
from rescaling.architectures import config_of, found_in, gauge_of, twin_of, without
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from safe_dtype.facts import Gauge, Move, Part
from safe_dtype.rescaling.discovery.discover import discover
from safe_dtype.rescaling.discovery.proof import Prover, prove
from safe_dtype.rescaling.discovery.twin import TwinError, make_twin

# A change of less than this, of the largest output, is below float32's own rounding.
SEEN_BY_FLOAT32 = 2.0**-23


def mutants(gauge: Gauge) -> Iterator[Gauge]:
    """Yield the gauge with one move left out, off by one, or on the target of another move of its part."""
    for place, move in enumerate(gauge.moves):
        rest = [*gauge.moves[:place], *gauge.moves[place + 1 :]]
        yield Gauge(gauge.name, tuple(rest))
        for power in (move.power - 1, move.power + 1):
            yield Gauge(gauge.name, (*rest, replace(move, power=power)))
        others = [one.target for one in rest if one.part is move.part and one.target != move.target]
        if others:
            yield Gauge(gauge.name, (*rest, replace(move, target=others[place % len(others)])))


def is_caught(prover: Prover, mutant: Gauge) -> bool | None:
    """Return whether float32 tells a mutant from the model as it is; None where nothing of it could be seen."""
    proof = prover.prove(mutant)
    if not proof.bitwise_float32:
        return True
    return False if proof.max_rel_error > SEEN_BY_FLOAT32 else None


@pytest.mark.parametrize("name", ["llama", "gemma3", "olmo2", "gpt_oss", "opt", "olmo"])
def test_mutants(name: str) -> None:
    """Each of 24 spoilt gauges of an architecture is caught."""
    prover = Prover(twin_of(name))
    every = [mutant for one in found_in(name).proved for mutant in mutants(one.gauge)]
    caught = [is_caught(prover, mutant) for mutant in random.Random(0).sample(every, 24)]
    assert False not in caught
    assert caught.count(True) >= 20  # the others move what changes nothing: the bias of keys


@pytest.mark.slow
def test_a_thousand_mutants() -> None:
    """Of more than a thousand spoilt gauges, of over a hundred architectures, each that changes anything is caught."""
    caught: list[bool | None] = []
    for model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        try:
            config = tf.CONFIG_MAPPING[model_type]()
            twin = make_twin(MODEL_FOR_CAUSAL_LM_MAPPING[type(config)], config)
            if sum(one.numel() for one in twin.model.parameters()) > 300_000:
                continue
            found = discover(twin)
        except (TwinError, StrictDataclassError, AssertionError):  # no default config, or no derivative (Reformer)
            continue
        every = [mutant for one in found.proved for mutant in mutants(one.gauge)]
        prover = Prover(twin)
        caught += [is_caught(prover, one) for one in random.Random(0).sample(every, min(12, len(every)))]
    assert False not in caught
    assert caught.count(True) >= 1000


def test_right_gauge() -> None:
    """A gauge is proved in float64, float32 and bfloat16, and every block is counted that returns less."""
    gauge = gauge_of("llama", "residual")
    blocks = [f"model.layers.{place}" for place in range(3)]
    proof = prove(twin_of("llama"), gauge, blocks=blocks)
    assert (proof.exact, proof.bitwise_float32, proof.bitwise_bfloat16) == (True, True, True)
    assert (proof.covered, proof.blocks, proof.coverage) == (3, 3, "all")
    assert proof.max_rel_error < 1e-12
    assert proof.problem == ""


def test_forgotten_eps() -> None:
    """Leaving out one eps is an error, and the proof says how large."""
    gauge = gauge_of("llama", "residual")
    eps = next(move for move in gauge.moves if move.part is Part.NUMBER)
    proof = prove(twin_of("llama"), without(gauge, eps))
    assert not proof.exact
    assert 1e-9 < proof.max_rel_error < 1e-2
    assert "in float32" in proof.problem


def test_some_blocks() -> None:
    """A gauge that is exact but moves the hidden state of one block alone covers some of the blocks."""
    gauge = Gauge(
        "one block",
        (
            Move(Part.OUTPUT, "model.layers.1", -1),
            Move(Part.INPUT, "model.layers.2", 1),
        ),
    )
    proof = prove(twin_of("llama"), gauge, blocks=[f"model.layers.{place}" for place in range(3)])
    assert proof.exact
    assert (proof.covered, proof.coverage) == (1, "some")


def test_nothing_of_that_name() -> None:
    """A gauge that names what is not there proves nothing, and says so."""
    proof = prove(twin_of("llama"), Gauge("wrong", (Move(Part.WEIGHT, "model.layers.0.mlp.gone.weight", -1),)))
    assert not proof.exact
    assert "model.layers.0.mlp.gone.weight" in proof.problem


def test_clamp_reached_by_large_weights_only() -> None:
    """A gauge through a clamp is exact for weights of ordinary size, and refused for what it does to large ones."""
    through = gauge_of("olmo", "self_attn.v_proj / self_attn.o_proj")
    proof = prove(twin_of("olmo-clipped"), through)
    assert proof.max_rel_error == 0.0  # in float64 with weights of ordinary size
    assert not proof.exact


def test_twin_is_not_touched() -> None:
    """Proofs work on copies."""
    twin = make_twin(tf.LlamaForCausalLM, config_of("llama"))
    before = {name: one.clone() for name, one in twin.model.state_dict().items()}
    prove(twin, gauge_of("llama", "residual"))
    after = twin.model.state_dict()
    assert all(torch.equal(after[name], one) and after[name].dtype == one.dtype for name, one in before.items())
