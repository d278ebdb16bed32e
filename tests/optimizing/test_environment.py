"""What is looked at before anything is tried."""

from __future__ import annotations

import getpass
import hashlib
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from optimizing.zoo import ZOO
from torch import Tensor

from safe_dtype.errors import MissingShardError
from safe_dtype.optimizing.environment import environment, files_in, hashes, reference_sanity


def test_environment_is_plain() -> None:
    """It survives JSON as it is, and says what torch says."""
    found = environment()
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["packages"]["torch"] == version("torch")
    assert found["threads"]["intra_op"] == torch.get_num_threads()
    assert found["python"] == platform.python_version()


def test_environment_is_anonymous(monkeypatch: pytest.MonkeyPatch) -> None:
    """No user, no host and no path of this machine is in it, not even from a variable that changes kernels."""
    monkeypatch.setenv("OMP_TOOL_LIBRARIES", "/home/somebody/libtool.so")
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    text = json.dumps(environment())
    assert "somebody" not in text
    assert '"ONEDNN_MAX_CPU_ISA": "AVX2"' in text
    assert str(Path.home()) not in text or str(Path.home()) == "/"
    assert str(Path.cwd()) not in text
    assert f'"{getpass.getuser()}"' not in text
    assert platform.node() not in text


def test_environment_imports_nothing_heavy() -> None:
    """Of the packages whose versions it gives, only torch is imported; restoring needs not even that."""
    check = (
        "import sys; from safe_dtype.optimizing import backup, environment; assert 'torch' not in sys.modules;"
        "environment.environment(); bad = {'transformers', 'onnx', 'onnxruntime', 'triton'} & set(sys.modules);"
        "sys.exit(str(bad) if bad else 0)"
    )
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(platform.system() == "Windows", reason="cl is not chosen by a name in a folder of ours")
def test_compiler_is_the_one_of_inductor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """$CXX is taken, by name and version; one that does not start, or is not there, is none."""
    compiler = tmp_path / "our-c++"
    compiler.write_text("#!/bin/sh\necho 'our-c++ (Some Linux 3-1) 17.4.2'\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    assert environment()["compiler"] == {"name": "our-c++", "version": "17.4.2"}
    compiler.write_text("#!/bin/sh\nexit 1\n")
    assert environment()["compiler"] is None
    monkeypatch.setenv("CXX", str(tmp_path / "nothing"))
    assert environment()["compiler"] is None


def test_hashes(tmp_path: Path) -> None:
    """Every file of a folder, by its name with "/", has the hash that hashlib gives for all its bytes."""
    (tmp_path / "sub").mkdir()
    contents = {"a.bin": os.urandom(3 * 2**20 + 7), "empty": b"", "sub/b.txt": b"b"}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    expected = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    heard: list[tuple[int, int]] = []
    assert hashes(tmp_path, progress=lambda done, total: heard.append((done, total))) == expected
    assert list(hashes(tmp_path)) == sorted(expected)
    assert hashes(tmp_path / "a.bin") == {"a.bin": expected["a.bin"]}
    assert heard[-1] == (3 * 2**20 + 8, 3 * 2**20 + 8)


def test_links_and_pipes(tmp_path: Path) -> None:
    """Links are followed, once; a link that leads nowhere is an error; a pipe is no file."""
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "blob").write_bytes(b"blob")
    (folder / "weights").symlink_to("../blob")
    (folder / "loop").symlink_to(folder)
    os.mkfifo(folder / "pipe")
    assert hashes(folder) == {"weights": hashlib.sha256(b"blob").hexdigest()}
    (tmp_path / "blob").unlink()
    with pytest.raises(MissingShardError, match="weights is a link"):
        files_in(folder)
    with pytest.raises(FileNotFoundError, match="There is no"):
        files_in(tmp_path / "nothing")


def always(**outputs: Tensor) -> Callable[[], dict[str, Tensor]]:
    """A run that gives these outputs."""
    return lambda: outputs


def in_turn(*runs: dict[str, Tensor]) -> Callable[[], dict[str, Tensor]]:
    """Runs that give these outputs, one after the other."""
    rest: Iterator[dict[str, Tensor]] = iter(runs)
    return lambda: next(rest)


RANDOM = torch.randn(4, 10, generator=torch.Generator().manual_seed(0))
NAN = torch.tensor([[1.0, float("nan"), 2.0]])
MASK = torch.cat([RANDOM, torch.full((4, 1), -float("inf"))], 1)


def test_a_good_reference() -> None:
    """One that repeats itself and says something has no problems, and its facts are plain."""
    found = reference_sanity(always(logits=RANDOM, hidden=RANDOM.half()))
    assert found["steady"]
    assert found["finite"]
    assert not found["degenerate"]
    assert (found["problems"], found["weak"], found["repeat_max_abs"]) == ([], [], 0.0)
    assert found["largest"] == float(RANDOM.half().abs().max())
    assert found["outputs"]["logits"]["shape"] == [4, 10]
    assert json.loads(json.dumps(found, allow_nan=False)) == found


