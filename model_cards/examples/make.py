"""Make the example cards anew: stage the bundled model in each dtype, and keep what the cards are made of.

    python model_cards/examples/make.py

The figures are those of the machine that this runs on. The tests render the cards again, and never this.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from safe_dtype.publishing.staging.card import write_card
from safe_dtype.publishing.staging.stage import stage

HERE = Path(__file__).resolve().parent
MODEL = HERE.parent.parent / "examples" / "tiny-qwen3"
KEPT = ("README.md", "safe_dtype.json", "plots")


def main() -> None:
    """Write one folder a dtype."""
    for dtype, short in (("float16", "fp16"), ("float32", "fp32")):
        name = f"tiny-qwen3-{short}"
        with tempfile.TemporaryDirectory() as scratch:
            staged = Path(scratch) / name
            stage(MODEL, staged, dtype=dtype, base="example-org/tiny-qwen3", license="apache-2.0")
            write_card(staged, repo=f"example-org/{name}")
            shutil.rmtree(HERE / name, ignore_errors=True)
            (HERE / name).mkdir()
            for one in KEPT:
                (shutil.copytree if (staged / one).is_dir() else shutil.copyfile)(staged / one, HERE / name / one)


if __name__ == "__main__":
    main()
