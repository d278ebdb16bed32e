"""The limit that a user gives: what `verify` refuses, `optimize` refuses, in the same unit and with the same figure."""

from __future__ import annotations

import ast
import json
import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

import safe_dtype
from safe_dtype import Drift, exceeds, measure_drift
from safe_dtype.facts import BFLOAT16
from safe_dtype.optimizing.attempts.limits import data_problem, distance_between, dtype_problem
from safe_dtype.optimizing.attempts.max_drift import DriftFromFloat32, drift_of_job
from safe_dtype.optimizing.nouns.job import Job

Tensors = dict[str, Tensor]
IDS = {"input_ids": torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]])}


def problem_of(limit: float, *batches: tuple[Tensors, Tensors], inputs: Tensors = IDS) -> str:
    """Return why `optimize` refuses outputs, given as (candidate, float32) of every batch."""
    drift = DriftFromFloat32(limit)
    for candidate, float32 in batches:
        drift.add(inputs, float32, candidate)
    return drift.problem()


def drift_of(candidate: Tensors, float32: Tensors, inputs: Tensors = IDS) -> Drift:
    """Return what `verify` measures on one batch."""
    return measure_drift(lambda **_: candidate, lambda **_: float32, [inputs])


@pytest.mark.parametrize(
    ("ids", "words"),
    [
        pytest.param([1, 2, 3, 4], "", id="equal"),
        pytest.param([1, 2, 3, 9], "75.00%", id="others"),
        pytest.param([1, 2, 3], "shape", id="fewer"),
        pytest.param([1.0, 2.0, 3.0, 4.0], "int64", id="numbers"),
    ],
)
def test_ids(ids: list[float], words: str) -> None:
    """Ids are compared entry by entry under `max_drift`, too, whatever it allows of numbers."""
    candidate, float32 = ({"x": torch.ones(2, 3), "ids": torch.tensor(one)} for one in (ids, [1, 2, 3, 4]))
    problem = problem_of(10.0, (candidate, float32))
    assert words in problem
    assert bool(problem) is bool(words)


def test_ids_alone() -> None:
    """A model that returns nothing but ids is held to them."""
    same, other = {"ids": torch.arange(9)}, {"ids": torch.arange(9) + 1}
    assert problem_of(0.1, (same, same)) == ""
    assert "0.00%" in problem_of(0.1, (other, same))


def embeddings() -> tuple[Tensors, Tensors]:
    """Return a candidate's embeddings, off by 30 % but for one large element; and float32's."""
    random = torch.Generator().manual_seed(0)
    float32 = torch.randn(4, 64, generator=random)
    float32[0, 0] = 20.0
    candidate = float32.clone()
    candidate[:, 1:] += 0.3 * torch.randn(4, 63, generator=random)
    return {"last_hidden_state": candidate}, {"last_hidden_state": float32}


def ruined_positions(count: int, of: int = 300) -> tuple[Tensors, Tensors]:
    """Return a candidate's logits of `of` positions, at the first `count` of which it says the contrary; and float32's."""
    float32 = 3 * torch.randn(1, of, 50, generator=torch.Generator().manual_seed(0))
    candidate = float32.clone()
    candidate[0, :count] *= -2
    return {"logits": candidate}, {"logits": float32}


def pixels(wrong: int) -> tuple[Tensors, Tensors]:
    """Return a candidate's logits of 10 x 10 pixels of two classes, `wrong` of them flipped; and float32's."""
    float32 = torch.zeros(1, 2, 10, 10)
    float32[0, 0, :5], float32[0, 1, 5:] = 1.0, 1.0
    candidate = float32.clone()
    candidate[0, :, 0, :wrong] = candidate[0, :, 0, :wrong].flip(0)
    return {"logits": candidate}, {"logits": float32}


def classes(nats: float) -> tuple[Tensors, Tensors]:
    """Return a candidate's logits, off by `nats` of KL in each of four rows; and float32's, undecided between two."""
    float32 = torch.tensor([[0.0, 0.0, -1e9], [0.0, -1e9, 0.0]]).repeat(2, 1)
    # KL of (1/2, 1/2) from (p, 1 - p) is -log(4 p (1 - p)) / 2.
    p = 0.5 + 0.5 * math.sqrt(1 - math.exp(-2 * nats))
    candidate = torch.where(float32 == 0, math.log(1 - p), float32.double())
    candidate[:, 0] = math.log(p)
    return {"logits": candidate.float()}, {"logits": float32}


