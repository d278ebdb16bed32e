"""Every task of transformers' `pipeline` that runs tiny: bits of a plain pipeline while all is well, rescued where it is not.

Absent are the tasks whose libraries these tests do not have: table-question-answering (pandas), video-classification (av),
mask-generation (torchvision).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import torch
import transformers as tf
from PIL import Image
from zoo import ZOO
from zoo_models import SPEECH, TEXT, VISION, bert

from safe_dtype import FLOAT32, SafeDtypeWarning, guard, patched, plan_of, report
from safe_dtype.testing import fault

BF16 = torch.bfloat16
TINY_QWEN3 = Path(__file__).resolve().parents[2] / "examples" / "tiny-qwen3"
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "cat", "dog", "sat", "on", "the", "mat"]


def words() -> Any:
    """Return a tokenizer of a few words, in the form of BERT's."""
    vocabulary = {word: number for number, word in enumerate(WORDS)}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    special = {
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "mask_token": "[MASK]",
    }
    return tf.PreTrainedTokenizerFast(tokenizer_object=made, **special, model_max_length=64)


def picture(side: int = 32) -> Image.Image:
    """Return a picture of noise."""
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (side, side, 3), dtype=np.uint8))


def tone(samples: int = 400) -> np.ndarray:
    """Return a tone, of 16000 samples a second."""
    return np.sin(np.arange(samples) / 7).astype(np.float32)


def _sized(side: int) -> dict[str, int]:
    return {"height": side, "width": side}


def _clip_pictures() -> Any:
    return tf.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=_sized(32))


@dataclass(frozen=True)
class Task:
    """One task: its model, what stands before the model, and what is asked."""

    make: Callable[[], Any]
    before: Callable[[], dict[str, Any]]
    inputs: Callable[[], Any]
    options: dict[str, Any] = field(default_factory=dict)
    many: bool = True  # takes a list of inputs, and `batch_size`
    narrow: torch.dtype = torch.bfloat16

    def model(self, dtype: torch.dtype) -> Any:
        """Return the model, of the same weights every time."""
        torch.manual_seed(0)
        model = self.make().eval()
        with torch.no_grad():
            for weight in model.parameters():  # as made some say the same to everybody
                weight += 0.1 * torch.randn_like(weight)
        return model.to(self.narrow).to(dtype)


def _labelled(task_head: str) -> Callable[[], Any]:
    labels = ["contradiction", "neutral", "entailment"]
    return bert(task_head, id2label=dict(enumerate(labels)), label2id={name: at for at, name in enumerate(labels)})


def _speech_tokens() -> Any:
    vocabulary = {"<pad>": 0, "<unk>": 1, "|": 2, **{chr(97 + number): 3 + number for number in range(26)}}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    return tf.PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", pad_token="<pad>")


def _sounds() -> dict[str, Any]:
    return {"feature_extractor": tf.Wav2Vec2FeatureExtractor()}


def _chat_model() -> Any:
    return tf.AutoModelForCausalLM.from_pretrained(TINY_QWEN3, dtype=torch.float32)


def _chat_tokens() -> dict[str, Any]:
    return {"tokenizer": tf.AutoTokenizer.from_pretrained(TINY_QWEN3)}


def _decisions() -> dict[str, Any]:
    from transformers.decision import DecisionConfig

    tokenizer = _chat_tokens()["tokenizer"]
    yes, no = (next(text for text in texts if _is_a_token(tokenizer, text)) for texts in (("y", "a"), ("n", "b")))
    return {"tokenizer": tokenizer, "decision_config": DecisionConfig(labels={"noul": [yes, no]})}


def _is_a_token(tokenizer: Any, text: str) -> bool:
    return len(tokenizer.encode(text, add_special_tokens=False)) == 1


SENTENCES = ["the cat sat on the mat", "a dog"]
GREEDY = {"max_new_tokens": 4, "do_sample": False}

