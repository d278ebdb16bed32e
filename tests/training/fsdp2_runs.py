"""Runs under FSDP2 as accelerate prepares it, on CPUs: with a kernel that is not there, or with a switch by hand.

accelerate 1.15 takes an FSDP plugin for DDP where the device is a CPU. What it does for an accelerator runs here all the same:
its state is told of FSDP once it is made, and the Accelerators that come after it prepare, clip, save and step so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator, FullyShardedDataParallelPlugin
from accelerate.state import AcceleratorState, DistributedType, GradientState, PartialState
from accelerate.utils import GradScalerKwargs
from ranks.processes import begin_case
from torch import nn
from training.trainer_runs import SwitchByHand, Texts, difference
from transformers import LlamaConfig, LlamaForCausalLM, PrinterCallback, Trainer, TrainingArguments

import safe_dtype
from safe_dtype.facts import BFLOAT16, FLOAT16, FLOAT32, Dtype
from safe_dtype.training import PrecisionGuard, switch_precision

STEPS, FAILS_AT = 5, 2


@dataclass(frozen=True)
class Case:
    """What goes wrong on the second rank as the third step is made, in which dtypes; or what is switched to by hand there."""

    name: str
    dtypes: tuple[Dtype, ...] = ()
    phase: str = "forward"  # or "backward", or "nan"
    by_hand: Dtype | None = None
    factor: float = 1.0  # of the loss
    scale: float = 2.0**16  # of float16's, at first


FAILURES = (
    (Case("forward", (BFLOAT16,)), FLOAT16),
    (Case("both dtypes", (BFLOAT16, FLOAT16)), FLOAT32),
    (Case("backward", (BFLOAT16,), "backward"), FLOAT16),
    (Case("NaN", (BFLOAT16,), "nan"), FLOAT16),
)


class Activation(nn.Module):
    """SiLU; at one step it uses an operation of torch that CPUs lack in some dtypes, and whose result changes nothing."""

    case: Case | None = None  # on a rank that fails
    step = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return as many numbers."""
        case = self.case
        if case is not None and self.step == FAILS_AT and x.dtype in {getattr(torch, one.name) for one in case.dtypes}:
            if case.phase == "nan":
                x = x * float("nan")
            elif case.phase == "backward":
                x = _BackwardFails.apply(x)
            else:
                x = torch.where(torch.zeros_like(x).bool(), torch.special.log_ndtr(x), x)
        return nn.functional.silu(x)


