"""A conversation with a planned model: each turn knows the ones before it. What `safe-dtype generate --chat` does."""

from __future__ import annotations

from threading import Event
from typing import TextIO

from .generate_text import Answer, Generator, Message


class Chat:
    """A conversation, as long as the model can read it whole; then without its oldest turns."""

    def __init__(self, generator: Generator, *, max_new_tokens: int) -> None:
        """Begin a conversation without a word.

        Raises:
            CheckpointError: If the model has no chat template.
        """
        generator.require_chat_template()
        self.generator = generator
        self.messages: list[Message] = []
        self.turns_left_out = 0
        self._max_new_tokens = max_new_tokens

    def reply(self, text: str, *, stream: TextIO | None = None, stop: Event | None = None) -> Answer:
        """Answer `text`, writing to `stream` as the tokens come.

        An answer that is stopped with `stop` is remembered as far as it came. Where an exception ends it, the
        conversation is as it was before.

        Raises:
            CheckpointError: If the tokenizer makes nothing of it.
        """
        messages: list[Message] = [*self.messages, {"role": "user", "content": text}]
        inputs = self.generator.chat_inputs(messages)
        longest = self.generator.longest_prompt(self._max_new_tokens)
        left_out = 0
        while longest and inputs["input_ids"].shape[1] > longest and len(messages) > 2:
            messages = messages[2:]
            left_out += 1
            inputs = self.generator.chat_inputs(messages)
        answer = self.generator.run(inputs, max_new_tokens=self._max_new_tokens, stream=stream, stop=stop)
        self.messages = [*messages, {"role": "assistant", "content": answer.text}]
        self.turns_left_out += left_out
        return answer