TASKS: dict[str, Task] = {
    "audio-classification": Task(
        lambda: tf.Wav2Vec2ForSequenceClassification(tf.Wav2Vec2Config(**SPEECH, classifier_proj_size=16, num_labels=3)),
        _sounds, lambda: [tone(), tone(300)],
    ),
    "automatic-speech-recognition": Task(
        lambda: tf.Wav2Vec2ForCTC(tf.Wav2Vec2Config(**SPEECH)),
        lambda: _sounds() | {"tokenizer": _speech_tokens()}, lambda: [tone(), tone(300)],
    ),
    "feature-extraction": Task(bert("Model"), lambda: {"tokenizer": words()}, lambda: SENTENCES),
    "text-classification": Task(
        bert("ForSequenceClassification", num_labels=3), lambda: {"tokenizer": words()}, lambda: SENTENCES
    ),
    "token-classification": Task(
        bert("ForTokenClassification", num_labels=3), lambda: {"tokenizer": words()}, lambda: SENTENCES
    ),
    "document-question-answering": Task(
        lambda: tf.LayoutLMForQuestionAnswering(tf.LayoutLMConfig(**TEXT, max_2d_position_embeddings=1001)),
        lambda: {"tokenizer": words()},
        lambda: {
            "question": "the cat", "image": None,
            "word_boxes": [[word, [10 * number, 10, 10 * number + 9, 20]] for number, word in enumerate(WORDS[5:])],
        },
        many=False,
    ),
    "fill-mask": Task(
        bert("ForMaskedLM"), lambda: {"tokenizer": words()},
        lambda: ["the cat [MASK] on the mat", "a [MASK]"], {"top_k": 2, "targets": WORDS[5:]},
    ),
    "text-generation": Task(_chat_model, _chat_tokens, lambda: ["The argument is", "A ship"], GREEDY),
    "zero-shot-classification": Task(
        _labelled("ForSequenceClassification"), lambda: {"tokenizer": words()}, lambda: SENTENCES,
        {"candidate_labels": ["cat", "dog"], "hypothesis_template": "the {} sat"},
    ),
    "zero-shot-image-classification": Task(
        ZOO["clip"].make, lambda: {"tokenizer": words(), "image_processor": _clip_pictures()},
        lambda: [picture(), picture(40)], {"candidate_labels": ["cat", "dog"], "hypothesis_template": "the {}"},
    ),
    "image-classification": Task(
        ZOO["vit"].make, lambda: {"image_processor": tf.ViTImageProcessor(size=_sized(32))},
        lambda: [picture(), picture(40)],
    ),
    "image-feature-extraction": Task(
        lambda: tf.ViTModel(tf.ViTConfig(**VISION)), lambda: {"image_processor": tf.ViTImageProcessor(size=_sized(32))},
        lambda: [picture(), picture(40)],
    ),
    "image-segmentation": Task(
        ZOO["segformer"].make, lambda: {"image_processor": tf.SegformerImageProcessor(size=_sized(64))},
        lambda: [picture(64)],
    ),
    "object-detection": Task(
        ZOO["yolos"].make, lambda: {"image_processor": tf.YolosImageProcessor(size=_sized(32))},
        lambda: [picture()], {"threshold": 0.0},
    ),
    "zero-shot-object-detection": Task(
        ZOO["owlvit"].make, lambda: {"tokenizer": words(), "image_processor": tf.OwlViTImageProcessor(size=_sized(32))},
        lambda: {"image": picture(), "candidate_labels": ["cat", "dog"]}, {"threshold": 0.0}, many=False,
    ),
    "depth-estimation": Task(
        ZOO["dpt"].make, lambda: {"image_processor": tf.DPTImageProcessor(size=_sized(32))},
        lambda: [picture(), picture(40)], narrow=torch.float16,  # of bfloat16 this pipeline cannot make an array
    ),
    "decision": Task(
        _chat_model, _decisions,
        lambda: [
            {"state": state, "questions": {"it": {"type": "noul", "instructions": "Is it good?"}}}
            for state in ("The argument is", "A ship")
        ],
        many=False,
    ),
}  # fmt: skip
QUICK = ("text-classification", "text-generation", "image-classification")
NEEDED = {"decision": [pytest.mark.needs("transformers.decision")]}  # not in transformers 5.16
EACH = [
    pytest.param(name, marks=[*NEEDED.get(name, []), *([] if name in QUICK else [pytest.mark.slow])]) for name in TASKS
]


def asked(task: str, model: Any, **options: Any) -> Any:
    """Return what a pipeline around `model` answers."""
    row = TASKS[task]
    return tf.pipeline(task, model=model, device="cpu", **row.before())(row.inputs(), **row.options, **options)


def numbers_in(answer: Any) -> Iterator[Any]:
    """Yield the leaves of an answer: texts, numbers, and arrays of what it has as tensors and pictures."""
    if isinstance(answer, dict):
        answer = list(answer.values())
    if isinstance(answer, list | tuple):
        for part in answer:
            yield from numbers_in(part)
    elif isinstance(answer, torch.Tensor | Image.Image | np.ndarray):
        yield np.asarray(answer.float() if isinstance(answer, torch.Tensor) else answer, dtype=np.float64)
    else:
        yield answer


