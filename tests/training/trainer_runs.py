"""Short runs of the Trainer, with a fault or with a switch by hand, and all that two of them can differ in."""

from __future__ import annotations

import gc
import random
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate.utils import GradScalerKwargs
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PrinterCallback, Trainer, TrainerCallback, TrainingArguments

import safe_dtype
from safe_dtype.facts import BFLOAT16, FLOAT16, Dtype
from safe_dtype.training import switch_precision

NO_KERNEL = "\"addmm_impl_cpu_\" not implemented for '{}'"
NO_CUBLAS = "CUDA error: CUBLAS_STATUS_NOT_SUPPORTED when calling `cublasGemmEx(...)`"
_IN_TEXTS = {torch.bfloat16: "BFloat16", torch.float16: "Half", torch.float32: "Float"}


@dataclass(frozen=True)
class Fault:
    """What goes wrong in the second layer, in which optimizer step and in which dtypes.

    `kind`: "raise", "backward" (raises there), "nan" (the loss becomes NaN), "inf" (gradients alone) or "key" (a KeyError).
    `micro` is the only micro-batch of an accumulation that it meets; None: each.
    """

    step: int
    kind: str = "raise"
    dtypes: tuple[Dtype, ...] = (BFLOAT16,)
    micro: int | None = None


@dataclass(frozen=True)
class Setting:
    """A run. `by_hand` is a step, and the dtype that the run is switched to as it begins."""

    fault: Fault | None = None
    by_hand: tuple[int, Dtype] | None = None
    attached: bool = True
    dtype: Dtype = BFLOAT16
    policy: str | None = None
    max_memory: dict[str, int] | None = None
    accumulation: int = 1
    steps: int = 5
    loss_factor: float = 1.0
    init_scale: float | None = None
    trainer: type[Trainer] = Trainer
    arguments: dict[str, Any] = field(default_factory=dict)
    change: Callable[[nn.Module], nn.Module] = lambda model: model
    callbacks: tuple[type[TrainerCallback], ...] = ()
    resume: bool = False
    folder: str | None = None


@dataclass
class Run:
    """What came of it, and the Trainer itself. `passes` are the forward passes of the model."""

    trainer: Any
    texts: list[int]
    error: Exception | None
    random_states: list[Any]
    passes: int

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The rows of losses in the log."""
        return [row for row in self.trainer.state.log_history if "loss" in row]

    @property
    def scale(self) -> float:
        """The loss scale at the end."""
        return float(self.trainer.accelerator.scaler.get_scale())

    def everything(self) -> dict[str, Any]:
        """Return all that has to be equal, bit for bit, in two runs that did the same."""
        trainer = self.trainer
        states = trainer.optimizer.state_dict()["state"]
        return {
            "weights": {name: weight.detach().clone() for name, weight in trainer.model.named_parameters()},
            "states": {key: {name: value.clone() for name, value in row.items()} for key, row in states.items()},
            "losses": [row["loss"] for row in self.rows],
            "norms": [float(row["grad_norm"]) for row in self.rows],
            "rates": [row["learning_rate"] for row in self.rows],
            "global_step": trainer.state.global_step,
            "flos": trainer.state.total_flos,
            "texts": self.texts,
            "random": self.random_states,
        }


def run(setting: Setting) -> Run:
    """Train a tiny Llama, with dropout."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
        vocab_size=64, max_position_embeddings=32, attention_dropout=0.1,
    )  # fmt: skip
    model = setting.change(LlamaForCausalLM(config))
    texts = Texts()
    arguments = {
        "max_steps": setting.steps, "per_device_train_batch_size": 2, "learning_rate": 5e-3, "logging_steps": 1,
        "gradient_accumulation_steps": setting.accumulation, "report_to": [], "save_strategy": "no", "use_cpu": True,
        "bf16": setting.dtype == BFLOAT16, "fp16": setting.dtype == FLOAT16, "disable_tqdm": True, "warmup_steps": 2,
        "seed": 3, **setting.arguments,
    }  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="safe_dtype_trainer_") as name:
        trainer = setting.trainer(
            model=model,
            args=TrainingArguments(setting.folder or name, **arguments),
            train_dataset=texts,
            callbacks=[callback() for callback in setting.callbacks],
        )
        trainer.pop_callback(PrinterCallback)
        if setting.loss_factor != 1.0:
            compute_loss = trainer.compute_loss
            trainer.compute_loss = lambda *a, **k: compute_loss(*a, **k) * setting.loss_factor
        if setting.attached:
            safe_dtype.attach(trainer, setting.policy, max_memory=setting.max_memory)
        if setting.init_scale:
            trainer.accelerator.scaler_handler = GradScalerKwargs(init_scale=setting.init_scale)
        if setting.by_hand:
            trainer.add_callback(SwitchByHand(trainer, *setting.by_hand))
        injector = Injector(trainer, setting.fault)
        error: Exception | None = None
        gc.freeze()  # the Trainer collects garbage as it begins, which takes ten times as long as all of its steps
        try:
            trainer.train(resume_from_checkpoint=setting.resume or None)
        except Exception as exc:  # noqa: BLE001  (the caller looks at it)
            error = exc
        finally:
            gc.unfreeze()
        injector.remove()
        return Run(trainer, texts.seen, error, [torch.get_rng_state(), random.getstate()], injector.micro + 1)


