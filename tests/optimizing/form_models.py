"""Small models for the forms, in a module that a fresh process can import."""

from __future__ import annotations

import os
import subprocess
import time

import torch


class Layer(torch.nn.Module):
    """A region that torch.compile takes: one of torch.nn's own leaves it would skip."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(16, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (batch, 32) of (batch, 16)."""
        return self.linear(x).relu()


class Mlp(torch.nn.Module):
    """Two layers, and two outputs."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = Layer(), torch.nn.Linear(32, 8)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return both, by name."""
        hidden = self.first(x)
        return {"logits": self.second(hidden), "hidden": hidden}


class Ids(torch.nn.Module):
    """A classifier that returns, beside its logits, what is no floating-point number."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.linear = Layer(), torch.nn.Linear(32, 8)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the class of each row, which logits are positive, how many of them, and the mask that it was given."""
        logits = self.linear(self.first(x))
        count = (logits > 0).sum(-1).to(torch.int32)
        return {"logits": logits, "ids": logits.argmax(-1), "positive": logits > 0, "count": count, "mask": mask}


class OneLargeValue(torch.nn.Module):
    """An embedding with one large element; in bfloat16 all others are rounded to multiples of 2."""

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return (batch, 1 + features) of (batch, features)."""
        return {"last_hidden_state": torch.cat([torch.full_like(x[:, :1], 16), (x + 256) - 256], dim=1)}


class Branch(torch.nn.Module):
    """Takes one way or the other, by its data."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = torch.nn.Linear(16, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Look at the sum of `x`."""
        y = self.linear(x)
        return y.relu() if x.sum() > 0 else y - 1


class Eigenvalues(torch.nn.Module):
    """Needs an operator that ONNX has not."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (16,) of (batch, 16)."""
        return torch.linalg.eigvalsh(x.mT @ x)


class Aborts(torch.nn.Module):
    """Ends its process, as a bad kernel does."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Abort."""
        os.abort()


class Hangs(torch.nn.Module):
    """Never answers, and has a process of its own."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Start a process, say its id, and wait with it."""
        print(f"started {subprocess.Popen(['sleep', '600']).pid}", flush=True)  # noqa: T201  # into the attempt's log
        time.sleep(600)
        return x


class Exits(torch.nn.Module):
    """Leaves with a status."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Leave."""
        print("nothing more to say", flush=True)  # noqa: T201  # into the attempt's log
        os._exit(7)