def assert_alike(answer: Any, wanted: Any, *, within: float = 0.0) -> None:
    """Compare leaf by leaf: texts are the same, numbers are as near as that."""
    pairs = list(zip(numbers_in(answer), numbers_in(wanted), strict=True))
    assert pairs
    for mine, theirs in pairs:
        if isinstance(theirs, str | None):
            assert mine == theirs
        else:
            np.testing.assert_allclose(mine, theirs, rtol=0, atol=within)


class CalledLast:
    """Hooks that note which module with weights is called last."""

    def __init__(self, model: Any) -> None:
        self.name = ""
        self.handles = [
            part.register_forward_hook(lambda *_, name=name: setattr(self, "name", name))
            for name, part in model.named_modules()
            if isinstance(part, torch.nn.Linear | torch.nn.Conv2d)
        ]

    def remove(self) -> str:
        """Take the hooks out, and return the name."""
        for handle in self.handles:
            handle.remove()
        return self.name


@pytest.mark.parametrize("task", EACH)
def test_task(task: str) -> None:
    """Bits of plain while all is well; with NaN from the last layer the answer of float32, inputs rounded or not."""
    row = TASKS[task]
    plain = row.model(row.narrow)
    last = CalledLast(plain)
    wanted = asked(task, plain)
    spoiled = last.remove()
    model = guard(row.model(row.narrow))
    assert_alike(asked(task, model), wanted)
    assert report(model).events == ()
    with fault(model, spoiled, "nan") as put:
        answer = asked(task, model)
    assert put.fired
    assert {event.after for event in report(model).events} == {FLOAT32}
    # The pipeline rounds pictures and sounds to the dtype that the model was in.
    assert_alike(answer, asked(task, row.model(torch.float32)), within=0.02 * _largest(wanted))


def _largest(answer: Any) -> float:
    return max([1.0, *(float(np.abs(leaf).max()) for leaf in numbers_in(answer) if not isinstance(leaf, str | None))])


@pytest.mark.parametrize("task", [name for name in EACH if TASKS[name.values[0]].many])
def test_batched(task: str) -> None:
    """With `batch_size` and a missing kernel, from a list and from a generator, answers are those of float32."""
    row = TASKS[task]
    last = CalledLast(plain := row.model(row.narrow))
    largest = _largest(asked(task, plain))
    spoiled = last.remove()
    model = guard(row.model(row.narrow))
    before, options = row.before(), row.options | {"batch_size": 2}
    if "tokenizer" in before and before["tokenizer"].pad_token_id is None:
        before["tokenizer"].pad_token = before["tokenizer"].eos_token
    wanted = tf.pipeline(task, model=row.model(torch.float32), device="cpu", **before)(row.inputs(), **options)
    pipe = tf.pipeline(task, model=model, device="cpu", **before)
    with fault(model, spoiled, "not_implemented"):
        answer = pipe(row.inputs(), **options)
        streamed = list(pipe((one for one in row.inputs()), **options))
    assert report(model).events
    assert_alike(answer, wanted, within=0.02 * largest)
    assert_alike(streamed, wanted, within=0.02 * largest)


def test_threads() -> None:
    """Pipelines of several threads around one model, of which the first meets the failure, all get float32's answers."""
    row = TASKS["text-classification"]
    model = guard(row.model(row.narrow))
    wanted = asked("text-classification", row.model(torch.float32))
    answers: list[Any] = []
    threads = [threading.Thread(target=lambda: answers.append(asked("text-classification", model))) for _ in range(4)]
    with fault(model, "classifier", "nan"):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(answers) == len(threads)
    for answer in answers:
        assert_alike(answer, wanted)
    assert len(report(model).events) == 1


@pytest.mark.slow
def test_patched_from_a_folder(tmp_path: Path) -> None:
    """A pipeline that loads its model by itself, as users have it, is planned and rescued."""
    row = TASKS["text-classification"]
    row.model(row.narrow).save_pretrained(tmp_path)
    words().save_pretrained(tmp_path)
    wanted = tf.pipeline("text-classification", str(tmp_path), device="cpu", dtype=torch.float32)(SENTENCES)
    with patched(tell="nothing"):
        pipe = tf.pipeline("text-classification", str(tmp_path), device="cpu", dtype=BF16)
    assert plan_of(pipe.model)
    with fault(pipe.model, "classifier", "nan"), pytest.warns(SafeDtypeWarning, match="bfloat16 was asked for"):
        answer = pipe(SENTENCES)
    assert_alike(answer, wanted)
    assert [event.after for event in report(pipe.model).events] == [FLOAT32]