def difference(one: Any, other: Any, name: str = "run") -> str:
    """Return where two values differ, bit for bit; nothing where they are equal."""
    if isinstance(one, torch.Tensor):
        return "" if torch.equal(one, other) else f"{name} by {(one.double() - other.double()).abs().max():.1e}; "
    if isinstance(one, dict) and one.keys() == other.keys():
        return "".join(difference(value, other[key], f"{name}.{key}") for key, value in one.items())
    if isinstance(one, list | tuple) and len(one) == len(other):
        return "".join(difference(*pair, f"{name}.{place}") for place, pair in enumerate(zip(one, other, strict=True)))
    return "" if type(one) is type(other) and one == other else f"{name}: {one!r} is not {other!r}; "


class Texts(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """Random texts, which remember in what order they were asked for."""

    def __init__(self) -> None:
        self.tokens = torch.randint(0, 64, (64, 10), generator=torch.Generator().manual_seed(5))
        self.seen: list[int] = []

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        self.seen.append(index)
        return {"input_ids": self.tokens[index], "labels": self.tokens[index].clone()}


class SwitchByHand(TrainerCallback):  # type: ignore[misc]
    """Changes the precision as a step begins, where nothing has failed."""

    def __init__(self, trainer: Trainer, step: int, dtype: Dtype) -> None:
        self.trainer, self.step, self.dtype = trainer, step, dtype

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Switch."""
        if state.global_step == self.step:
            accelerator = self.trainer.accelerator
            if not accelerator._models:  # a second run under DDP, or of a compiled model
                accelerator._models.append(self.trainer.model)
            switch_precision(accelerator, self.dtype)


class Injector:
    """Lets a layer fail as `fault` says, by the dtype that it computes in."""

    def __init__(self, trainer: Trainer, fault: Fault | None) -> None:
        self.trainer, self.fault, self.micro = trainer, fault, -1
        layers = [layer for name, layer in trainer.model.named_modules() if name.endswith("layers.1.mlp.down_proj")]
        self.handles = [
            trainer.model.register_forward_pre_hook(self._count), *(one.register_forward_hook(self._fail) for one in layers)
        ]  # fmt: skip

    def remove(self) -> None:
        """Let nothing fail any more."""
        for handle in self.handles:
            handle.remove()

    def _count(self, *_: Any) -> None:
        self.micro += 1

    def _fail(self, _module: nn.Module, _inputs: Any, output: torch.Tensor) -> torch.Tensor | None:
        fault, trainer = self.fault, self.trainer
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else torch.float32
        if fault is None or trainer.state.global_step != fault.step or not trainer.model.training:
            return None
        if dtype not in {getattr(torch, one.name) for one in fault.dtypes}:
            return None
        if fault.micro is not None and self.micro % trainer.args.gradient_accumulation_steps != fault.micro:
            return None
        if fault.kind == "raise":
            raise RuntimeError(NO_KERNEL.format(_IN_TEXTS[dtype]))
        if fault.kind == "key":
            raise KeyError("labels")
        return output * float("nan") if fault.kind == "nan" else _FailsBackward.apply(output, fault.kind)  # type: ignore[no-any-return, no-untyped-call]


class _FailsBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, kind: str) -> torch.Tensor:
        ctx.kind = kind
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        if ctx.kind == "backward":
            raise RuntimeError(NO_CUBLAS)
        return gradients[0] * float("inf"), None
