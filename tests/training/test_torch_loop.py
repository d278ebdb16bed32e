"""A loop in plain torch: its loss scale, for gradients of every kind that one model may have."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from safe_dtype import TorchLoop


@pytest.fixture
def meshes() -> Iterator[list[object]]:
    """Give two device meshes in a group of one."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield [torch.distributed.init_device_mesh("cpu", (1,), mesh_dim_names=(name,)) for name in ("all", "experts")]
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize(
    "spoiled", [None, 0, 1, 2, 3], ids=["none", "sharded", "replicated", "of another mesh", "plain"]
)
def test_gradients_over_several_meshes_are_unscaled_together(meshes: list[object], spoiled: int | None) -> None:
    """Experts on a mesh of their own, and parameters that are on none: torch's own scaler takes one kind alone."""
    model = nn.ParameterList([
        nn.Parameter(distribute_tensor(torch.ones(4), meshes[0], [Shard(0)])),
        nn.Parameter(distribute_tensor(torch.ones(4), meshes[0], [Replicate()])),
        nn.Parameter(distribute_tensor(torch.ones(4), meshes[1], [Shard(0)])),
        nn.Parameter(torch.ones(4)),
    ])  # fmt: skip
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    loop = TorchLoop(model, optimizer, "float16", init_scale=8.0)
    for place, parameter in enumerate(model):
        gradient = torch.full_like(parameter, float("inf") if place == spoiled else 4.0)
        parameter.grad = gradient
    loop.scaler.scale(torch.zeros(()))  # it begins with the first loss
    loop.scaler.step(optimizer)
    loop.scaler.update()
    weights = [float(getattr(one, "full_tensor", lambda one=one: one)().detach()[0]) for one in model]
    assert weights == [1.0 if spoiled is not None else 0.5] * 4
    assert loop.scaler.get_scale() == (8.0 if spoiled is None else 4.0)
