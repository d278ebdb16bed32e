"""What was optimized is loaded as one callable, whatever its form."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from optimizing.form_models import Ids, Mlp
from optimizing.made import INPUTS, Sum, expected, inductor, keep_original, missing_here, optimized, record_of
from optimizing.zoo_matching import MATCHING, near_pairs
from safetensors.torch import save_file

from safe_dtype import guard, report
from safe_dtype.errors import (
    NoSuchDeviceError,
    NotGuardedError,
    NotOptimizedError,
    SafeDtypeWarning,
    UntrustedFolderError,
)
from safe_dtype.facts import BFLOAT16, FLOAT16, FLOAT32
from safe_dtype.optimizing.attempts.load_model import apply_remedies
from safe_dtype.optimizing.attempts.runner import run_attempt
from safe_dtype.optimizing.environment import hashes
from safe_dtype.optimizing.nouns.job import Dynamic, Job
from safe_dtype.optimizing.nouns.record import FormAttempt, Outcome, Status
from safe_dtype.optimizing.nouns.record_file import write_record
from safe_dtype.optimizing.serving.optimized import GIVEN_UP_AFTER, eager_twin, load_optimized
from safe_dtype.optimizing.serving.trust import remember_made

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.mark.slow
def test_made_by_children(tmp_path: Path) -> None:
    """What children made and verified is loaded here."""
    out = tmp_path
    keep_original(Mlp(), out)
    save_file(INPUTS, out / "traced.safetensors")
    job = Job(
        out / "original/model.pt", "", FLOAT32, "export", out / "attempts/00", out / "traced.safetensors",
        dynamic=Dynamic((1, 8)), time=False,
    )  # fmt: skip
    attempt = run_attempt(job, root=out, seconds=120)
    assert attempt.outcome is Outcome.VERIFIED, attempt.reason
    attempt = replace(attempt, artifact_files=hashes(out / attempt.artifact))
    found = record_of(attempt, "", INPUTS, {"batch": [1, 8]})
    write_record(found, out)
    remember_made(out, found)
    torch.testing.assert_close(load_optimized(out)(**INPUTS), expected(Mlp(), INPUTS))


@pytest.mark.needs("torch>=2.13")
def test_export(mlp: Path) -> None:
    """An exported program answers as eager does, in every batch size of its range."""
    loaded = load_optimized(mlp)
    for size in (1, 5, 8):
        inputs = {"x": torch.randn(size, 16)}
        torch.testing.assert_close(loaded(**inputs), expected(Mlp(), inputs))
    assert (loaded.form, loaded.dtype, loaded.fell_back) == ("export", FLOAT32, "")
    assert repr(loaded) == "<Optimized tiny as export in float32 on cpu>"


@inductor
@pytest.mark.parametrize(
    "form",
    [
        "eager",
        "torchscript",
        pytest.param("onnx", marks=pytest.mark.slow),
        pytest.param("compile", marks=pytest.mark.slow),
        pytest.param("partial", marks=pytest.mark.slow),
        pytest.param("regional", marks=pytest.mark.slow),
        pytest.param("aoti", marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_one_callable(form: str, tmp_path: Path) -> None:
    """Whatever the form, it is called in the same way, with other batch sizes and with inputs in other strides."""
    if reason := missing_here(form):
        pytest.skip(reason)
    optimized(Mlp(), tmp_path / "out", form, regions=("first",) if form == "regional" else ())
    loaded = load_optimized(tmp_path / "out")
    for inputs in (INPUTS, {"x": torch.randn(5, 16)}, {"x": torch.randn(16, 5).T}):
        answer = loaded(**inputs)
        torch.testing.assert_close(answer, expected(Mlp(), inputs))
        assert not answer["logits"].requires_grad
    assert loaded.fell_back == ""


@pytest.mark.needs("torch>=2.13")
@pytest.mark.parametrize("form", ["eager", "export", "torchscript"])
def test_other_dtypes(form: str, tmp_path: Path) -> None:
    """Ids, counts and masks are answered in their dtypes: by the form, by eager in its place, and beside a NaN."""
    inputs = {"x": INPUTS["x"], "mask": torch.tensor([[True, False], [True, True]])}
    optimized(Ids(), tmp_path / "out", form, inputs=inputs)
    loaded = load_optimized(tmp_path / "out")
    for x in (inputs["x"], torch.full((2, 16), torch.nan)):
        changed = {**inputs, "x": x}
        torch.testing.assert_close(loaded(**changed), expected(Ids(), changed), equal_nan=True)
    assert loaded.fell_back == ""
    larger = {"x": torch.randn(9, 16), "mask": torch.ones(9, 2, dtype=torch.bool)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SafeDtypeWarning)  # that eager answered, for the form that has a range
        torch.testing.assert_close(loaded(**larger), expected(Ids(), larger))


@pytest.mark.parametrize("name", MATCHING)
def test_matches(name: str, tmp_path: Path) -> None:
    """Models that match keypoints answer with the indices of real matches, whatever the size of the pictures."""
    torch.manual_seed(0)
    model = MATCHING[name]().eval()
    optimized(model, tmp_path / "out", "eager", inputs=near_pairs(1, 2, 2))
    loaded = load_optimized(tmp_path / "out")
    for inputs in (near_pairs(2, 2, 2), near_pairs(3, 1, 3)):
        outputs = loaded(**inputs)
        torch.testing.assert_close(outputs, expected(model, inputs))
        assert outputs["matches"].dtype == torch.long
        assert (outputs["matches"] > -1).any()


def test_cast(tmp_path: Path) -> None:
    """Float inputs are cast to the dtype of the form."""
    optimized(Mlp(), tmp_path / "out", "torchscript", dtype=BFLOAT16, inputs={"x": INPUTS["x"].bfloat16()})
    loaded = load_optimized(tmp_path / "out")
    answer = loaded(x=INPUTS["x"].double())
    assert {one.dtype for one in answer.values()} == {torch.bfloat16}
    assert loaded.fell_back == ""


@pytest.mark.needs("torch>=2.13")
def test_beyond_the_range(mlp: Path) -> None:
    """A size that the form was not made for goes to eager, is warned of once, and is not held against the form."""
    loaded = load_optimized(mlp)
    inputs = {"x": torch.randn(9, 16)}
    with pytest.warns(SafeDtypeWarning, match=r"dimension 0 of x is 9, and not 1\.\.8\. Eager .* answered") as warned:
        answers = [loaded(**inputs) for _ in range(GIVEN_UP_AFTER + 1)]
    assert len(warned) == 1
    assert warned[0].filename == __file__, "it points at the call"
    torch.testing.assert_close(answers[-1], expected(Mlp(), inputs))
    assert "dimension 0 of x" in loaded.fell_back
    assert not loaded.given_up
    loaded(**INPUTS)


@pytest.mark.needs("torch>=2.13")
@pytest.mark.parametrize(
    "inputs",
    [
        pytest.param({}, id="missing"),
        pytest.param({"y": INPUTS["x"]}, id="wrong-name"),
        pytest.param({**INPUTS, "y": INPUTS["x"]}, id="one-too-many"),
        pytest.param({"x": torch.ones(2, 16, dtype=torch.long)}, id="wrong-dtype"),
        pytest.param({"x": torch.ones(2, 17)}, id="wrong-shape"),
        pytest.param({"x": [1.0] * 16}, id="no-tensor"),
    ],
)
@inductor
@pytest.mark.parametrize("form", ["export", pytest.param("partial", marks=pytest.mark.slow)], ids=str)
def test_mistake_of_the_caller(form: str, inputs: dict[str, Any], mlp: Path, tmp_path: Path) -> None:
    """What eager refuses, too, raises eager's error, without a warning, as often as it is tried."""
    if form == "partial":
        optimized(Mlp(), tmp_path / "out", form)
    loaded = load_optimized(mlp if form == "export" else tmp_path / "out")
    with pytest.raises((TypeError, RuntimeError)) as of_eager:
        Mlp()(**inputs)
    for _ in range(GIVEN_UP_AFTER):
        with pytest.raises(of_eager.type) as raised:
            loaded(**inputs)
        assert str(raised.value) == str(of_eager.value)
    assert loaded.fell_back == ""


