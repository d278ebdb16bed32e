"""The plugin of vLLM: what a model is served in, what is refused, and how vLLM calls it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT
from engineered import saved as save_engineered
from factories import AVX2_CPU, checkpoint, verdict
from recorded_cpu import record_for_children
from safe_dtype.integrations.vllm import register
from safe_dtype.integrations.vllm.as_vllm_runs import VllmRuntime, as_vllm_runs
from safe_dtype.integrations.vllm.choose_dtype import choose_dtype, main
from vllm_interface import install

import safe_dtype
from safe_dtype import BFLOAT16, FLOAT16, FLOAT32, Policy
from safe_dtype.errors import EnvironmentNotFitError, NotServableError
from safe_dtype.facts import VerdictKind
from safe_dtype.loading import Request, plan_request
from safe_dtype.planning import make_plan

EVERYTHING = VllmRuntime((BFLOAT16, FLOAT16, FLOAT32))
BEFORE_8 = VllmRuntime((FLOAT16, FLOAT32))  # as vLLM has it on a T4 or V100

Saved = Callable[..., Path]


def chosen(folder: Path, runtime: VllmRuntime = EVERYTHING, policy: str = "", **arguments: Any) -> Any:
    """Return what vLLM is told for a model."""
    return choose_dtype(Request(str(folder), arguments, "cpu"), runtime, Policy.parse(policy))


# What is chosen


def test_as_vllm_runs() -> None:
    """Of a device vLLM has the plain products, in the dtypes that it has there, and what memory it makes of it."""
    facts = as_vllm_runs(AVX2_CPU, BEFORE_8, "qwen3")
    assert facts.verdict(BFLOAT16).kind is VerdictKind.UNSUPPORTED
    assert facts.verdict(BFLOAT16).reason == "vLLM has no bfloat16 on this device"
    assert facts.verdict(FLOAT16) == AVX2_CPU.verdict(FLOAT16)
    assert facts.memory.has_room_for(10**15)
    refused = as_vllm_runs(AVX2_CPU, VllmRuntime(without_float16=("gemma2",)), "gemma2")
    assert refused.verdict(FLOAT16).reason == "vLLM refuses float16 to gemma2"
    assert refused.verdict(BFLOAT16).kind is VerdictKind.SLOW


def test_as_planned(saved: Saved) -> None:
    """A model is served in the dtype that it would be loaded in."""
    assert chosen(saved(), policy="auto,prefer=memory").dtype == "bfloat16"
    assert chosen(saved(dtype="float32")).dtype == "float32"  # vLLM itself would round it to 16 bit


def test_order(saved: Saved) -> None:
    """A dtype that is passed is an order."""
    told = chosen(saved(), dtype="float32")
    assert (told.dtype, told.reason) == ("float32", "as asked for")


def test_products_of_ours_do_not_count() -> None:
    """Where bfloat16 is fast only by products in float32, which are ours, vLLM is told float32."""
    older = replace(
        AVX2_CPU, verdicts=(*AVX2_CPU.verdicts, verdict(BFLOAT16, VerdictKind.NATIVE, 11, 95, op="matmul_cast"))
    )
    plan = make_plan(older, checkpoint(BFLOAT16))
    assert (plan.storage, plan.compute) == (BFLOAT16, FLOAT32)
    plan = make_plan(as_vllm_runs(older, EVERYTHING, "qwen3"), checkpoint(BFLOAT16))
    assert (plan.storage, plan.compute) == (FLOAT32, FLOAT32)


def test_order_that_vllm_lacks(saved: Saved) -> None:
    """bfloat16 below capability 8.0 is replaced with a warning, as an order that cannot be obeyed is elsewhere."""
    told = chosen(saved(), BEFORE_8, dtype="bfloat16")
    assert told.dtype in ("float16", "float32")
    assert "bfloat16 was asked for" in told.warnings[0]
    assert "vLLM has no bfloat16 on this device" in told.warnings[0]


def test_strict_order(saved: Saved) -> None:
    """In strict mode it is refused."""
    with pytest.raises(NotServableError, match="vLLM has no bfloat16 on this device"):
        chosen(saved(), BEFORE_8, "strict", dtype="bfloat16")


def test_nothing_left(saved: Saved) -> None:
    """Where no dtype is left, that is the error, with the reason for each."""
    with pytest.raises(NotServableError, match="vLLM has no float32 on this device"):
        chosen(saved(), VllmRuntime(()))


def test_left_to_vllm(tmp_path: Path, saved: Saved) -> None:
    """A quantized model is vLLM's own affair, and so is one that cannot be read."""
    folder = tmp_path / "quantized"
    folder.mkdir()
    for file in saved().iterdir():
        (folder / file.name).symlink_to(file)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").unlink()
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (folder / "config.json").write_text(json.dumps(config))
    assert chosen(folder).dtype is None
    assert "quantized with gptq" in chosen(folder).reason
    assert chosen(tmp_path / "nothing").dtype is None


