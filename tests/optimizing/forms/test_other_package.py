"""A form that another package brings: one module, and an entry point."""

from __future__ import annotations

import os
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from optimizing.form_models import Mlp
from optimizing.zoo import ZOO

from safe_dtype.errors import EnvironmentNotFitError, SafeDtypeWarning, UntrustedFolderError
from safe_dtype.facts import FLOAT32
from safe_dtype.optimizing import Status, load_optimized, optimize, read_record
from safe_dtype.optimizing.attempts import attempt_child
from safe_dtype.optimizing.dry_run import dry_run
from safe_dtype.optimizing.forms import GROUP, find_form, form_named, form_names, forms
from safe_dtype.optimizing.nouns.form import FormTarget
from safe_dtype.optimizing.nouns.goal import Goal
from safe_dtype.optimizing.nouns.job import Job

pytestmark = pytest.mark.usefixtures("forked_children")
ROOT = Path(__file__).resolve().parents[3]
# Loads a folder once for every cache: a new one is that of a user who has made nothing.
LOAD = """
import os, sys
from safe_dtype import SafeDtypeError, load_optimized
for cache, trust in (one.split("=") for one in sys.argv[2:]):
    os.environ["SAFE_DTYPE_CACHE"] = cache
    try:
        print(repr(load_optimized(sys.argv[1], trust=trust == "trust")))
    except SafeDtypeError as exc:
        print(type(exc).__name__, str(exc).replace(chr(10), " "))
"""


def install(site: Path, *entry_points: str) -> None:
    """Write what an installer leaves of a package with these entry points."""
    about = site / "other_forms-1.0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: other-forms\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("\n".join((f"[{GROUP}]", *entry_points)))


@pytest.fixture
def snapshot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which the form `snapshot` is installed."""
    install(tmp_path / "site", "snapshot = optimizing.snapshot_form:FORM")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    return tmp_path / "site"


def loaded_elsewhere(out: Path, *loads: str) -> list[str]:
    """Load a folder in a process of its own, once for every CACHE=trust or CACHE=; return what each came to."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", LOAD, str(out), *loads]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.splitlines()