def test_twin() -> None:
    """A form is built on the same memory as eager, and neither sees what is done to the other."""
    sizes = {"num_hidden_layers": 1, "hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
    model = guard(tf.ViTForImageClassification(tf.ViTConfig(**sizes, image_size=16, patch_size=8, num_labels=5)))
    twin = eager_twin(model)
    for (name, own), shared in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert own.data_ptr() == shared.data_ptr(), name
    before = model.config._attn_implementation
    apply_remedies(twin, ("attn_implementation=eager",))
    assert (model.config._attn_implementation, twin.config._attn_implementation) == (before, "eager")
    for one in model.parameters():  # as the guard does when it leaves a dtype
        one.data = one.data.bfloat16()
    assert {one.dtype for one in twin.parameters()} == {torch.float32}
    with pytest.raises(NotGuardedError):
        report(twin)


def test_transformers(tmp_path: Path) -> None:
    """The original of a transformers model is loaded in the form's dtype, on first use and guarded."""
    torch.manual_seed(0)
    sizes = {"num_hidden_layers": 1, "hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
    model = tf.ViTForImageClassification(tf.ViTConfig(**sizes, image_size=16, patch_size=8, num_labels=5))
    inputs = {"pixel_values": torch.randn(2, 3, 16, 16)}
    optimized(model, tmp_path / "out", "eager", dtype=BFLOAT16, inputs=inputs)
    loaded = load_optimized(tmp_path / "out", trust=False)
    assert loaded(**inputs)["logits"].dtype == torch.bfloat16
    assert isinstance(loaded.eager(), tf.ViTForImageClassification)
    assert loaded.eager() is loaded.eager()
    assert report(loaded.eager()).dtype == BFLOAT16


@pytest.mark.needs("torch>=2.13")
@inductor
def test_threads(tmp_path: Path) -> None:
    """Threads that come first at the same time build the form once, and all are answered."""
    optimized(Mlp(), tmp_path / "out", "partial")
    loaded = load_optimized(tmp_path / "out")
    built = []
    build = loaded._built

    def counted(given: Mapping[str, Any]) -> Any:
        built.append(threading.get_ident())
        return build(given)

    loaded._built = counted  # type: ignore[method-assign]
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: loaded(**INPUTS), range(8)))
    assert len(built) == 1
    for answer in answers:
        torch.testing.assert_close(answer, expected(Mlp(), INPUTS))


