"""How a child process gets its model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from optimizing.form_models import Mlp
from optimizing.jobs import job_of
from optimizing.zoo import ZOO

from safe_dtype.facts import BFLOAT16, FLOAT32
from safe_dtype.optimizing.attempts.load_model import (
    apply_remedies,
    load_subject,
    remedies_for,
    save_module,
    settings_of,
)
from safe_dtype.optimizing.nouns.job import Job


def test_class_of_the_script(tmp_path: Path) -> None:
    """A class that only the running script has is refused before any process is started."""
    model = type("Local", (torch.nn.Module,), {"__module__": "__main__"})()
    with pytest.raises(ValueError, match="Move the class to a module"):
        save_module(model, tmp_path / "model.pt")


def test_module(tmp_path: Path) -> None:
    """A module of the user's own is loaded in the job's dtype, for inference."""
    model = load_subject(replace(job_of(Mlp(), tmp_path), dtype=BFLOAT16))
    assert isinstance(model, Mlp)
    assert not model.training
    assert {(parameter.dtype, parameter.requires_grad) for parameter in model.parameters()} == {
        (torch.bfloat16, False)
    }


def test_model_of_transformers(tmp_path: Path) -> None:
    """A model of transformers is loaded by its class, without a cache, and with the settings that it was saved with."""
    ZOO["qwen3"].model().save_pretrained(tmp_path)
    job = Job(
        tmp_path, "Qwen3ForCausalLM", FLOAT32, "eager", tmp_path, tmp_path,
        loaded_with=("attn_implementation=eager",),
    )  # fmt: skip
    model = load_subject(job)
    assert not model.config.use_cache
    assert settings_of(model) == ("attn_implementation=eager",)
    assert remedies_for(model) == ("attn_implementation=sdpa",)
    apply_remedies(model, remedies_for(model))
    assert settings_of(model) == ("attn_implementation=sdpa",)


def test_unknown_class(tmp_path: Path) -> None:
    """A class that transformers does not have is an error that names it."""
    with pytest.raises(ValueError, match="transformers has no class Nothing"):
        load_subject(replace(job_of(Mlp(), tmp_path), model_class="Nothing"))


def test_plain_module_has_no_settings() -> None:
    """A module of the user's own has nothing to set; a remedy that is not known is an error."""
    assert settings_of(Mlp()) == remedies_for(Mlp()) == ()
    with pytest.raises(ValueError, match="No remedy is called 'luck=good'"):
        apply_remedies(Mlp(), ("luck=good",))
