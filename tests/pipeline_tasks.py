"""Every task of transformers' `pipeline` that runs tiny: its model, what stands before the model, and what it is asked."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch
import transformers as tf
from PIL import Image
from zoo import ZOO
from zoo_models import SPEECH, TEXT, VISION, bert

TINY_QWEN3 = Path(__file__).resolve().parents[1] / "examples" / "tiny-qwen3"
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "cat", "dog", "sat", "on", "the", "mat"]


def words(**more: int) -> Any:
    """Return a tokenizer of a few words, in the form of BERT's, and of `more` special ones with their numbers."""
    vocabulary = {word: number for number, word in enumerate(WORDS)} | more
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    special = {
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "mask_token": "[MASK]",
    }
    return tf.PreTrainedTokenizerFast(
        tokenizer_object=made, **special, model_max_length=64, extra_special_tokens=list(more)
    )


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


def _pictures_and_text() -> dict[str, Any]:
    pictures = tf.CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=_sized(16))
    tokenizer = words(**{"<image>": 95})
    tokenizer.padding_side = "left"
    processor = tf.LlavaProcessor(
        pictures, tokenizer, patch_size=8, vision_feature_select_strategy="default", num_additional_image_tokens=1
    )
    return {"processor": processor}


def _superglue() -> Any:
    detector = {
        "model_type": "superpoint", "encoder_hidden_sizes": [16, 16, 32, 32], "decoder_hidden_size": 32,
        "descriptor_decoder_dim": 32, "max_keypoints": 16,
    }  # fmt: skip
    config = tf.SuperGlueConfig(
        keypoint_detector_config=detector, hidden_size=32, keypoint_encoder_sizes=[16, 32],
        gnn_layers_types=["self", "cross"], num_attention_heads=2,
    )  # fmt: skip
    return tf.SuperGlueForKeypointMatching(config)


def _clap() -> Any:
    sound = {
        "window_size": 2, "num_mel_bins": 16, "spec_size": 64, "patch_size": 4, "patch_stride": (4, 4), "depths": [1, 1],
        "num_attention_heads": [2, 2], "patch_embeds_hidden_size": 16, "hidden_size": 32, "num_hidden_layers": 2,
    }  # fmt: skip
    return tf.ClapModel(tf.ClapConfig(text_config=TEXT, audio_config=sound, projection_dim=16))


def _spectra() -> Any:
    return tf.ClapFeatureExtractor(
        feature_size=16,
        sampling_rate=16000,
        max_length_s=1,
        hop_length=250,
        fft_window_size=512,
        frequency_max=8000,
        truncation="rand_trunc",
    )


def _vits() -> Any:
    model = ZOO["vits"].make()
    model.noise_scale = model.noise_scale_duration = 0.0  # it speaks the same every time
    return model


def _table_words() -> Any:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "vocab.txt"
        file.write_text("\n".join([*WORDS, "[EMPTY]"]), encoding="utf-8")
        return tf.TapasTokenizer(str(file), model_max_length=64)


def _video_mae() -> Any:
    return tf.VideoMAEForVideoClassification(
        tf.VideoMAEConfig(**VISION, num_frames=4, tubelet_size=2, num_labels=3, use_mean_pooling=True)
    )


@cache
def _video() -> str:
    """Return the path of a video of four pictures."""
    import av

    file = Path(tempfile.mkdtemp()) / "video.avi"
    atexit.register(shutil.rmtree, file.parent)
    with av.open(str(file), "w") as container:
        stream = container.add_stream("rawvideo", rate=4)
        stream.width = stream.height = 32
        stream.pix_fmt = "rgb24"
        for number in range(4):
            frame = av.VideoFrame.from_ndarray(np.asarray(picture()) // (number + 1), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return str(file)


@dataclass(frozen=True)
class Task:
    """One task: its model, what stands before the model, and what is asked."""

    make: Callable[[], Any]
    before: Callable[[], dict[str, Any]]
    inputs: Callable[[], Any]
    options: dict[str, Any] = field(default_factory=dict)
    many: bool = True  # takes a list of inputs, and `batch_size`
    narrow: torch.dtype = torch.bfloat16
    kind: str = "nan"  # of the fault that is put in

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
    "image-text-to-text": Task(
        ZOO["llava"].make, _pictures_and_text,
        lambda: [picture(16), picture(20)],
        {"text": ["<image> the cat", "<image> a dog"], "generate_kwargs": GREEDY}, many=False,
    ),
    "keypoint-matching": Task(
        _superglue, lambda: {"image_processor": tf.SuperGlueImageProcessor(size=_sized(32))},
        lambda: [picture(), picture(40)], many=False,
        kind="not_implemented",  # of NaN this model makes points that match nothing
    ),
    "zero-shot-audio-classification": Task(
        _clap, lambda: {"tokenizer": words(), "feature_extractor": _spectra()}, lambda: [tone(4000), tone(3000)],
        {"candidate_labels": ["cat", "dog"], "hypothesis_template": "the {}"},
    ),
    "text-to-audio": Task(_vits, lambda: {"tokenizer": words()}, lambda: SENTENCES, many=False),
    "table-question-answering": Task(
        ZOO["tapas"].make, lambda: {"tokenizer": _table_words()},
        lambda: {"table": {"cat": ["sat", "dog"], "mat": ["a", "the"]}, "query": "the cat"}, many=False,
    ),
    "video-classification": Task(
        _video_mae,
        lambda: {"image_processor": tf.VideoMAEImageProcessor(size={"shortest_edge": 32}, crop_size=_sized(32))},
        lambda: [_video()], {"num_frames": 4, "frame_sampling_rate": 1}, many=False,
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