def test_other_attempt(tmp_path: Path) -> None:
    """Another attempt is loaded by its number, where it was verified and its files were kept."""
    found = optimized(Mlp(), tmp_path / "out", "torchscript")
    wrong = FormAttempt("onnx", FLOAT16, Outcome.WRONG)
    gone = FormAttempt("export", FLOAT32, Outcome.VERIFIED)
    eager = FormAttempt("eager", FLOAT16, Outcome.VERIFIED)
    write_record(replace(found, attempts=(*found.attempts, wrong, gone, eager)), tmp_path / "out")
    assert load_optimized(tmp_path / "out").form == "torchscript"
    loaded = load_optimized(tmp_path / "out", attempt=3)
    assert (loaded.form, loaded.dtype) == ("eager", FLOAT16)
    for number, problem in (
        (1, "onnx in float16"),
        (2, "were not kept"),
        (4, "they are 0 to 3"),
        (-1, "no attempt -1"),
    ):
        with pytest.raises(NotOptimizedError, match=problem):
            load_optimized(tmp_path / "out", attempt=number)


def test_nothing_chosen(tmp_path: Path) -> None:
    """Where nothing passed there is nothing to load, and the error says why."""
    found = optimized(Mlp(), tmp_path / "out", "eager")
    write_record(replace(found, chosen=None, status=Status.NO_DTYPE, why="bfloat16: too far"), tmp_path / "out")
    with pytest.raises(NotOptimizedError, match="no form was chosen: bfloat16: too far"):
        load_optimized(tmp_path / "out")


@pytest.mark.needs("torch>=2.13")
def test_device(mlp: Path) -> None:
    """A device that is not here is an error, with those that are."""
    with pytest.raises(NoSuchDeviceError, match="Would work: cpu"):
        load_optimized(mlp, device="xla:7")


@pytest.mark.needs("torch>=2.13")
def test_original_is_gone(mlp: Path) -> None:
    """Where eager is needed and cannot be loaded, that is said."""
    loaded = load_optimized(mlp)
    (mlp / "original/model.pt").unlink()
    with pytest.raises(NotOptimizedError, match=r"the original cannot be loaded from original/model\.pt"):
        loaded(x=torch.randn(9, 16))
    loaded(**INPUTS)


@pytest.mark.needs("torch>=2.13")
def test_class_of_nobody(mlp: Path) -> None:
    """A record that names something else than a model of transformers is refused before that is touched."""
    loaded = load_optimized(mlp)
    loaded.record = replace(loaded.record, model_class="pipeline")
    with pytest.raises(NotOptimizedError, match="has no model 'pipeline'"):
        loaded.eager()


@pytest.mark.needs("torch>=2.13")
def test_foreign_folder(mlp: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was made elsewhere is loaded with `trust` only; what was changed since, not even then."""
    monkeypatch.setenv("SAFE_DTYPE_CACHE", str(tmp_path / "another machine"))
    with pytest.raises(UntrustedFolderError, match=r"a program of torch\.export, which is unpickled \(model\.pt2\)"):
        load_optimized(mlp)
    torch.testing.assert_close(load_optimized(mlp, trust=True)(**INPUTS), expected(Mlp(), INPUTS))
    added = mlp / "attempts/00/artifact/more.pt"
    added.write_bytes(b"")
    with pytest.raises(NotOptimizedError, match=r"holds files that the record does not list: more\.pt"):
        load_optimized(mlp, trust=True)
    added.unlink()
    with (mlp / "attempts/00/artifact/model.pt2").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(NotOptimizedError, match="was changed since"):
        load_optimized(mlp, trust=True)


@inductor
@pytest.mark.slow
def test_native_code_is_not_asked(tmp_path: Path) -> None:
    """A package of native code never sees a torn batch or another integer dtype, which it would answer nonsense to."""
    if reason := missing_here("aoti"):
        pytest.skip(reason)
    inputs = {"x": torch.randn(2, 16), "i": torch.ones(2, 16, dtype=torch.long)}
    optimized(Sum(), tmp_path / "out", "aoti", inputs=inputs)
    loaded = load_optimized(tmp_path / "out")
    with pytest.raises(RuntimeError, match="must match"):
        loaded(x=torch.randn(5, 16), i=torch.ones(3, 16, dtype=torch.long))
    narrow = {"x": torch.randn(5, 16), "i": torch.ones(5, 16, dtype=torch.int32)}
    with pytest.warns(SafeDtypeWarning, match="i is int32, and not int64"):
        torch.testing.assert_close(loaded(**narrow), expected(Sum(), narrow))
    strided = {"x": torch.randn(16, 5).T, "i": torch.arange(80).reshape(16, 5).T}
    torch.testing.assert_close(loaded(**strided), expected(Sum(), strided))
