"""`safe-dtype optimize` at its edges; what it finds is tested with the library."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from safe_dtype.cli import cli, main
from safe_dtype.optimizing.backup import back_up

MODEL = "examples/tiny-qwen3"
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run from the project's folder."""
    monkeypatch.chdir(ROOT)


def invoke(*arguments: str) -> Result:
    """Run the command in this process."""
    return CliRunner().invoke(cli, ["optimize", *arguments])


def test_dry_run() -> None:
    """The ladder is shown with what each form is, and nothing is written."""
    done = invoke(MODEL, "--dry-run")
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[0].startswith(f"{MODEL} (saved in bfloat16, 2,115,520 parameters) on cpu, each form in float32")
    assert [line.split()[1] for line in lines[1:8]] == [
        "eager", "export", "aoti", "onnx", "compile", "regional", "partial",
    ]  # fmt: skip
    assert lines[-1].endswith("Nothing was run or written.")


def test_dry_run_json() -> None:
    """The same for programs: an asked-for form is first after eager, a trace is there only where it is allowed."""
    done = invoke(
        MODEL, "--dry-run", "--format", "json", "--form", "compile", "--dtype", "fp16", "--allow-torchscript"
    )
    found = json.loads(done.stdout)
    assert [one["form"] for one in found["rungs"]][:2] == ["eager", "compile"]
    assert found["rungs"][-1]["form"] == "torchscript"
    assert found["dtypes"] == ["float32", "float16"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "Missing argument 'MODEL'"),
        ((MODEL,), "Missing option '--out'"),
        ((MODEL, "--out", ""), "is empty. Is a variable of your shell not set?"),
        (("--restore",), "--restore needs --out"),
        ((MODEL, "--out", "x", "--batch", "32..1"), "'32..1' is no range such as 1..32"),
        ((MODEL, "--out", "x", "--dtype", "bf17"), "No dtype is called 'bf17'"),
        ((MODEL, "--out", "x", "--form", "magic"), "'magic' is not one of"),
        ((MODEL, "--out", "x", "--via", "optimum-onnx", "--form", "aoti"), "cannot be combined with --form aoti"),
    ],
)
def test_usage(arguments: tuple[str, ...], said: str) -> None:
    """A wrong usage is status 2, with what is wrong."""
    done = invoke(*arguments)
    assert done.exit_code == 2
    assert said in done.stderr


def test_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """What the machine lacks is status 5, before anything is written."""
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(SystemExit) as ended:
        main(["optimize", MODEL, "--out", str(tmp_path / "out"), "--form", "aoti"])
    assert ended.value.code == 5
    assert "Missing here: a C++ compiler" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_restore(tmp_path: Path) -> None:
    """The original comes back as it was, by the folder that an earlier run wrote."""
    source, out = tmp_path / "model", tmp_path / "out"
    shutil.copytree(MODEL, source)
    out.mkdir()
    back_up(source, out)
    before = (source / "config.json").read_bytes()
    (source / "config.json").write_text("{}")
    done = invoke("--restore", "--out", str(out))
    assert done.exit_code == 0, done.output
    assert "replaced config.json" in done.stdout
    assert (source / "config.json").read_bytes() == before