def with_value(outputs: tuple[Tensors, Tensors], value: float) -> tuple[Tensors, Tensors]:
    """Return the same outputs, and one number of the candidate's replaced."""
    candidate = {name: output.clone() for name, output in outputs[0].items()}
    next(iter(candidate.values())).view(-1)[7] = value
    return candidate, outputs[1]


@pytest.mark.parametrize(
    ("outputs", "limit", "figure"),
    [
        pytest.param(embeddings(), 0.1, "relative RMS difference is 0.2", id="embeddings-off-beside-a-large-one"),
        pytest.param(embeddings(), 0.5, "", id="embeddings-within"),
        pytest.param(ruined_positions(4), 0.5, "at the worst 1 % of 300 positions", id="four-positions-of-300"),
        pytest.param(ruined_positions(1, of=60), 0.05, "mean KL is", id="one-position"),
        pytest.param(ruined_positions(0), 0.0, "", id="nothing-is-off-and-nothing-may"),
        pytest.param(pixels(wrong=2), 0.05, "", id="pixels-within"),  # 48 of 50 and 50 of 52
        pytest.param(pixels(wrong=2), 0.039, "1 - mIoU is 0.0392, the limit is 0.039", id="pixels"),
        pytest.param(classes(0.1), 0.0999, "mean KL is 0.1 nats, the limit is 0.0999", id="classes"),
        pytest.param(classes(0.1), 0.1001, "", id="classes-within"),
        pytest.param(with_value(embeddings(), math.nan), 1e9, "NaN or infinity", id="values-with-nan"),
        pytest.param(with_value(embeddings(), -math.inf), 1e9, "NaN or infinity", id="values-with-infinity"),
        pytest.param(with_value(ruined_positions(0), math.nan), 1e9, "NaN or infinity", id="tokens-with-nan"),
        pytest.param(with_value(pixels(0), math.inf), 1e9, "NaN or infinity", id="pixels-with-infinity"),
        pytest.param(with_value(classes(0.0), -math.inf), 1e9, "NaN or infinity", id="a-class-that-is-ruled-out"),
        pytest.param(with_value(embeddings(), 1e-3), 0.0, "relative RMS difference is", id="one-value-and-none-may"),
    ],
)
def test_verify_and_optimize(outputs: tuple[Tensors, Tensors], limit: float, figure: str) -> None:
    """Both answer with the same reason, or both with none."""
    reason = exceeds(drift_of(*outputs), limit)
    problem = problem_of(limit, outputs)
    assert (figure in str(reason)) if figure else reason is None
    name = next(iter(outputs[1]))
    assert problem == (f"it drifts from float32 by more than max_drift allows: {name}: {reason}" if reason else "")


@pytest.mark.parametrize("outputs", [embeddings(), ruined_positions(4), pixels(2), classes(0.1)])
@pytest.mark.parametrize("limit", [0.0, 0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 1.0, 5.0])
def test_same_verdict_at_every_limit(outputs: tuple[Tensors, Tensors], limit: float) -> None:
    """There is one unit: no limit lies between what the one and what the other refuses."""
    assert bool(exceeds(drift_of(*outputs), limit)) is bool(problem_of(limit, outputs))


def test_hidden_positions() -> None:
    """Positions that `attention_mask` hides do not count, as they do not in `verify`; all others do."""
    candidate, float32 = ruined_positions(4)
    mask = torch.ones(1, 300, dtype=torch.int64)
    assert problem_of(0.5, (candidate, float32), inputs={"attention_mask": mask})
    mask[0, :4] = 0
    assert problem_of(0.0, (candidate, float32), inputs={"attention_mask": mask}) == ""
    hides_all = {"attention_mask": torch.zeros_like(mask)}
    assert "no output was compared" in problem_of(1e9, (candidate, float32), inputs=hides_all)


def test_whole_numbers_of_another_size() -> None:
    """Token ids may come in int32."""
    candidate, float32 = ruined_positions(4)
    ids = {"input_ids": torch.ones(1, 300, dtype=torch.int32)}
    assert "worst 1 %" in problem_of(0.5, (candidate, float32), inputs=ids)


SOUND, RUINED = embeddings()[1]["last_hidden_state"], embeddings()[0]["last_hidden_state"]