@pytest.mark.slow
def test_to_the_end(snapshot: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is made, verified and loaded again by child processes, reported, trusted like any file, and missed when gone."""
    monkeypatch.setenv("SAFE_DTYPE_CACHE", str(tmp_path / "cache"))
    ZOO["vit"].model().save_pretrained(tmp_path / "vit")
    out = tmp_path / "out"
    found = optimize(tmp_path / "vit", out=out, form="snapshot", dtype="float32", device="cpu", seconds=240)
    assert (found.status, found.winner.form, found.winner.dtype) == (Status.REACHED, "snapshot", FLOAT32), found.why
    assert [stage.name for stage in found.winner.stages] == ["traced", "held out", "reloaded"]
    assert list(found.winner.artifact_files) == ["model.snapshot"]
    assert "snapshot in float32: the module itself, in inference mode" in (out / "report.md").read_text()
    assert load_optimized(out).fell_back == ""

    ours, strangers = tmp_path / "cache", tmp_path / "other-cache"
    mine, refused, trusted = loaded_elsewhere(out, f"{ours}=", f"{strangers}=", f"{strangers}=trust")
    assert refused.startswith(UntrustedFolderError.__name__)
    assert "a pickled module (model.snapshot)" in refused
    for loaded in (mine, trusted):
        assert "snapshot in float32" in loaded
        assert "now eager" not in loaded

    monkeypatch.setattr(sys, "path", [one for one in sys.path if one != str(snapshot)])
    assert read_record(out) == found
    with pytest.warns(SafeDtypeWarning, match="no package that is installed here brings this form"):
        assert load_optimized(out).given_up


def test_listed(snapshot: Path) -> None:
    """It stands on the ladder at its rank, in the dry run and among the choices of the command."""
    assert form_names()[-1] == "snapshot"
    assert [form.name for form in forms()][:3] == ["eager", "snapshot", "export"]
    model = ROOT / "examples" / "tiny-qwen3"
    assert "  1  snapshot    the module itself, in inference mode" in dry_run(str(model), Goal(device="cpu")).as_text()
    done = subprocess.run(
        [sys.executable, "-m", "safe_dtype", "optimize", "--help"], capture_output=True, text=True, check=False,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert "snapshot" in done.stdout


def test_not_as_promised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """An entry point that cannot be imported, or leads to something else, costs only itself; ours keep their names."""
    install(
        tmp_path / "site", "gone = no_such_module:FORM", "odd = json:dumps", "renamed = optimizing.snapshot_form:FORM",
        "eager = optimizing.snapshot_form:FORM",
    )  # fmt: skip
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    assert {"gone", "odd", "renamed"} < set(form_names())
    assert not {form.name for form in forms()} & {"gone", "odd", "renamed", "snapshot"}
    for text in ("gone of no_such_module:FORM cannot be imported", "odd = json:dumps is no Form", "renamed = "):
        assert text in caplog.text
    assert find_form("gone") is None
    with pytest.raises(EnvironmentNotFitError, match="the form gone, for no_such_module:FORM cannot be imported"):
        form_named("gone")
    assert (
        "the form eager of optimizing.snapshot_form:FORM is left out: a form of safe_dtype has that name"
        in caplog.text
    )
    assert form_named("eager").about.startswith("as it is")
    assert form_names().count("eager") == 1


@pytest.mark.parametrize(
    "code",
    [
        pytest.param("raise RuntimeError('of its own')", id="raises"),
        pytest.param("import sys; sys.exit(7)", id="exits", marks=pytest.mark.slow),
        pytest.param("def (", id="no-python", marks=pytest.mark.slow),
    ],
)
def test_module_raises(
    code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A form whose module raises anything at all costs only itself; who asks for it gets one message and status 5."""
    install(tmp_path / "site", "broken = broken_form:FORM")
    (tmp_path / "site" / "broken_form.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    assert [form.name for form in forms()][:2] == ["eager", "export"]
    assert "the form broken of broken_form:FORM cannot be imported" in caplog.text
    done = subprocess.run(
        [sys.executable, "-m", "safe_dtype", "optimize", "examples/tiny-qwen3", "--form", "broken", "--dry-run"],
        capture_output=True, text=True, check=False, cwd=ROOT, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert (done.returncode, "Traceback" in done.stderr) == (5, False), done.stderr


FIELDS = """
from safe_dtype.optimizing import Form
def fails(target): raise RuntimeError("of its own")
def leaves(*_): raise SystemExit(3)
FORM = Form(**dict(name="odd", rank=3, about="odd", build=leaves) | dict({fields}))
"""


@pytest.mark.parametrize(
    ("fields", "logged"),
    [
        pytest.param("rank='first'", "rank of the form 'odd' must be a whole number, not 'first'", id="rank"),
        pytest.param("rank=None", "must be a whole number, not None", id="no-rank"),
        pytest.param("build=None", "build of the form 'odd' must be a function", id="build"),
        pytest.param("files=('.x',)", "files of the form 'odd' must be a tuple of FileKind", id="files"),
        pytest.param("graph='whole'", "graph of the form 'odd' must be a GraphNeed", id="graph"),
    ],
)
def test_fields_of_the_wrong_type(
    fields: str, logged: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A form with a field that cannot be used is left out, and the log names the field."""
    module_of(fields, tmp_path, monkeypatch)
    assert "odd" not in [form.name for form in forms()]
    assert logged in caplog.text


@pytest.mark.parametrize(
    ("fields", "needed"),
    [
        pytest.param("missing_to_build=fails", r"what odd needs (RuntimeError: of its own)", id="raises"),
        pytest.param("missing_to_build=leaves", "what odd needs (SystemExit: 3)", id="exits"),
        pytest.param("missing_to_build=lambda _: 5", "5", id="no-text"),
        pytest.param("missing_to_build=lambda: ''", "what odd needs (TypeError", id="wrong-signature"),
    ],
)
def test_needs_that_cannot_be_told(fields: str, needed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A form that cannot say what it needs is not tried; the others are, and who asks for it is told why."""
    module_of(fields, tmp_path, monkeypatch)
    planned = dry_run(str(ROOT / "examples" / "tiny-qwen3"), Goal(device="cpu")).as_text()
    assert needed in next(line for line in planned.splitlines() if " odd " in line)
    assert " export " in planned
    with pytest.raises(EnvironmentNotFitError) as raised:
        optimize(ROOT / "examples" / "tiny-qwen3", out=tmp_path / "out", form="odd")
    assert needed in str(raised.value)


@pytest.mark.slow
def test_build_that_exits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A form that ends the process in which it is made has failed, and another one takes its place."""
    module_of("", tmp_path, monkeypatch)
    ZOO["vit"].model().save_pretrained(tmp_path / "vit")
    record = optimize(tmp_path / "vit", out=tmp_path / "out", form="odd", dtype="float32", device="cpu", seconds=240)
    (attempt,) = (one for one in record.attempts if one.form == "odd")
    assert not attempt.artifact
    assert str(attempt.outcome) in ("failed", "crashed")
    assert record.winner is not None
    assert record.winner.form != "odd"


def module_of(fields: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Install the form `odd`, with these fields in place of its own."""
    name = f"odd_{sha256(fields.encode()).hexdigest()[:8]}"  # a module of its own for each: imports are kept
    install(tmp_path / "site", f"odd = {name}:FORM")
    (tmp_path / "site" / f"{name}.py").write_text(FIELDS.format(fields=fields))
    monkeypatch.syspath_prepend(str(tmp_path / "site"))


def test_needs_any_package() -> None:
    """A form may need packages that none of ours needs: whether they are there is found out."""
    target = FormTarget({"packages": {"onnx": None}})
    assert target.without("onnx", "no_such_package", "click") == "the packages onnx, no_such_package"


def test_eager_is_timed_alone(snapshot: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a form is timed against looks for no form: that takes milliseconds, and would count as eager's."""
    model, batch = Mlp(), {"x": torch.ones(2, 16)}
    job = Job(tmp_path, "", FLOAT32, "snapshot", tmp_path, tmp_path)
    eager = attempt_child.timed_against(model, batch, job)
    monkeypatch.setattr(sys, "path", [one for one in sys.path if one != str(snapshot)])
    eager()
