"""Text from a planned model, streamed and timed: what `safe-dtype generate` does."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from threading import Event
from typing import Any, TextIO

import torch
import transformers
from jinja2 import TemplateError  # transformers' own dependency for templates

from ..errors import CheckpointError
from ..guarding import report
from ..loading import Request, SafeAutoModel
from ..models.origin import plan_of
from ..planning import Plan

_NO_TOKENIZER = "copy that of its base model into the folder, or pass a model that has one"

Message = dict[str, str]  # "role" and "content", as chat templates take them


@dataclass(frozen=True)
class Answer:
    """One answer and its timing."""

    text: str
    new_tokens: int
    first_token_seconds: float  # the prompt's forward pass and the first token
    seconds: float  # everything
    events: tuple[str, ...] = ()  # what the guard had to do
    stopped: bool = False  # by the user, before it came to its end

    @property
    def tokens_per_second(self) -> float:
        """Tokens a second after the first one; of the whole where there is only one."""
        later = self.seconds - self.first_token_seconds
        return (self.new_tokens - 1) / later if self.new_tokens > 1 and later > 0 else self.new_tokens / self.seconds

    def closing_line(self, plan: Plan) -> str:
        """Return the dtype, why, and the speed, in one line; in lines below it what the guard had to do."""
        dtype = plan.chosen.candidate if plan.chosen else plan.compute
        events = "".join(f"\n[{event}]" for event in self.events)
        how = " rescaled exactly" if plan.rescale else ""
        return f"[{dtype}{how} on {plan.device_name}: {plan.reason} | {self.speed}]{events}"

    @property
    def speed(self) -> str:
        """How many tokens, how fast, and whether that is all of it."""
        stopped = ", stopped" if self.stopped else ""
        return (
            f"{self.new_tokens} tokens{stopped}, {self.tokens_per_second:.1f} tokens/s, "
            f"first after {self.first_token_seconds * 1e3:.0f} ms"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the answer as plain values."""
        return {**asdict(self), "tokens_per_second": self.tokens_per_second}


class _TimedStreamer(transformers.TextStreamer):  # type: ignore[misc]
    """Writes text to `stream` as it comes, with `echo` the prompt before it, and notes when the first token came."""

    def __init__(self, tokenizer: Any, stream: TextIO | None, *, echo: bool) -> None:
        super().__init__(tokenizer, skip_prompt=not echo, skip_special_tokens=True)
        self._stream = stream
        self._started = time.perf_counter()
        self._puts = 0
        self.first_token_seconds = 0.0

    def put(self, value: Any) -> None:
        """Take the prompt, then one token a call."""
        self._puts += 1
        if self._puts == 2:
            self.first_token_seconds = time.perf_counter() - self._started
        super().put(value)

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:  # noqa: FBT001, FBT002
        """Write what is ready, and end the line at the end."""
        if self._stream is not None:
            self._stream.write(text + "\n" * stream_end)
            self._stream.flush()


class _Stopped(transformers.StoppingCriteria):  # type: ignore[misc]
    """Ends the generation after the step in which `stop` is set."""

    def __init__(self, stop: Event) -> None:
        self._stop = stop

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:  # noqa: ARG002
        return torch.full((input_ids.shape[0],), self._stop.is_set(), dtype=torch.bool, device=input_ids.device)


