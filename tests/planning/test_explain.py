"""A plan for people: in full, in short, and in a notebook."""

from __future__ import annotations

import json
import pickle
import re
from dataclasses import replace
from html.parser import HTMLParser

import factories as f
import pytest

from safe_dtype.devices.priors import prior_facts
from safe_dtype.facts import BFLOAT16, FLOAT16, FLOAT32, CacheShape, DeviceFacts, VerdictKind
from safe_dtype.planning import Plan, Policy, make_plan

T4_RESCUED = make_plan(f.TURING, f.checkpoint(half=f.rescued()))
PLANS = {
    "native": make_plan(f.AMPERE, f.checkpoint()),
    "emulated": make_plan(f.TURING, f.checkpoint()),
    "rescued": T4_RESCUED,
    "crashes": make_plan(f.RDNA2, f.checkpoint()),
    "wrong": make_plan(f.GTX_1660, f.checkpoint(FLOAT16)),
    "wide": make_plan(f.AMX_CPU, f.checkpoint(FLOAT32)),
    "quantized": make_plan(f.TURING, f.checkpoint(quantization="gptq")),
    "too-big": make_plan(f.GTX_1660, f.checkpoint(billions=8)),
    "ordered": make_plan(f.TURING, f.checkpoint(), ordered=FLOAT16),
    "memory": make_plan(f.AMX_CPU, f.checkpoint(FLOAT32), Policy.parse("prefer=memory")),
}
every_plan = pytest.mark.parametrize("plan", [pytest.param(plan, id=name) for name, plan in PLANS.items()])


def flat(text: str) -> str:
    """Return a text in one line."""
    return " ".join(text.split())


@every_plan
@pytest.mark.parametrize("width", [300, 79])
def test_every_reason_is_shown(plan: Plan, width: int) -> None:
    """The text names the choice, why, and why not each of the others; on a wide page and on a narrow one."""
    text = flat(plan.explain(width=width))
    assert plan.reason in text
    for decision in plan.decisions:
        for part in decision.reason.split("; "):
            assert part in text


@every_plan
@pytest.mark.parametrize("width", [40, 60, 80, 100, 140])
def test_no_line_is_wider(plan: Plan, width: int) -> None:
    """The page keeps to its width, and on 60 columns nothing of the table is cut off."""
    text = plan.explain(width=width)
    assert max(map(len, text.splitlines())) <= width
    assert width < 60 or "\N{HORIZONTAL ELLIPSIS}" not in text


def test_what_all_share_is_said_once() -> None:
    """What holds for every accepted dtype stands below the table, not in each row."""
    text = flat(PLANS["native"].explain(width=300))
    assert text.count("keeps every bit of the weights") == 1
    assert "Every accepted dtype: keeps every bit of the weights; native here." in text
    rounds = flat(PLANS["memory"].explain(width=300))
    assert rounds.count("rounds the weights") == rounds.count("keeps every bit of the weights") == 1


@pytest.mark.parametrize(
    ("takes", "title", "note"),
    [
        ("images", "512 patches", "Times are predicted for 512 patches of images;"),
        ("audio", "512 frames", "Times are predicted for 512 frames of audio (about 50 a second in most models);"),
        ("inputs", "512 rows", "Times are predicted for 512 rows of its inputs"),
    ],
)
def test_what_is_no_token(takes: str, title: str, note: str) -> None:
    """The plan of a model that takes images or sound speaks of their parts, not of tokens or prompts."""
    others = replace(f.checkpoint(), takes=takes, vocab_size=0, cache=CacheShape())
    for device in (f.AMPERE, f.AVX2_CPU, prior_facts("NVIDIA Tesla T4"), prior_facts("NVIDIA Tesla P40 1.21 GB")):
        plan = make_plan(device, others)
        text = flat(plan.explain(width=300))
        assert "prompt" not in text
        assert "new token" not in text
        assert " tokens" not in text
        assert not plan.measured or (title in text and note in text)
        assert (json.loads(plan.to_json())["takes"], plan.has_tokens) == (takes, False)


