"""What a run of training has met so far: beside each of its checkpoints as `safe_dtype.json`."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...errors import UnknownDtypeError
from ...facts import Dtype, dtype_named
from ...store.files import write_whole

logger = logging.getLogger(__name__)

RECORD = "safe_dtype.json"
_SCHEMA = 1


@dataclass(frozen=True, slots=True)
class StepDown:
    """One change of precision. `before` and `after` are names of dtypes."""

    step: int  # the optimizer step that was run again; 0 is the first
    before: str
    after: str
    reason: str


@dataclass(frozen=True, slots=True)
class TrainingRecord:
    """The precision that a run is in, and how it came there."""

    precision: Dtype
    began_in: Dtype
    step_downs: tuple[StepDown, ...] = ()
    nonfinite_steps: int = 0  # with a loss or gradients that were not finite, in one precision at least
    scaler: Mapping[str, Any] | None = None  # `GradScaler.state_dict()`, in float16
    pardons_losses: bool = False  # losses that are not finite are left alone where all gradients are finite
    rescaled: tuple[str, ...] = ()  # linear layers whose products are scaled in float16
    own_autocasts_off: bool = False  # of the model itself, in float32

    @property
    def for_logs(self) -> dict[str, Any]:
        """What each row of a log shows."""
        row = {
            "precision": self.precision.name, "fallbacks": len(self.step_downs), "nonfinite_steps": self.nonfinite_steps,
        }  # fmt: skip
        return {**row, "rescaled_layers": len(self.rescaled)} if self.rescaled else row

    def write(self, checkpoint: Path) -> None:
        """Write it beside the weights of a checkpoint.

        Raises:
            OSError: If it cannot be written.
        """
        entry = {
            "schema": _SCHEMA, "precision": self.precision.name, "began_in": self.began_in.name,
            "fallbacks": [asdict(one) for one in self.step_downs], "nonfinite_steps": self.nonfinite_steps,
            "scaler": None if self.scaler is None else dict(self.scaler), "pardons_losses": self.pardons_losses,
            "rescaled": list(self.rescaled), "own_autocasts_off": self.own_autocasts_off,
        }  # fmt: skip
        write_whole(checkpoint / RECORD, json.dumps(entry, indent=2) + "\n")

    @classmethod
    def read(cls, checkpoint: Path) -> TrainingRecord | None:
        """Return that of a checkpoint; None where it has none, or one that cannot be read, which is logged."""
        file = checkpoint / RECORD
        try:
            entry = json.loads(file.read_text(encoding="utf-8"))
            return cls(
                dtype_named(entry["precision"]),
                dtype_named(entry["began_in"]),
                tuple(StepDown(**one) for one in entry["fallbacks"]),
                int(entry["nonfinite_steps"]),
                entry["scaler"],
                bool(entry.get("pardons_losses", False)),
                tuple(map(str, entry.get("rescaled", ()))),
                bool(entry.get("own_autocasts_off", False)),
            )
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, UnknownDtypeError) as exc:
            logger.warning("%s is not read, the run begins in the precision that it is asked for: %s", file, exc)
            return None