@pytest.mark.parametrize(
    ("candidate", "float32", "named"),
    [
        pytest.param(
            {"start_logits": SOUND, "end_logits": SOUND.flip(1)}, {"start_logits": SOUND, "end_logits": SOUND},
            "end_logits: mean KL", id="of-two-choices-the-second",
        ),
        pytest.param(
            {"last_hidden_state": SOUND, "pooler_output": RUINED}, {"last_hidden_state": SOUND, "pooler_output": SOUND},
            "pooler_output: relative RMS", id="of-two-embeddings-the-second",
        ),
        pytest.param(
            {"logits": SOUND, "values": -SOUND}, {"logits": SOUND, "values": SOUND},
            "values: relative RMS difference is 2", id="values-beside-logits",
        ),
        pytest.param(
            {"large": 1e6 * SOUND, "small": 2e-6 * SOUND}, {"large": 1e6 * SOUND, "small": 1e-6 * SOUND},
            "small: relative RMS difference is 1", id="a-small-one-beside-a-large-one",
        ),
    ],
)  # fmt: skip
def test_two_outputs(candidate: Tensors, float32: Tensors, named: str) -> None:
    """Every output is judged, each in its own unit, and the reason names it."""
    problem = problem_of(0.1, (candidate, float32))
    assert named in problem
    assert problem.count(": ") == 2  # no other one is blamed
    assert problem_of(0.0, (float32, float32)) == ""


@pytest.mark.parametrize(
    ("candidate", "named"),
    [
        pytest.param({}, "its outputs are none, those of float32 logits", id="none"),
        pytest.param({"others": SOUND}, "its outputs are others", id="another-name"),
        pytest.param({"logits": SOUND, "more": SOUND}, "its outputs are logits, more", id="one-too-many"),
        pytest.param({"logits": SOUND[:1]}, "logits has the shape (1, 64), in float32 (4, 64)", id="shape"),
        pytest.param({"logits": SOUND[None]}, "logits has the shape (1, 4, 64)", id="dimensions"),
    ],
)
def test_not_comparable(candidate: Tensors, named: str) -> None:
    """Other names and other shapes are refused, whatever the limit."""
    assert named in problem_of(math.inf, (candidate, {"logits": SOUND}))


def test_nothing_to_compare() -> None:
    """Two runs without outputs, or with empty ones, are not equal: they say nothing."""
    assert "no output was compared" in problem_of(1.0)
    assert "no output was compared" in problem_of(1.0, ({}, {}))
    empty = {"logits": torch.zeros(2, 0)}
    assert "no output was compared" in problem_of(1.0, (empty, empty))


def test_equal_infinities() -> None:
    """A value that is infinite in both is no difference, and hides none beside it."""
    float32 = {"scores": torch.tensor([[1.0, 2.0, -math.inf], [3.0, 4.0, math.inf]])}
    assert problem_of(0.0, (float32, float32)) == ""
    candidate = {"scores": torch.tensor([[1.0, 2.0, -math.inf], [4.0, 4.0, math.inf]])}
    assert "relative RMS difference is 0.183" in problem_of(0.1, (candidate, float32))
    lost = {"scores": torch.tensor([[1.0, 2.0, -math.inf], [3.0, 4.0, 5.0]])}
    assert problem_of(1e9, (lost, float32))


def test_masks_of_queries() -> None:
    """Masks are pixels with two classes, inside and outside: the queries are no classes to choose from."""
    float32 = torch.tensor([[[[1.0, 1.0, -1.0, -1.0]], [[-1.0, -1.0, -1.0, 1.0]]]])
    candidate = torch.tensor([[[[9.0, -1.0, -1.0, -9.0]], [[-1.0, -1.0, -2.0, 0.5]]]])
    both = ({"masks_queries_logits": candidate}, {"masks_queries_logits": float32})
    assert "1 - mIoU is 0.25, the limit is 0.2" in problem_of(0.2, both)  # inside 2 of 3 are shared, outside 5 of 6
    first = tuple({name: masks[:, :1] for name, masks in outputs.items()} for outputs in both)
    assert "1 - mIoU is 0.417" in problem_of(0.2, first)  # 1 of 2, 2 of 3: one query alone is judged in the same unit


def drift_over(batches: Sequence[tuple[Tensors, Tensors]]) -> Drift:
    """Return what `verify` measures over several batches."""
    candidates = iter([candidate for candidate, _ in batches])
    references = iter([batches[0][1], *(float32 for _, float32 in batches)])  # the first is asked twice
    inputs = [{"number": torch.tensor(number)} for number in range(len(batches))]
    return measure_drift(lambda **_: next(candidates), lambda **_: next(references), inputs)