# How vLLM calls it


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Plan in this process, with its recorded CPU; return the jobs."""
    jobs: list[dict[str, Any]] = []

    def status_of(module: str, order: Path, *, log: Path, end: float, settings: dict[str, str]) -> int:
        jobs.append({**json.loads(order.read_text()), **settings})
        order.with_name("answer.json").write_text(json.dumps(main(json.loads(order.read_text()))))
        return 0

    monkeypatch.setattr("safe_dtype.integrations.vllm.plugin.status_of", status_of)
    return jobs


def engine_args(patch: pytest.MonkeyPatch, *dtypes: torch.dtype, plugins: int = 3) -> Any:
    """Return vLLM's EngineArgs, whose plugins are called whenever one is made."""
    return install(patch, dtypes or (torch.bfloat16, torch.float16, torch.float32), [register] * plugins)


def test_dtype_is_replaced(saved: Saved, in_this_process: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """However often it is registered, "auto" becomes the planned dtype, and what the caller said stays as it was."""
    args = engine_args(monkeypatch)(model=str(saved(dtype="float32")))
    for _ in range(2):
        assert args.create_model_config() == {"model": args.model, "dtype": "float32"}
    assert args.dtype == "auto"
    assert len(in_this_process) == 1


def test_it_is_told(
    saved: Saved, in_this_process: list[Any], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """One line says what was chosen, and why."""
    engine_args(monkeypatch)(model=str(saved("bert"))).create_model_config()
    assert f"safe_dtype: {saved('bert')}: bfloat16 for vLLM: " in capfd.readouterr().err


def test_dtype_of_torch(saved: Saved, in_this_process: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Names that vLLM has for dtypes are understood, and dtypes of torch."""
    for ordered, told in (("half", "float16"), ("float", "float32"), (torch.bfloat16, "bfloat16")):
        args = engine_args(monkeypatch)(model=str(saved(dtype="float16")), dtype=ordered)
        assert args.create_model_config()["dtype"] == told


def test_refusal_reaches_the_caller(saved: Saved, in_this_process: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """It is raised where the engine is made: vLLM only logs what goes wrong while a plugin is imported."""
    args = engine_args(monkeypatch, torch.float16)(model=str(saved()), dtype="bfloat16")
    with safe_dtype.patched("strict"), pytest.raises(NotServableError):
        args.create_model_config()
    assert args.dtype == "bfloat16"


def test_job(saved: Saved, in_this_process: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """What vLLM knows of its platform goes along, and a token only in the environment."""
    made = engine_args(monkeypatch, torch.float16, torch.float32)
    with safe_dtype.patched("auto,prefer=fidelity"):
        made(model=str(saved("gemma2")), hf_token="hf_secret", download_dir=str(saved())).create_model_config()
    (job,) = in_this_process
    assert job["dtypes"] == ["torch.float16", "torch.float32"]
    assert (job["without_float16"], job["policy"]) == (["gemma2"], "auto,prefer=fidelity")
    assert job["arguments"] == {"cache_dir": str(saved())}
    assert job["HF_TOKEN"] == "hf_secret"


OWN_AFFAIRS = {
    "quantization": {"quantization": "fp8"},
    "format": {"load_format": "dummy"},
    "overrides": {"hf_overrides": {"architectures": ["Other"]}},
    "storage": {"model": "s3://bucket/model"},
    "mistral": {"config_format": "mistral"},
    "machines": {"nnodes": 2},
}


@pytest.mark.parametrize("case", OWN_AFFAIRS)
def test_own_affairs(case: str, in_this_process: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """What is no checkpoint as it lies there is left to vLLM, unplanned."""
    args = engine_args(monkeypatch)(**OWN_AFFAIRS[case])
    assert args.create_model_config()["dtype"] == "auto"
    assert in_this_process == []


def test_another_interface(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """A vLLM that makes its config elsewhere serves as it did, and the log says so."""
    made = engine_args(monkeypatch, plugins=0)
    del made.create_model_config
    register()
    assert "models are served as without safe_dtype" in caplog.text
    assert not hasattr(made, "create_model_config")


def test_before_vllm_is_imported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A process that has not imported what makes engines is not made to, and is prepared for when it does."""
    for name in [one for one in sys.modules if one.partition(".")[0] == "vllm"]:
        monkeypatch.delitem(sys.modules, name)
    (tmp_path / "vllm" / "engine").mkdir(parents=True)
    text = "class EngineArgs:\n    def create_model_config(self):\n        pass\n"
    (tmp_path / "vllm" / "engine" / "arg_utils.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path])
    for _ in range(2):
        register()
    assert "vllm" not in sys.modules
    made = import_module("vllm.engine.arg_utils").EngineArgs
    assert hasattr(made.create_model_config, "__wrapped__")
    for name in ("vllm.engine.arg_utils", "vllm.engine", "vllm"):
        del sys.modules[name]


def test_entry_point() -> None:
    """The project names `register` in vLLM's group of plugins."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (name,) = re.findall(r'entry-points\."vllm\.general_plugins"\]\nsafe_dtype = "([\w.:]+)"', text)
    assert name == f"{register.__module__.rpartition('.')[0]}:{register.__name__}"


def test_imports_nothing() -> None:
    """Importing the plugin takes neither torch nor vllm, which every process of vLLM pays for."""
    code = "import sys, safe_dtype.integrations.vllm; sys.exit('torch' in sys.modules or 'vllm' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.slow
class TestApart:
    """The process of its own that plans."""

    def test_answer(self, saved: Saved, monkeypatch: pytest.MonkeyPatch) -> None:
        """It measures, plans and answers."""
        record_for_children(saved(dtype="float32"))
        args = engine_args(monkeypatch)(model=str(saved(dtype="float32")))
        assert args.create_model_config()["dtype"] == "float32"

    def test_failure(self, saved: Saved, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where it cannot, the error has its last words."""
        args = engine_args(monkeypatch)(model=str(saved()), dtype="float17")
        with pytest.raises(EnvironmentNotFitError, match="float17"):
            args.create_model_config()


@pytest.fixture(name="overflowing", scope="module")
def _overflowing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a model in bfloat16 that leaves float16's range."""
    return save_engineered("qwen3", tmp_path_factory.mktemp("overflowing"))


@pytest.mark.slow
class TestOverflowing:
    """A model in bfloat16 that leaves float16's range, which an exact rescale mends: it is loaded and measured."""

    def test_without_bfloat16(self, overflowing: Path) -> None:
        """Without bfloat16 it is served in float32."""
        assert chosen(overflowing, BEFORE_8).dtype == "float32"

    def test_first_on_the_ladder(self, overflowing: Path) -> None:
        """So it is where float16 is first on the ladder, and its range is measured."""
        told = chosen(overflowing, BEFORE_8, "ladder=fp16>fp32")
        assert told.dtype == "float32"

    def test_order(self, overflowing: Path) -> None:
        """An order for float16 is refused where it needs a rescale, with what can be served in its place."""
        with pytest.raises(NotServableError, match="rescaled") as error:
            chosen(overflowing, dtype="float16")
        assert error.value.dtype == "float16"
        assert "safe-dtype publish stage --dtype float16" in str(error.value)
        assert "VLLM_PLUGINS=''" in str(error.value)


@pytest.mark.slow
@pytest.mark.needs("vllm")
class TestVllm:
    """vLLM itself, as far as it goes without a GPU: its arguments, its plugins and its config of the model."""

    @pytest.fixture(autouse=True)
    def _on_cpu(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")

    def test_planned(self, tiny_qwen3: Path) -> None:
        """It finds the plugin by itself, and its config has the dtype that is planned, or ordered."""
        from vllm.engine.arg_utils import EngineArgs

        planned = plan_request(Request(str(tiny_qwen3), {}, "cpu")).storage
        for ordered, wanted in (("auto", planned.name), ("bfloat16", "bfloat16"), ("float", "float32")):
            args = EngineArgs(model=str(tiny_qwen3), dtype=ordered)
            assert str(args.create_model_config().dtype) == f"torch.{wanted}"
            assert args.dtype == ordered

    def test_refused(self, tmp_path: Path) -> None:
        """What would overflow never becomes a config."""
        from vllm.engine.arg_utils import EngineArgs

        args = EngineArgs(model=str(save_engineered("qwen3", tmp_path)), dtype="half", skip_tokenizer_init=True)
        with pytest.raises(NotServableError, match="rescaled"):
            args.create_model_config()
