"""`--html`: each command's page is one file, has its axes and units, and takes nothing foreign for markup."""

from __future__ import annotations

import html
import shutil
from dataclasses import replace
from pathlib import Path

import factories as f
from click.testing import CliRunner
from one_file import loads_nothing

from safe_dtype.cli import cli
from safe_dtype.commands.device_page import devices_page
from safe_dtype.commands.plan_page import plan_page
from safe_dtype.commands.rescue import Rescue
from safe_dtype.commands.rescue_page import rescue_page
from safe_dtype.devices import prior_facts
from safe_dtype.facts import BFLOAT16, BlockPeak, Claim, Drift, Gauge, HalfRange, Move, Part, Rescale
from safe_dtype.planning import make_plan

TINY = Path(__file__).resolve().parents[2] / "examples" / "tiny-qwen3"
EVIL = "<script>alert(1)</script>"


def run(*arguments: object) -> int:
    """Run the command in this process; return its exit status."""
    return CliRunner().invoke(cli, [*map(str, arguments)], catch_exceptions=False).exit_code


def seen(page: str) -> str:
    """Return a page as text, for what has to be read in it."""
    loads_nothing(page)
    return html.unescape(page.replace("<wbr>", ""))


def test_doctor(tmp_path: Path) -> None:
    """Every verdict with its unit, what the verdicts mean, and where torch is wrong."""
    assert run("doctor", "--device", "cpu", "--html", tmp_path / "page.html") == 0
    page = seen((tmp_path / "page.html").read_text(encoding="utf-8"))
    for words in ("GB/s", "Gflop/s", "linear scale", "float16", "What torch claims", "more than 1.5 times float32's"):
        assert words in page


def test_plan(tmp_path: Path) -> None:
    """Candidates with time and memory, their reasons, and what the device was measured to do."""
    assert run("plan", TINY, "--html", tmp_path / "page.html") == 0
    page = seen((tmp_path / "page.html").read_text(encoding="utf-8"))
    for words in ("Predicted time (seconds", "Peak of memory on the device (bytes", "chosen", "512 in", "Verdicts"):
        assert words in page


def test_a_device_that_is_not_here(tmp_path: Path) -> None:
    """A plan from published facts says so, and shows no times."""
    assert run("plan", TINY, "--device", "NVIDIA Tesla T4", "--html", tmp_path / "page.html") == 0
    page = seen((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert "Nobody measured this device here" in page
    assert "--device 'NVIDIA Tesla T4' --html FILE</code>" in page
    assert "Predicted time" not in page


def test_rescue(overflowing: Path, tmp_path: Path) -> None:
    """The range of every layer, the moves and the drift of every position; a plan in float16 shows the same."""
    assert run("rescue", overflowing, "--html", tmp_path / "page.html") == 0
    page = seen((tmp_path / "page.html").read_text(encoding="utf-8"))
    for words in (
        "float16 is safe here.",
        "float16 ends at 65,504",
        "2^-17 is 1/131,072",
        "What is rescaled",
        "residual",
    ):
        assert words in page
    assert "<polyline" in page
    assert run("plan", overflowing, "--policy", "ladder=fp16>fp32", "--html", tmp_path / "plan.html") == 0
    plan = seen((tmp_path / "plan.html").read_text(encoding="utf-8"))
    assert "How large the numbers become" in plan
    assert "How far it drifts from" in plan


def rescued(**changes: object) -> Rescue:
    """Return a rescue of a large model, with foreign names."""
    peaks = tuple(BlockPeak(f"model.layers.{number}", 2.0**17, 512.0) for number in range(126))
    moves = tuple(Move(Part.WEIGHT, f"model.layers.{number}.{EVIL}", -1) for number in range(126))
    drift = Drift("tokens", 2, 1e-3, 2e-3, 0.99, 0.1, 1e-2)
    half = HalfRange(
        2.0**17, 512.0, peaks, Rescale(((Gauge(EVIL, moves), 17),)), (EVIL,), drift=drift, kl=(1e-3, 2e-3)
    )
    return Rescue(EVIL, BFLOAT16, EVIL, replace(half, **changes), None)  # type: ignore[arg-type]


def test_a_large_model_with_foreign_names() -> None:
    """126 layers are 126 rows; a repository called <script> is text, and so are modules, gauges and devices."""
    page = rescue_page(rescued())
    loads_nothing(page)
    assert "<script" not in page
    assert page.count('class="track"') == 127  # and one for what stays inside of layers
    assert "1/131,072" in page
    assert len(page) < 100_000


def test_what_an_earlier_version_measured() -> None:
    """Without the drift of each position there is no curve, and the page says how to get one."""
    page = seen(rescue_page(rescued(kl=())))
    assert "<polyline" not in page
    assert "--text FILE measures anew" in page


def test_rejected() -> None:
    """Where float16 is rejected, that and the reason come first."""
    page = seen(rescue_page(replace(rescued(), beyond="mean KL is 0.5 nats, the limit is 0.02")))
    assert "NOT in float16." in page
    assert "Mean KL is 0.5 nats" in page


def test_foreign_names_in_plans_and_devices() -> None:
    """A checkpoint, a device, a claim and a warning bring no markup along."""
    device = replace(f.TURING, name=EVIL, driver=EVIL, claims=(Claim(EVIL, EVIL, EVIL),), family=EVIL)
    plan = make_plan(device, replace(f.checkpoint(), source=EVIL, warnings=(EVIL,)))
    for page in (plan_page(plan), devices_page([(device, ())])):
        loads_nothing(page)
        assert "<script" not in page
        assert "&lt;script&gt;" in page


def test_a_plan_for_published_facts_has_no_picture_of_times() -> None:
    """Memory is known without a measurement; time is not."""
    page = seen(plan_page(make_plan(prior_facts("NVIDIA Tesla T4"), f.checkpoint())))
    assert "Peak of memory" in page
    assert "Predicted time" not in page


def test_a_page_that_cannot_be_written(tmp_path: Path) -> None:
    """It is refused before anything is measured."""
    assert run("rescue", TINY, "--html", tmp_path / "nowhere" / "page.html") == 2
    shutil.rmtree(tmp_path)
    assert not tmp_path.exists()
