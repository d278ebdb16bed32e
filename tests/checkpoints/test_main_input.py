"""What a model takes is read from the class that its config names."""

from __future__ import annotations

import pytest

from safe_dtype.checkpoints.main_input import main_input


@pytest.mark.parametrize(
    ("architecture", "takes"),
    [
        ("BertModel", "tokens"), ("T5EncoderModel", "tokens"), ("ViTForImageClassification", "images"),
        ("DetrForObjectDetection", "images"), ("CLIPVisionModel", "images"), ("CLIPModel", "inputs"),
        ("Wav2Vec2ForCTC", "audio"), ("ASTForAudioClassification", "audio"), ("PatchTSTModel", "inputs"),
        ("NobodyKnowsIt", "tokens"), (None, "tokens"),
    ],
)  # fmt: skip
def test_what_it_takes(architecture: str | None, takes: str) -> None:
    """Tokens, images, audio, or inputs of several kinds: a vocabulary does not make Wav2Vec2 a model of tokens."""
    assert main_input(architecture, generates=False) == takes


def test_what_generates() -> None:
    """A model that generates is planned for tokens, whatever else it takes."""
    assert main_input("WhisperForConditionalGeneration", generates=True) == "tokens"