def test_every_batch_counts() -> None:
    """A call that is ruined is not hidden by the others: a single position, in a batch of its own."""
    sound, ruined = ruined_positions(0), ruined_positions(1, of=1)
    batches = [sound, ruined, sound]
    assert exceeds(drift_over(batches), 0.5) is None
    problem = problem_of(0.5, *batches)
    assert "logits: mean KL is" in problem
    assert "in batch 1" in problem


def test_all_batches_together() -> None:
    """What is too far off only over all batches is refused with the figure of all, as `verify` refuses it."""
    # In each image one class of ten is ruined, in each another one: together two of eleven are.
    batches = [({"logits": _image(candidate)}, {"logits": _image(float32)}) for candidate, float32 in _TWO_IMAGES]
    assert problem_of(0.11, batches[0]) == problem_of(0.11, batches[1]) == ""
    reason = exceeds(drift_over(batches), 0.11)
    assert reason
    assert problem_of(0.11, *batches).endswith(f"logits: {reason}")


# The class of every pixel, in the candidate and in float32: of the one image class 0 is lost, of the other class 10.
_TWO_IMAGES = [
    ([1, *range(1, 10), *[1] * 99], [*range(10), *[1] * 99]),
    ([*range(1, 10), 9, *[9] * 99], [*range(1, 11), *[9] * 99]),
]


def _image(chosen: list[int]) -> Tensor:
    return torch.nn.functional.one_hot(torch.tensor(chosen), 11).T.reshape(1, 11, 1, -1).float()


def test_two_questions() -> None:
    """The reason says whose limit it was: the user's, or the one that optimizing itself sets for rounding."""
    candidate, float32 = embeddings()
    distance = distance_between({"x": -float32["last_hidden_state"]}, {"x": float32["last_hidden_state"]})
    assert dtype_problem(distance, BFLOAT16).startswith("it differs from float32 by more than rounding")
    assert data_problem(distance, BFLOAT16).startswith("it differs from float32 by more than rounding")
    assert "max_drift" in problem_of(0.1, (candidate, float32))


FIGURES = {"kl_mean", "kl_p99", "rel_rms", "miou"}
PACKAGE = Path(safe_dtype.__file__).parent


def _compared_names(path: Path) -> set[str]:
    """Return the names and attributes that stand in comparisons of size in a module."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Compare) and any(
            isinstance(op, ast.Lt | ast.LtE | ast.Gt | ast.GtE) for op in node.ops
        ):
            inside = [part for side in (node.left, *node.comparators) for part in ast.walk(side)]
            names |= {part.attr for part in inside if isinstance(part, ast.Attribute)}
            names |= {part.id for part in inside if isinstance(part, ast.Name)}
    return names


def test_one_judge() -> None:
    """No module but that of `exceeds` holds a drift's figure, or the limit of a drift, against anything."""
    judging = {
        (path.relative_to(PACKAGE) if path.is_relative_to(PACKAGE) else path).as_posix()
        for path in [*PACKAGE.rglob("*.py"), *(PACKAGE.parent / "integrations").rglob("*.py")]
        if _compared_names(path) & {*FIGURES, "max_drift"}
    }
    # `limits` compares the mean IoU of a Distance with that of its own; `saved_rescale` and `reuse` a limit with a limit;
    # `policy` and `recipe` ask whether a limit is one: a number from 0 on.
    others = {
        "facts/recipe.py",
        "optimizing/attempts/limits.py",
        "loading/trials/saved_rescale.py",
        "planning/policy.py",
        "publishing/staging/reuse.py",
    }
    assert judging == {"facts/drift_limit.py", *others}


@pytest.mark.parametrize(
    ("model_class", "config", "refused"),
    [
        ("BertForSequenceClassification", {"problem_type": "multi_label_classification"}, True),
        ("BertForSequenceClassification", {"problem_type": "single_label_classification"}, False),
        ("RTDetrForObjectDetection", {}, True),
        ("DetrForObjectDetection", {}, False),
        ("SiglipModel", {"model_type": "siglip"}, True),
        ("", None, False),
    ],
)
def test_labels_each_for_itself(
    model_class: str, config: dict[str, str] | None, refused: bool, tmp_path: Path
) -> None:
    """Logits that all shift by the same are refused where the job's model decides label by label."""
    if config is not None:
        (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    job = Job(tmp_path, model_class, BFLOAT16, "eager", tmp_path / "out", tmp_path / "inputs")
    drift = drift_of_job(job, 0.02)
    logits = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    drift.add({"x": torch.ones(4)}, {"logits": logits}, {"logits": logits + 1})
    assert bool(drift.problem()) == refused
