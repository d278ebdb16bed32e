"""`safe-dtype publish`: every verb, in this process, over real HTTP."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from huggingface_hub import constants
from publishing.loopback import LoopbackHub, status
from publishing.variant import staged

from safe_dtype.cli import cli, main
from safe_dtype.errors import PublishError

REPO = "org/model-fp16"


def invoke(*arguments: str | Path) -> Result:
    """Run `safe-dtype publish`."""
    return CliRunner().invoke(cli, ["publish", *map(str, arguments)], catch_exceptions=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A staged folder that is fit to be published."""
    return staged(tmp_path / "stage")


def test_verbs(hub: LoopbackHub, folder: Path) -> None:
    """Checked, compared, pushed, verified, asked for, changed, and rolled back."""
    assert invoke("check", folder).stdout.strip() == f"{folder}: fit to be published"
    dry = invoke("diff", folder, "--repo", REPO).stdout
    assert dry.startswith(f"{REPO}, which is made for it, private")
    assert "+ model.safetensors" in dry
    assert not hub.requests or all(method == "GET" for method, _ in hub.requests)

    pushed = invoke("push", folder, "--repo", REPO, "--public", "--format", "json")
    assert pushed.exit_code == 0, pushed.output
    receipt = json.loads(pushed.stdout)
    assert (receipt["state"], receipt["oid"]) == ("published", hub.branches(REPO)["main"])
    assert REPO in hub.files(REPO)["README.md"].decode()
    assert invoke("push", folder, "--repo", REPO, "--public").exit_code == 0
    assert len(hub.commits(REPO)) == 2  # the Hub's own first one, and ours

    assert invoke("verify", REPO, "--full").stdout.startswith(f"{REPO} at {receipt['oid'][:12]}: right: ")
    assert invoke("status", folder).stdout.startswith("published: it is all there")

    hub.push(REPO, {"model.safetensors": b"somebody else's"})
    broken = invoke("verify", REPO)
    assert broken.exit_code == 8
    assert "model.safetensors is another file" in broken.stdout
    back = invoke("rollback", REPO, "--to", receipt["oid"])
    assert back.exit_code == 0, back.output
    assert invoke("verify", REPO, "--against", folder).exit_code == 0


def test_card(folder: Path) -> None:
    """The card is printed, and written with the name of where it goes."""
    printed = invoke("card", folder, "--repo", "org/other-fp16").stdout
    assert printed.strip() == (folder / "README.md").read_text(encoding="utf-8").strip()
    assert "org/other-fp16" in printed


def test_not_fit(folder: Path) -> None:
    """What must not be published is status 3 with every problem."""
    (folder / "model.fp16.safetensors").write_bytes(b"")
    done = invoke("check", folder)
    assert done.exit_code == 3
    assert "model.fp16.safetensors" in done.stdout


def test_status_of_a_failure(hub: LoopbackHub, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A failure ends with the status of its state, and with what is visible and what to do next; never a traceback."""
    hub.fault("POST", "/api/repos/create", status(403), times=99)
    with pytest.raises(SystemExit) as ended:
        main(["publish", "push", str(folder), "--repo", REPO])
    assert ended.value.code == 3
    said = capsys.readouterr().err
    assert "[not-started]" in said
    assert "Next: " in said
    assert hub.token not in said


@pytest.mark.parametrize("named", ["org/a b", "https://x/y", "a/b/c"])
def test_no_repository(named: str) -> None:
    """What is no name of a repository is a wrong usage."""
    assert invoke("verify", named).exit_code == 2


def test_no_stage(tmp_path: Path) -> None:
    """A folder that is none is one line: what is missing, and what makes one."""
    done = invoke("check", tmp_path)
    assert done.exit_code == 3
    line = "it is no staged folder: there is no safe_dtype.json in it. Next: make one with `safe-dtype publish stage`"
    assert done.stdout == f"{line}\n"


@pytest.mark.slow
def test_what_a_stage_still_lacks(tiny_qwen3: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder with no base and no license is staged; the end says what is missing, and again how to go on."""
    out = tmp_path / "stage"
    done = invoke("stage", tiny_qwen3, "--out", out, "--dtype", "bfloat16", "--max-drift", "1")
    assert done.exit_code == 0, done.output
    assert "not fit to be published yet:" in done.stdout
    assert "(--base org/model)" in done.stdout
    assert "(--license NAME, as the base has it)" in done.stdout
    assert "(--base org/model)" in invoke("check", out).stdout
    with pytest.raises(SystemExit):
        main(["publish", "stage", str(tiny_qwen3), "--out", str(out), "--license", "mit"])
    err = capsys.readouterr().err
    assert f"a variant is staged there already. Now visible: nothing: nothing was sent. Next: remove {out}" in err
    assert "or name another folder (--out NAME)" in err


def test_diff_offline(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its words are those of a verb that only looks."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(PublishError, match="Next: unset it, then try again") as failed:
        invoke("diff", folder, "--repo", REPO)
    assert failed.value.visible == "what was there before, for diff sends nothing"
