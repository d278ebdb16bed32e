"""The command, run in this process, and a model that reads letters and overflows float16."""

from pathlib import Path
from string import ascii_letters

import pytest
import transformers
from command_run import run
from engineered import BOS, saved
from tokenizers import Tokenizer, models, pre_tokenizers, processors

__all__ = ["run"]


@pytest.fixture
def overflowing(tmp_path: Path) -> Path:
    """Return a checkpoint with a tokenizer whose activations leave float16's range."""
    folder = saved("gemma3", tmp_path / "overflowing")
    letters = {letter: 100 + number for number, letter in enumerate(ascii_letters)}
    tokenizer = Tokenizer(models.WordLevel(letters | {"<bos>": BOS, "<unk>": 99}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", BOS)])
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<bos>", unk_token="<unk>")
    fast.save_pretrained(folder)
    return folder