@pytest.mark.parametrize(
    ("run", "problem"),
    [
        pytest.param(in_turn({"x": RANDOM}, {"x": RANDOM + 1}), "two runs .* differ by up to 1", id="unsteady"),
        pytest.param(in_turn({"x": RANDOM}, {"x": RANDOM * (1 + 1e-4)}), "two runs", id="a-little-unsteady"),
        pytest.param(in_turn({"x": RANDOM}, {"x": RANDOM[:3]}), "in shape", id="other-shapes"),
        pytest.param(in_turn({"x": RANDOM}, {"y": RANDOM}), "in shape", id="other-outputs"),
        pytest.param(in_turn({"x": RANDOM}, {"x": RANDOM.log()}), "in shape, or in NaN", id="nan-once"),
        pytest.param(always(x=NAN), "x has 1 NaN", id="nan"),
        pytest.param(always(x=torch.tensor([1.0, float("inf")])), "x has 1 NaN or infinite", id="infinity"),
        pytest.param(always(x=MASK), "x has 4 NaN or infinite", id="minus-infinity-of-no-logits"),
        pytest.param(always(x=RANDOM * 1e-7), "zero but for rounding", id="noise"),
        pytest.param(always(x=RANDOM * 1e-7, y=RANDOM), "x is zero but for rounding", id="noise-among-others"),
        pytest.param(always(x=torch.zeros(3)), "is 0 everywhere", id="zero"),
        pytest.param(always(x=torch.full((3, 3), 5.0)), "is 5 everywhere", id="all-equal"),
        pytest.param(always(x=5 + RANDOM * 1e-7), "is 5 everywhere", id="all-equal-up-to-rounding"),
        pytest.param(always(matches=torch.full((3, 3), -1)), "is -1 everywhere", id="no-match"),
        pytest.param(always(x=torch.zeros(0, 3)), "is empty", id="empty"),
        pytest.param(always(logits=torch.full((2, 3), -float("inf"))), "no finite element", id="all-masked"),
        pytest.param(always(), "no tensors", id="nothing"),
    ],
)
def test_no_reference(run: Callable[[], dict[str, Tensor]], problem: str) -> None:
    """What cannot be verified against is told, with the reason."""
    found = reference_sanity(run)
    assert any(re.search(problem, text) for text in found["problems"])
    assert json.loads(json.dumps(found, allow_nan=False)) == found


@pytest.mark.parametrize(
    "run",
    [
        pytest.param(in_turn({"x": RANDOM}, {"x": RANDOM * (1 + 2e-7)}), id="rounding-of-another-order"),
        pytest.param(always(logits=MASK), id="masked-logits"),
        pytest.param(always(loss=torch.tensor(2.5)), id="one-number"),
        pytest.param(always(matches=torch.tensor([0, -1, 3])), id="integers"),
        pytest.param(always(small=RANDOM * 1e-3), id="small"),
    ],
)
def test_still_a_reference(run: Callable[[], dict[str, Tensor]]) -> None:
    """What only looks odd is no problem."""
    assert reference_sanity(run)["problems"] == []


def test_one_class_for_all() -> None:
    """Logits with the same class on top everywhere are a reference whose top class says nothing."""
    biased = RANDOM + torch.eye(10)[3] * 100
    found = reference_sanity(always(logits=biased))
    assert found["problems"] == []
    assert found["weak"] == ["logits: class 3 is on top in all 4 rows, so agreement on it says nothing"]
    pixels = biased.T.reshape(1, 10, 2, 2)
    assert "class 3" in reference_sanity(always(logits=pixels))["weak"][0]


def test_a_mask_among_others() -> None:
    """An output that is constant beside one that is not is told, and is no reason to refuse."""
    found = reference_sanity(always(mask=torch.ones(2, 3), hidden=RANDOM))
    assert not found["degenerate"]
    assert (found["problems"], found["weak"]) == ([], ["mask is 1 everywhere, up to rounding"])


def test_ids_beside_numbers() -> None:
    """Ids that vary do not make a reference of numbers that are all the same; ids alone are one."""
    ids = torch.arange(6)
    assert reference_sanity(always(ids=ids, x=torch.ones(2, 3)))["degenerate"]
    assert reference_sanity(always(ids=ids))["problems"] == []
    assert reference_sanity(always(ids=ids * 1000, x=RANDOM))["largest"] == float(RANDOM.abs().max())


def test_unsteady_ids() -> None:
    """Ids that differ between two runs are other ids, however large they are."""
    runs = iter([torch.tensor([10**6, 5]), torch.tensor([10**6 + 1, 5])])
    found = reference_sanity(lambda: {"x": RANDOM, "ids": next(runs)})
    assert (found["steady"], found["repeat_max_abs"]) == (False, 1.0)


@pytest.mark.parametrize(
    ("name", "problem"),
    [("lightglue", "matching_scores is zero but for rounding"), ("vilt", "two runs on the same inputs"), ("vit", "")],
)
def test_real_models(name: str, problem: str) -> None:
    """LightGlue with random weights and ViLT, which draws its patches, are refused; a ViT is not."""
    specimen = ZOO[name]
    model, inputs = specimen.model(), specimen.inputs()

    def run() -> dict[str, Tensor]:
        with torch.inference_mode():
            outputs = model(**inputs)
        return {key: value for key, value in outputs.items() if isinstance(value, Tensor)}

    found = reference_sanity(run)["problems"]
    assert len(found) == bool(problem)
    assert problem in "".join(found)


def test_outputs_may_share_memory() -> None:
    """A model that writes every answer into the same memory is still seen to be unsteady."""
    memory = torch.zeros(4)

    def run() -> dict[str, Tensor]:
        memory.add_(torch.arange(4))
        return {"x": memory}

    assert not reference_sanity(run)["steady"]
