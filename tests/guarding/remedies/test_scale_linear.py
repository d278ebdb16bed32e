"""Linear layers are scaled by what goes in, where a trial on the failed module's own inputs shows that it is right."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as tf
from engineered import engineered, prompts
from torch import Tensor, nn

from safe_dtype import guard, report
from safe_dtype.guarding.diagnosis import ModuleCall
from safe_dtype.guarding.remedies.scale_linear import ScaleLinear
from safe_dtype.models.scaled_linear import ScaledLinear


def kl(truth: Tensor, found: Tensor) -> float:
    """Return the mean KL in nats."""
    truth, found = truth.float().log_softmax(-1), found.float().log_softmax(-1)
    return float((truth.exp() * (truth - found)).sum(-1).mean())


def test_where_no_rescaling_reaches() -> None:
    """An overflow before a GELU: both layers around it are scaled, weights stay in float16, and all goes on from there."""
    model, full = guard(engineered("opt_interior").half()), engineered("opt_interior")
    for batch in prompts("opt_interior", count=2, tokens=24, seed=5):
        with torch.inference_mode():
            assert kl(full(**batch).logits, model(**batch).logits) < 1e-4
    (event,) = report(model).events
    assert event.remedy == "2 linear layers scaled by what goes in"
    assert event.grown_bytes == 0
    assert {one.dtype for one in model.parameters()} == {torch.float16}
    ids = prompts("opt_interior", count=1, tokens=24, seed=7)[0]["input_ids"]
    asked = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "max_new_tokens": 5}
    assert torch.equal(model.generate(**asked), full.generate(**asked))
    assert len(report(model).events) == 1


def test_pictures() -> None:
    """It needs no text: the MLP of an image model is cured, too."""
    torch.manual_seed(0)
    config = tf.ViTConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=8
    )
    full = tf.ViTForImageClassification(config).eval()
    fc1, fc2 = (
        next(  # whatever this version calls them
            one for name, one in full.named_modules() if isinstance(one, nn.Linear) and one.weight.shape == shape
        )
        for shape in ((64, 32), (32, 64))
    )
    with torch.no_grad():
        for one in full.parameters():
            one.copy_(one.half())
        fc1.weight[3] = 0
        fc1.weight[3, 0] = 3.0e4
        fc1.bias[3] = 6.0e4
        fc2.weight[:, 3] = 0
        fc2.weight[5, 3] = 2.0**-20
    half = tf.ViTForImageClassification(config).eval()
    half.load_state_dict(full.state_dict())
    model = guard(half.half())
    pixels = torch.randn(4, 3, 16, 16).half()
    with torch.inference_mode():
        found, truth = model(pixel_values=pixels).logits.float(), full(pixel_values=pixels.float()).logits
    assert "linear layers scaled by what goes in" in report(model).events[0].remedy
    assert model.dtype == torch.float16
    assert float((found - truth).norm() / truth.norm()) < 0.01


class Squared(nn.Module):
    """Two layers, and between them a square."""

    def __init__(self, *, down: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up, self.down = nn.Linear(8, 8).half(), nn.Linear(8, 8).half()
        with torch.no_grad():
            self.up.weight.mul_(2.0**10)
            self.down.weight.mul_(down)

    def forward(self, x: Tensor) -> Tensor:
        """Compute."""
        found: Tensor = self.down(self.up(x) ** 2)
        return found


@pytest.mark.parametrize(("down", "right"), [(2.0**-8, True), (1.0, False)])
def test_proven_by_a_trial(down: float, right: bool) -> None:
    """Where the true output is beyond float16 no scale helps: the trial says so. It leaves nothing changed."""
    module: Any = Squared(down=down)
    call = ModuleCall(module, (torch.full((2, 8), 1.0).half(),), {})
    assert not module(*call.args).isfinite().all()
    remedy = ScaleLinear((module.up,), (module.down,))
    assert remedy.is_right(call) is right
    assert type(module.up) is type(module.down) is nn.Linear
    wrong = ScaleLinear((), (module.up,))  # what it hands on still overflows
    assert not wrong.is_right(call)


def test_taken_back_where_it_was_of_no_use() -> None:
    """Undone, the layers are what they were."""
    module: Any = Squared(down=1.0)
    remedy = ScaleLinear((module.up,), (module.down,))
    model = guard(engineered("llama"))
    from safe_dtype.guarding.failure import Failure, FailureKind
    from safe_dtype.guarding.guard import guard_of
    from safe_dtype.guarding.incident import Incident

    own = guard_of(model)
    assert own is not None
    incident = Incident(own, model, Failure(FailureKind.NONFINITE, ""), 0.0)
    remedy.apply(incident)
    assert isinstance(module.up, ScaledLinear)
    remedy.undo(incident)
    assert type(module.up) is nn.Linear
    remedy.apply(incident)
    incident.log.undo()
    assert type(module.down) is nn.Linear
