"""Folders of OpenVINO: what optimum-intel writes in an environment of its own, and what OpenVINO makes of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from command_run import Run, run  # noqa: F401  # a fixture
from conftest import ROOT
from safe_dtype.integrations.openvino import export_openvino
from safe_dtype.integrations.openvino.in_its_environment import VIA, run_inside
from safe_dtype.integrations.optimum import VIAS, environment, pins_of
from safe_dtype.integrations.optimum.virtual_environment import python_of

from safe_dtype.errors import EnvironmentNotFitError, NotExportableError

TINY = ROOT / "examples" / "tiny-qwen3"
PARAMETERS = json.loads((TINY / "model.safetensors.index.json").read_text())["metadata"]["total_parameters"]


def test_starts_without_torch() -> None:
    """Importing the package imports neither torch nor openvino."""
    code = "import sys, safe_dtype.integrations.openvino; sys.exit(bool({'torch', 'openvino'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_pins() -> None:
    """Its environment has the transformers that optimum-intel wants, and no form of `optimize` comes of it."""
    assert {"optimum-intel==2.2.0", "transformers==5.5.4"} < set(pins_of(VIA))
    assert VIA not in VIAS


def test_refused_before_anything_is_run(tmp_path: Path) -> None:
    """A folder that is there, and words that nobody knows, are refused at once."""
    with pytest.raises(NotExportableError, match="already"):
        export_openvino(TINY, tmp_path)
    for named in ({"kind": "F16"}, {"compute": "fp32"}):
        with pytest.raises(NotExportableError, match="is known here"):
            export_openvino(TINY, tmp_path / "out", **{"kind": "FP16", **named})
    assert not list(tmp_path.iterdir())


def test_interpreter_without_optimum(tmp_path: Path) -> None:
    """One that lacks optimum-intel is named, with what to install."""
    job = {"model": str(TINY), "revision": None, "out": str(tmp_path / "out"), "kind": "FP32"}
    with pytest.raises(EnvironmentNotFitError, match=r"No module named 'optimum.*optimum-intel\[openvino\]"):
        run_inside(job, tmp_path, python=sys.executable, progress=lambda _: None)


@pytest.fixture(scope="module")
def python() -> Path:
    """An interpreter with optimum-intel: the one that `SAFE_DTYPE_OPTIMUM_INTEL` names, else that of a new environment."""
    named = os.environ["SAFE_DTYPE_OPTIMUM_INTEL"]
    return Path(named) if named else python_of(environment(VIA))


@pytest.mark.slow
@pytest.mark.needs("openvino")
class TestOpenvino:
    """What OpenVINO itself computes."""

    @pytest.mark.parametrize(("kind", "limit"), [("FP32", 1e-6), ("BF16", 1e-6), ("FP16", 1e-6), ("INT8", 5e-3)])
    def test_in_float32(self, kind: str, limit: float, python: Path, tmp_path: Path) -> None:
        """Told to compute in float32, it is as near to the checkpoint as the stored weights are."""
        exported = export_openvino(TINY, tmp_path / "out", kind=kind, compute="f32", python=python)
        assert exported.computed == "f32"
        assert exported.beyond is None
        assert exported.drift.kl_mean < limit
        assert exported.drift.positions > 400
        assert exported.bytes == sum(
            (tmp_path / "out" / f"openvino_model.{end}").stat().st_size for end in ("xml", "bin")
        )
        least = 1 if kind == "INT8" else 4 if kind == "FP32" else 2  # bytes of a weight
        assert least <= exported.bytes / PARAMETERS < least + 0.5
        assert (tmp_path / "out" / "openvino_tokenizer.xml").exists()
        assert [path.name for path in tmp_path.iterdir()] == ["out"]

    def test_beyond_the_limit(self, python: Path, tmp_path: Path, run: Run) -> None:  # noqa: F811
        """Where it drifts too far no folder is left, and the status of the command is 3."""
        words = (
            "--type",
            "int8",
            "--compute",
            "f32",
            "--python",
            str(python),
            "--max-drift",
            "1e-9",
            "--format",
            "json",
        )
        done = run("export", "openvino", str(TINY), "--out", str(tmp_path / "out"), *words)
        assert done.returncode == 3
        assert json.loads(done.stdout)["beyond"]
        assert not list(tmp_path.iterdir())

    def test_model_that_it_does_not_know(self, python: Path, tmp_path: Path) -> None:
        """What optimum-intel cannot export is refused with its error."""
        import transformers as tf

        config = tf.BertConfig(vocab_size=2048, hidden_size=32, intermediate_size=64, num_hidden_layers=1,
                               num_attention_heads=2)  # fmt: skip
        tf.BertForMaskedLM(config).save_pretrained(tmp_path / "model")
        tf.AutoTokenizer.from_pretrained(TINY).save_pretrained(tmp_path / "model")
        with pytest.raises(NotExportableError, match="optimum-intel and OpenVINO ended with status"):
            export_openvino(tmp_path / "model", tmp_path / "out", kind="FP32", python=python)
        assert not (tmp_path / "out").exists()