@dataclass(frozen=True)
class Generator:
    """A loaded model with its tokenizer."""

    model: Any
    tokenizer: Any

    @property
    def plan(self) -> Plan:
        """The plan that the model was loaded with: what was only expected before is measured in it."""
        return plan_of(self.model)

    @classmethod
    def load(cls, source: str, plan: Plan, *, revision: str | None = None) -> Generator:
        """Load `source`, a GGUF file as well, with `plan`, on the plan's device.

        Raises:
            CheckpointError: If it has no tokenizer, or its architecture does not generate.
        """
        request = Request(source, {"revision": revision}).in_folder()
        if "gguf_file" not in request.arguments:
            _require_generating(source, revision)
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(
                request.source, trust_remote_code=False, **request.arguments
            )
        except (OSError, ValueError) as exc:
            problem = f"has no tokenizer that transformers can load ({exc})"
            raise CheckpointError(source, problem, _NO_TOKENIZER) from exc
        if len(tokenizer) <= 1:  # without any file of one, transformers makes one that knows no word
            raise CheckpointError(source, "has no tokenizer", _NO_TOKENIZER)
        where = {} if plan.device_map else {"device_map": plan.device.partition(",")[0]}
        model = SafeAutoModel.from_pretrained(request.source, plan=plan, **request.arguments, **where).eval()
        if not getattr(model, "can_generate", lambda: False)():
            raise _silent(source, type(model).__name__)
        return cls(model, tokenizer)

    def answer(
        self,
        prompt: str,
        *,
        max_new_tokens: int,
        chat: bool = False,
        stream: TextIO | None = None,
        echo: bool = False,
    ) -> Answer:
        """Continue `prompt`, writing to `stream` as the tokens come, with `echo` the prompt as the model reads it first.

        Raises:
            CheckpointError: If `chat` is asked of a model without a chat template, or the tokenizer makes nothing of
                `prompt`.
        """
        if chat:
            self.require_chat_template()
            return self.run(
                self.chat_inputs([{"role": "user", "content": prompt}]), max_new_tokens=max_new_tokens, stream=stream
            )
        inputs = self.tokenizer(prompt, return_tensors="pt")
        echo = echo and not self.model.config.is_encoder_decoder  # what that writes is no continuation
        return self.run(inputs, max_new_tokens=max_new_tokens, stream=stream, echo=echo)

    def run(
        self,
        inputs: Any,
        *,
        max_new_tokens: int,
        stream: TextIO | None = None,
        echo: bool = False,
        stop: Event | None = None,
    ) -> Answer:
        """Generate from what the tokenizer made, until the model ends, the tokens are used up, or `stop` is set.

        Raises:
            CheckpointError: If the tokenizer made nothing.
        """
        if not inputs["input_ids"].numel():
            problem = "its tokenizer makes no token of this prompt"
            raise CheckpointError(self.tokenizer.name_or_path, problem, "pass a prompt with words in it")
        inputs.pop("token_type_ids", None)  # some tokenizers make them, no decoder takes them
        inputs = inputs.to(self.model.device)
        streamer = _TimedStreamer(self.tokenizer, stream, echo=echo)
        criteria = [_Stopped(stop)] if stop is not None else []
        started = time.perf_counter()
        streams = not self._searches  # which knows its tokens at the end alone
        with torch.inference_mode():
            tokens = self.model.generate(
                **inputs,
                max_new_tokens=max_new_tokens,
                streamer=streamer if streams else None,
                stopping_criteria=criteria,
            )[0]
        seconds = time.perf_counter() - started
        prompt_length = 1 if self.model.config.is_encoder_decoder else inputs["input_ids"].shape[1]
        text = self.tokenizer.decode(tokens[prompt_length:], skip_special_tokens=True)
        if not streams:
            streamer.first_token_seconds = seconds
            streamer.on_finalized_text(
                self.tokenizer.decode(tokens, skip_special_tokens=True) if echo else text, stream_end=True
            )
        events = tuple(str(event) for event in report(self.model).events)
        stopped = stop is not None and stop.is_set()
        return Answer(text, len(tokens) - prompt_length, streamer.first_token_seconds, seconds, events, stopped)

    @property
    def _searches(self) -> bool:
        """Whether the model's own generation config asks for beams."""
        return (getattr(self.model.generation_config, "num_beams", None) or 1) > 1

    def require_chat_template(self) -> None:
        """Raise where the model was not made to chat.

        Raises:
            CheckpointError: If it has no chat template.
        """
        if not self.tokenizer.chat_template:
            raise CheckpointError(
                self.tokenizer.name_or_path, "has no chat template", "leave out --chat, or pass a chat model"
            )

    def chat_inputs(self, messages: Sequence[Message]) -> Any:
        """Return the tokens of a conversation, with the beginning of the next answer.

        Raises:
            CheckpointError: If its chat template is none, or refuses the conversation.
        """
        try:
            return self.tokenizer.apply_chat_template(
                list(messages), add_generation_prompt=True, return_tensors="pt", return_dict=True
            )
        except TemplateError as exc:
            problem = f"its chat template ends with an error ({exc})"
            raise CheckpointError(
                self.tokenizer.name_or_path, problem, "leave out --chat, or mend the template"
            ) from exc

    def longest_prompt(self, new_tokens: int) -> int:
        """Return how many tokens may stand before `new_tokens` others; 0 where the model tells no limit."""
        limit = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        return max(limit - new_tokens, 1) if isinstance(limit, int) else 0


def _require_generating(source: str, revision: str | None) -> None:
    """Raise where the config names an architecture that generates nothing: before a tokenizer is missed."""
    try:
        config = transformers.AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=False)
    except (OSError, ValueError):
        return  # an adapter, say: the model tells, once it is loaded
    architecture = next(iter(config.architectures or ()), "")
    if not getattr(getattr(transformers, architecture, None), "can_generate", lambda: True)():
        raise _silent(source, architecture)


def _silent(source: str, architecture: str) -> CheckpointError:
    return CheckpointError(source, f"{architecture} does not generate text", "pass a language model")
