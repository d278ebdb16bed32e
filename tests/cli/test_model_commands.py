"""The command, run as users run it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_run import Run, run_apart
from tiny_models import readable_gguf

from safe_dtype.devices import remember_learned
from safe_dtype.facts import LearnedFailure


def test_plan(run: Run, tiny_qwen3: Path) -> None:
    """`plan` names the choice and gives a reason for each of the others."""
    done = run("plan", str(tiny_qwen3))
    assert done.returncode == 0, done.stderr
    assert "because:" in done.stdout
    assert "rejected: range" in done.stdout


def test_plan_json(run: Run, tiny_qwen3: Path) -> None:
    """`plan --format json` is the plan."""
    found = json.loads(run("plan", str(tiny_qwen3), "--format", "json", "--policy", "prefer=memory").stdout)
    assert (found["schema"], found["storage"], found["saved"]) == (1, "bfloat16", "bfloat16")


def test_plan_for_another_device(run: Run, tiny_qwen3: Path) -> None:
    """A device that is not here is planned for from the prior table, and the plan says so."""
    done = run("plan", str(tiny_qwen3), "--device", "NVIDIA Tesla T4")
    assert done.returncode == 0, done.stderr
    assert "Nobody measured this device here" in done.stdout


def test_revision_of_a_folder(run: Run, tiny_qwen3: Path) -> None:
    """A folder has no revisions, and the plan says that the one named is ignored."""
    asked = ("plan", str(tiny_qwen3), "--device", "NVIDIA Tesla T4")
    assert "--revision v2 is ignored" in " ".join(run(*asked, "--revision", "v2").stdout.split())
    assert "is ignored" not in run(*asked).stdout


@pytest.mark.parametrize(
    "command", [("generate", "MODEL", "Hi", "--max-new-tokens", "1"), ("audit", "MODEL"), ("rescue", "MODEL"),
                ("verify", "MODEL", "--tokens", "16"), ("optimize", "MODEL", "--dry-run")], ids=lambda words: words[0],
)  # fmt: skip
def test_revision_that_is_ignored(run: Run, command: tuple[str, ...], tiny_qwen3: Path) -> None:
    """Every command that takes a revision says that it is ignored of a folder, on stderr."""
    asked = [str(tiny_qwen3) if word == "MODEL" else word for word in command]
    assert run(*asked, "--revision", "v2").stderr.count("warning: --revision v2 is ignored") == 1


@pytest.mark.parametrize("option", ["--dtype", "--device"])
def test_run_has_no_dtype(run: Run, option: str, tmp_path: Path) -> None:
    """Who gives `run` a dtype or device learns how a program's models are told; the program's own option is its own."""
    script = tmp_path / "script.py"
    script.write_text("import sys; print(sys.argv[1:])")
    done = run("run", option, "float16", script)
    assert (done.returncode, "--policy ladder=fp16>fp32" in done.stderr) == (2, True)
    assert run_apart("run", str(script), option, "float16").stdout.strip() == str([option, "float16"])


def test_size_of_nothing(run: Run, tiny_qwen3: Path) -> None:
    """A device with a memory of 0 in its name is refused, with what to write in its place."""
    done = run("plan", tiny_qwen3, "--device", "Apple M2 0 GB")
    assert (done.returncode, done.stdout) == (1, "")
    assert "has a memory of 0 in its name" in done.stderr


@pytest.mark.needs("gguf_loader")
def test_gguf_by_its_path(run: Run, tiny_qwen3: Path, tmp_path: Path) -> None:
    """A GGUF file is a MODEL for `plan` and `generate`; `rescue` says that there is nothing to rescale in it."""
    file = readable_gguf(tmp_path / "m.gguf", "Q8_0", tiny_qwen3)
    assert "quantized with gguf:Q8_0" in run("plan", file).stdout
    done = run("generate", file, "Once upon a time", "--max-new-tokens", "2")
    assert (done.returncode, "2 tokens" in done.stderr) == (0, True)
    done = run("rescue", file)
    assert done.returncode == 1
    assert "its weights cannot be rescaled. Next: rescue the model that it was made of" in done.stderr


@pytest.mark.parametrize("limit", ["nan", "inf", "-1"])
@pytest.mark.parametrize("command", [("verify",), ("rescue",), ("optimize",)], ids=str)
def test_limit_of_the_drift(run: Run, command: tuple[str, ...], limit: str, tiny_qwen3: Path) -> None:
    """A limit that is no number from 0 on is refused before anything is loaded, as a policy refuses it."""
    done = run(*command, str(tiny_qwen3), "--max-drift", limit)
    assert done.returncode == 2
    assert "--max-drift" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        pytest.param(("plan", "./no/such/folder"), ("no/such/folder",), id="no-such-folder"),
        pytest.param(("plan", "nobody/nothing"), ("nobody/nothing",), id="no-such-repository"),
        pytest.param(("plan", "MODEL", "--policy", "quick"), ("quick", "prefer=memory"), id="bad-policy"),
        pytest.param(("plan", "MODEL", "--dtype", "bf17"), ("bf17", "bfloat16"), id="bad-dtype"),
        pytest.param(("plan", "MODEL", "--dtype", "int8"), ("int8", "float32"), id="no-compute-dtype"),
        pytest.param(
            ("plan", "MODEL", "--device", "Abacus 3000"),
            ("'Abacus 3000' is not known", "--list-devices"),
            id="no-such-device",
        ),
        pytest.param(
            ("plan", "MODEL", "--device", "cuda:77"),
            ("No device 'cuda:77' here", "cpu", "Tesla T4"),
            id="not-on-this-machine",
        ),
        pytest.param(("plan", "MODEL", "--device", "xpu:77"), ("No device 'xpu:77' here", "Intel Arc"), id="no-xpu"),
        pytest.param(("plan", "MODEL", "--device", "Xeon"), ("Intel Xeon", "--list-devices"), id="many-of-a-name"),
        pytest.param(("generate", "MODEL", "x", "--device", "cuda:77"), ("cuda:77",), id="generate-elsewhere"),
        pytest.param(("doctor", "--device", "cuda:77"), ("cuda:77", "cpu"), id="doctor-elsewhere"),
    ],
)
def test_clear_errors(run: Run, arguments: tuple[str, ...], words: tuple[str, ...], tiny_qwen3: Path) -> None:
    """Bad input is one clear message on stderr and a non-zero exit, without a traceback."""
    done = run(*(str(tiny_qwen3) if one == "MODEL" else one for one in arguments))
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert not done.stdout
    for word in words:
        assert word in done.stderr


@pytest.mark.slow
def test_error_ends_the_process() -> None:
    """Run as users run it, an error ends with status 1 and one message."""
    done = run_apart("plan", "./no/such/folder")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("safe-dtype: ./no/such/folder: no such file or folder")
    assert len(done.stderr.splitlines()) == 1


def test_doctor_lists_what_was_learned(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`doctor` says what later loads of a checkpoint are warned of, and `--refresh` forgets it."""
    monkeypatch.setenv("SAFE_DTYPE_CACHE", str(tmp_path))
    learned = LearnedFailure(
        "qwen3", "VendorLinear.forward", "bfloat16", "cpu", "layer", "RuntimeError", "code 7", ("float32",),
        checkpoint="/models/one",
    )  # fmt: skip
    remember_learned(learned)
    line = "  /models/one in bfloat16: VendorLinear.forward raised RuntimeError: code 7"
    assert line in run("doctor", "--device", "cpu").stdout.splitlines()
    (device,) = json.loads(run("doctor", "--device", "cpu", "--format", "json").stdout)["devices"]
    assert device["learned"] == [json.loads(json.dumps(learned.as_dict()))]
    assert "VendorLinear" not in run("doctor", "--device", "cpu", "--refresh").stdout