def test_tokens() -> None:
    """A model that generates has a prompt; one that only reads has tokens."""
    assert "512 in" in make_plan(f.AMPERE, f.checkpoint()).explain(width=300)
    assert "predicted for a prompt of 512 tokens, then" in flat(make_plan(f.AMPERE, f.checkpoint()).explain(width=300))
    reads = make_plan(f.AMPERE, replace(f.checkpoint(), cache=CacheShape()))
    assert "predicted for 512 tokens;" in flat(reads.explain(width=300))


def test_reasons_explain_the_seconds() -> None:
    """Beside its seconds a row says how they compare with float32's, in all and in parts."""
    # Products in a quarter of float32's time, attention in eight times.
    attention = (
        f.verdict(FLOAT32, VerdictKind.NATIVE, 28, 150, op="attention"),
        f.verdict(BFLOAT16, VerdictKind.SLOW, 1.75, 75, op="attention"),
    )
    cpu = f.device(
        "CPU",
        float32=(VerdictKind.NATIVE, 28, 150),
        bfloat16=(VerdictKind.NATIVE, 56, 600),
        extra=tuple(replace(verdict, timings=()) for verdict in attention),
    )
    plan = make_plan(cpu, f.checkpoint())
    costs = {decision.candidate.storage: decision.cost for decision in plan.decisions}
    reasons = {decision.candidate.storage: decision.reason for decision in plan.decisions}
    match = re.search(
        r"takes ([\d.]+) times float32's time: ([\d.]+) times for products, ([\d.]+) times for attention",
        reasons[BFLOAT16],
    )
    assert match is not None, reasons[BFLOAT16]
    in_all, products, attention_ratio = map(float, match.groups())
    assert in_all == pytest.approx((costs[BFLOAT16].seconds or 0) / (costs[FLOAT32].seconds or 1), rel=0.05)
    assert products == pytest.approx(0.25, rel=0.05)
    assert attention_ratio > 2
    assert "float32's time" not in reasons[FLOAT32]


def test_times_are_left_out_where_nobody_measured() -> None:
    """A plan from published facts has no columns of question marks, and gives its sources once."""
    prior = replace(f.TURING, verdicts=tuple(
        replace(verdict, decode_bytes_per_s=None, prefill_flops_per_s=None, reason=f"{verdict.kind} there; (a source)")
        for verdict in f.TURING.verdicts
    ), measured=False)  # fmt: skip
    text = make_plan(prior, f.checkpoint()).explain(width=200)
    assert "Nobody measured this device here" in text
    assert "?" not in text
    assert " in  " not in text
    assert text.count("a source") == 1


def test_short_forms() -> None:
    """`repr` of a plan, a decision and a dtype is one short line with what matters; a plan pickles."""
    assert repr(T4_RESCUED) == "<Plan: 0.6B-bfloat16 in float16 on T4 (cuda:0)>"
    rejected = PLANS["native"].decisions[-1]
    assert repr(rejected) == "<Decision: float16 rejected for range>"
    assert repr(BFLOAT16) == "<Dtype bfloat16>"
    assert pickle.loads(pickle.dumps(T4_RESCUED)) == T4_RESCUED


class _Reader(HTMLParser):
    """Reads HTML, and raises where an element is not closed in its turn."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag != "br":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


@every_plan
def test_notebook(plan: Plan) -> None:
    """In a notebook a plan is a table of valid HTML that holds the same words."""
    reader = _Reader()
    reader.feed(plan._repr_html_())
    reader.close()
    assert not reader.open
    words = flat(" ".join(reader.texts))
    assert plan.reason in words
    for decision in plan.decisions:
        for part in decision.reason.split("; "):
            assert part in words


def test_notebook_is_escaped() -> None:
    """A name that is HTML is shown as it is, and runs nothing."""
    name = "<script>alert('&')</script>"
    device: DeviceFacts = replace(f.AMPERE, name=name)
    plan = make_plan(device, replace(f.checkpoint(), source=f"x/{name}"))
    assert "<script" not in plan._repr_html_()
    assert "&lt;script&gt;" in plan._repr_html_()
