"""The script that runs in optimum's environment."""

from __future__ import annotations

from safe_dtype.integrations.optimum.inside import with_outputs


def test_all_outputs() -> None:
    """Outputs that optimum's table lacks are added, in the model's order; axes that it names stay so named."""

    class Config:
        outputs = {"last_hidden_state": {0: "batch_size"}}  # noqa: RUF012

    found = with_outputs(Config(), {"last_hidden_state": 3, "pooler_output": 2}).outputs
    assert list(found.items()) == [
        ("last_hidden_state", {0: "batch_size"}),
        ("pooler_output", {0: "pooler_output_0", 1: "pooler_output_1"}),
    ]
