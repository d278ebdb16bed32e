"""An ONNX file in onnxruntime: what it is given, what it asks for, and one that another tool made."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from safe_dtype.optimizing.forms import onnx as form
from safe_dtype.optimizing.nouns.form import BuildRequest
from safe_dtype.optimizing.nouns.job import Dynamic

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")


class Places(torch.nn.Module):
    """Adds to each id its place, as a model with positions does."""

    def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        """Take and return shape (batch, length)."""
        places = torch.arange(input_ids.shape[-1]) if position_ids is None else position_ids
        return {"logits": (input_ids + places).float()}


def write(folder: Path, *inputs: str, outputs: tuple[str, ...] = ("logits",)) -> Path:
    """Write the file of a graph that adds its inputs, all of shape (batch, length), and returns the sum in float32."""
    shape, integers, floats = ["batch", "length"], onnx.TensorProto.INT64, onnx.TensorProto.FLOAT
    node = onnx.helper.make_node
    nodes = [
        node("Sum" if len(inputs) > 2 else "Add", inputs, ["sum"]),
        *(node("Cast", ["sum"], [name], to=floats) for name in outputs),
    ]
    graph = onnx.helper.make_graph(
        nodes,
        "places",
        [onnx.helper.make_tensor_value_info(name, integers, shape) for name in inputs],
        [onnx.helper.make_tensor_value_info(name, floats, shape) for name in outputs],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)
    folder.mkdir()
    onnx.save(model, folder / form.FILE)
    return folder


def adopted(source: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> form.Run:
    """Let the form be what is in `source`, for a batch of ids alone."""
    monkeypatch.setenv(form.GIVEN, str(source))
    folder.mkdir()
    return form.build(BuildRequest(Places(), {"input_ids": torch.ones(2, 3, dtype=torch.long)}, folder, Dynamic()))


def test_given_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of another tool answers as the model does, also where it asks for positions that the model makes."""
    source = write(tmp_path / "given", "input_ids", "position_ids", outputs=("more", "logits"))
    run = adopted(source, tmp_path / "artifact", monkeypatch)
    ids = torch.randint(0, 9, (3, 5))
    for one in (run, form.load(tmp_path / "artifact")):
        assert one(input_ids=ids).keys() == {"logits"}
        assert torch.equal(one(input_ids=ids)["logits"], Places()(ids)["logits"])
    moved = torch.arange(5).expand(3, 5) + 7
    assert torch.equal(run(input_ids=ids, position_ids=moved)["logits"], Places()(ids, moved)["logits"])
    assert json.loads((tmp_path / "artifact" / form.NAMES).read_text())["defaults"] == ["position_ids"]


@pytest.mark.parametrize(
    ("inputs", "outputs", "said"),
    [
        pytest.param(("input_ids", "past_key_values.0.key"), ("logits",), "asks for past_key_values.0.key", id="past"),
        pytest.param(("input_ids", "decoder_attention_mask"), ("logits",), "asks for decoder_attention", id="decoder"),
        pytest.param(("input_ids", "position_ids"), ("scores",), "has no output logits", id="output"),
    ],
)
def test_given_file_that_is_no_form(
    inputs: tuple[str, ...], outputs: tuple[str, ...], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that asks for what nobody has, or answers with less than the model, is refused by name."""
    with pytest.raises(ValueError, match=said):
        adopted(write(tmp_path / "given", *inputs, outputs=outputs), tmp_path / "artifact", monkeypatch)


def test_missing_input(tmp_path: Path) -> None:
    """A call without an input that the file has says which, and what was given; defaults are for given files only."""
    folder = write(tmp_path / "artifact", "input_ids", "position_ids")
    (folder / form.NAMES).write_text(json.dumps({"outputs": ["logits"], "device": "cpu"}))
    with pytest.raises(ValueError, match=r"needs position_ids; the call has input_ids"):
        form.load(folder)(input_ids=torch.ones(2, 3, dtype=torch.long))


def test_renamed_tensors(tmp_path: Path) -> None:
    """Names with which an input and an output collided are the model's again."""
    folder = write(tmp_path / "artifact", "input.x", "y", outputs=("output.x",))
    (folder / form.NAMES).write_text(json.dumps({"outputs": ["x"], "device": "cpu"}))
    ones = torch.ones(2, 3, dtype=torch.long)
    assert torch.equal(form.load(folder)(x=ones, y=ones)["x"], torch.full((2, 3), 2.0))


def test_threads(tmp_path: Path) -> None:
    """Onnxruntime takes as many threads as torch has."""
    folder = write(tmp_path / "artifact", "x", "y")
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            assert form.session_of(folder / form.FILE, "cpu").get_session_options().intra_op_num_threads == threads
    finally:
        torch.set_num_threads(before)