class _BackwardFails(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        return torch.where(torch.zeros_like(gradient).bool(), torch.special.log_ndtr(gradient), gradient)


@contextmanager
def told_of_fsdp2(plugin: FullyShardedDataParallelPlugin) -> Iterator[None]:
    """Have every Accelerator of the block use FSDP2, on CPUs as elsewhere."""
    AcceleratorState._reset_state()
    GradientState._reset_state()
    plain = Accelerator(mixed_precision="bf16", cpu=True, fsdp_plugin=plugin)
    assert plain.distributed_type is DistributedType.MULTI_CPU
    plugin.set_mixed_precision("bf16")
    for state in (AcceleratorState, PartialState):
        state._shared_state["distributed_type"] = DistributedType.FSDP
    AcceleratorState._shared_state["fsdp_plugin"] = plugin
    try:
        yield
    finally:
        AcceleratorState._reset_state(True)
        GradientState._reset_state()


def plugin() -> FullyShardedDataParallelPlugin:
    """Return the plugin of `safe-dtype accelerate-config --engine fsdp2`."""
    return FullyShardedDataParallelPlugin(
        fsdp_version=2, auto_wrap_policy="transformer_based_wrap", cpu_ram_efficient_loading=False,
        state_dict_type="SHARDED_STATE_DICT",
    )  # fmt: skip


def model_for(case: Case) -> tuple[nn.Module, list[Activation]]:
    """Make a tiny Llama with dropout; the second rank fails as the case says."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
        vocab_size=64, max_position_embeddings=32, attention_dropout=0.1,
    )  # fmt: skip
    model = LlamaForCausalLM(config).train()
    activations = []
    for layer in model.model.layers:
        layer.mlp.act_fn = Activation()
        activations.append(layer.mlp.act_fn)
    if dist.get_rank() == 1:
        activations[1].case = case
    return model, activations


def in_a_loop(case: Case) -> dict[str, Any]:
    """Train with plain accelerate, windows of two; return all that is left of it."""
    torch.set_num_threads(1)
    model, activations = model_for(case)
    with told_of_fsdp2(plugin()):
        accelerator = Accelerator(
            mixed_precision="bf16", cpu=True, gradient_accumulation_steps=2, fsdp_plugin=plugin()
        )
        model, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters(), 5e-3))
        guard = PrecisionGuard(accelerator, model, init_scale=case.scale)
        texts = torch.stack([Texts()[number]["input_ids"] for number in range(4 * STEPS)])
        batches = [text[None] for text in texts[dist.get_rank() :: 2]]
        torch.manual_seed(10 + dist.get_rank())
        losses = []
        for step, window in enumerate(guard.windows(batches, 2)):
            for activation in activations:
                activation.step = step
            if case.by_hand is not None and step == FAILS_AT:
                switch_precision(accelerator, case.by_hand, init_scale=case.scale)
                guard.loop.dtype = case.by_hand
            for attempt in guard.attempts():
                with attempt:
                    total = 0.0
                    for tokens in window:
                        with accelerator.accumulate(model):
                            loss = model(input_ids=tokens, labels=tokens).loss * case.factor
                            accelerator.backward(loss)
                            total += loss.item()
                            if accelerator.sync_gradients:
                                accelerator.clip_grad_norm_(model.parameters(), 1.0)
                            optimizer.step()
                            optimizer.zero_grad()
            losses.append(total)
        assert accelerator.distributed_type is DistributedType.FSDP
        scale = guard.loop.scaler.get_scale() if guard.loop.scaler is not None else 0.0
        return {**_left(model, optimizer.optimizer), "losses": losses, "ended in": guard.dtype.name, "scale": scale}


def with_the_trainer(case: Case) -> dict[str, Any]:
    """Train by the Trainer, attached but for a switch by hand."""
    torch.set_num_threads(1)
    model, activations = model_for(case)
    arguments = TrainingArguments(
        f"/tmp/safe_dtype_fsdp2_{dist.get_rank()}", bf16=True, use_cpu=True, max_steps=STEPS, logging_steps=1,
        per_device_train_batch_size=1, gradient_accumulation_steps=2, save_strategy="no", report_to=[], seed=3,
        disable_tqdm=True, learning_rate=5e-3, fsdp=True, fsdp_config={"version": 2, "cpu_ram_efficient_loading": False},
    )  # fmt: skip
    with told_of_fsdp2(plugin()):
        trainer = Trainer(model, arguments, train_dataset=Texts())
        trainer.pop_callback(PrinterCallback)
        trainer.add_callback(_Clock(activations))
        if case.by_hand is None:
            safe_dtype.attach(trainer)
        else:
            trainer.accelerator.scaler_handler = GradScalerKwargs(init_scale=case.scale)
            trainer.add_callback(SwitchByHand(trainer, FAILS_AT, case.by_hand))
        trainer.train()
        assert trainer.accelerator.distributed_type is DistributedType.FSDP
        rows = [row for row in trainer.state.log_history if "loss" in row]
        left = _left(trainer.model, trainer.optimizer.optimizer)
        names = ("loss", "grad_norm", "learning_rate")
        scaler = trainer.accelerator.scaler
        return {
            **left, "rows": [[float(row[name]) for name in names] for row in rows],
            "ended in": rows[-1].get("precision", str(case.by_hand)), "scale": scaler.get_scale() if scaler else 0.0,
        }  # fmt: skip


class _Clock(SwitchByHand):
    def __init__(self, activations: list[Activation]) -> None:
        self.activations = activations

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Tell the activations which step it is."""
        for activation in self.activations:
            activation.step = state.global_step


def _left(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    def whole(value: Any) -> Any:
        return value.full_tensor() if hasattr(value, "full_tensor") else value

    return {
        "weights": {name: whole(weight.detach()) for name, weight in model.named_parameters()},
        "moments": [[whole(part) for part in state.values()] for state in optimizer.state.values()],
        "draws": torch.get_rng_state(),
    }


def differences(chosen: dict[str, list[str]]) -> dict[str, dict[str, str]]:
    """Return where each failure differs from the run that was switched by hand on all ranks as that step began.

    Args:
        chosen: The names of the failures, for each way to train: "loop", "trainer".
    """
    ways = {"loop": in_a_loop, "trainer": with_the_trainer}
    return {way: {name: _difference(way, ways[way], name) for name in names} for way, names in chosen.items()}


def _difference(way: str, make: Callable[[Case], dict[str, Any]], name: str) -> str:
    case, dtype = next(failure for failure in FAILURES if failure[0].name == name)
    begin_case(f"{way}: {name}", 60)
    ours = make(case)
    by_hand = make(replace(case, dtypes=(), by_hand=dtype, scale=ours["scale"] or case.scale))
    return difference(ours, by_hand) + ("" if ours["ended in"] == dtype.name else ours["ended in"])
