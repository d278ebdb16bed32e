"""`safe-dtype generate --chat` without a prompt: a conversation in turns, piped and on a terminal."""

from __future__ import annotations

import io
import json
import os
import select
import shutil
import signal
import sys
import threading
import time
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from command_run import Run

from safe_dtype.commands.chat import Chat
from safe_dtype.commands.generate_text import Answer, Generator
from safe_dtype.errors import CheckpointError
from safe_dtype.loading import Request, plan_request


@pytest.fixture(scope="module")
def generator(tiny_qwen3: Path) -> Generator:
    """The bundled model, loaded."""
    return Generator.load(str(tiny_qwen3), plan_request(Request(str(tiny_qwen3), {"dtype": "float32"})))


def without_an_end(tiny_qwen3: Path, folder: Path) -> Path:
    """Return a copy of the model that knows no token at which an answer ends."""
    shutil.copytree(tiny_qwen3, folder)
    for name in ("generation_config.json", "config.json"):
        values = json.loads((folder / name).read_text())
        values.pop("eos_token_id", None)
        (folder / name).write_text(json.dumps(values))
    return folder


@pytest.mark.parametrize("template", ["{% for m in %}", "{{ raise_exception('no users here') }}"])
def test_template_that_ends_with_an_error(generator: Generator, template: str) -> None:
    """A chat template that cannot be read, or refuses the conversation, is named as what is wrong."""
    tokenizer = deepcopy(generator.tokenizer)
    tokenizer.chat_template = template
    with pytest.raises(CheckpointError, match="its chat template ends with an error"):
        Chat(Generator(generator.model, tokenizer), max_new_tokens=2).reply("Hello")


def test_turns_know_the_ones_before(generator: Generator) -> None:
    """An answer is the model's to the whole conversation, and stands in it for the next turn."""
    chat = Chat(generator, max_new_tokens=6)
    first, second = chat.reply("Who are you?"), chat.reply("And why?")
    assert chat.messages == [
        {"role": "user", "content": "Who are you?"}, {"role": "assistant", "content": first.text},
        {"role": "user", "content": "And why?"}, {"role": "assistant", "content": second.text},
    ]  # fmt: skip
    whole = generator.run(generator.chat_inputs(chat.messages[:3]), max_new_tokens=6)
    assert second.text == whole.text


def test_streamed(generator: Generator) -> None:
    """What is streamed is the answer, with one end of line."""
    stream = io.StringIO()
    answer = Chat(generator, max_new_tokens=8).reply("Hello", stream=stream)
    assert stream.getvalue() == f"{answer.text}\n"


def test_stopped(generator: Generator) -> None:
    """An answer that is stopped ends after its token and is remembered as far as it came."""
    stop = threading.Event()
    stop.set()
    chat = Chat(generator, max_new_tokens=50)
    answer = chat.reply("Hello", stop=stop)
    assert (answer.stopped, answer.new_tokens) == (True, 1)
    assert chat.messages[-1] == {"role": "assistant", "content": answer.text}
    assert "stopped" in answer.speed


def test_longer_than_the_model_reads(generator: Generator) -> None:
    """The oldest turns leave a conversation that has become longer than the model reads."""
    inputs = generator.chat_inputs([{"role": "user", "content": "word " * 20}])
    limit = inputs["input_ids"].shape[1] * 2

    class ShortSighted(Generator):
        def longest_prompt(self, new_tokens: int) -> int:
            return limit

    chat = Chat(ShortSighted(generator.model, generator.tokenizer), max_new_tokens=2)
    for _ in range(4):
        chat.reply("word " * 20)
    assert chat.turns_left_out > 0
    assert generator.chat_inputs(chat.messages[:-1])["input_ids"].shape[1] <= limit
    assert chat.messages[0]["role"] == "user"
    assert generator.longest_prompt(10) == generator.model.config.max_position_embeddings - 10


def test_no_chat_template(tiny_qwen3: Path, tmp_path: Path, run: Run) -> None:
    """A model that was not made to chat is refused before a word is read, with what to do."""
    folder = Path(shutil.copytree(tiny_qwen3, tmp_path / "model"))
    (folder / "chat_template.jinja").unlink()
    for words in ((), ("Hello",)):
        done = run("generate", folder, *words, "--chat")
        assert done.returncode == 1
        assert "has no chat template" in done.stderr
        assert not done.stdout


def test_piped(tiny_qwen3: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every line that is piped in is a turn, empty ones apart; only answers come out, and the end of the lines ends it."""
    monkeypatch.setattr(sys, "stdin", io.StringIO("Who are you?\n\n  \nAnd why?"))
    done = run("generate", tiny_qwen3, "--chat", "--max-new-tokens", "6", "--dtype", "float32")
    assert done.returncode == 0, done.stderr
    monkeypatch.setattr(sys, "stdin", io.StringIO("Who are you?\nAnd why?\n"))
    as_json = run("generate", tiny_qwen3, "--chat", "--max-new-tokens", "6", "--dtype", "float32", "--format", "json")
    told = json.loads(as_json.stdout)
    assert done.stdout == "".join(f"{turn['text']}\n" for turn in told["turns"])
    assert [message["role"] for message in told["messages"]] == ["user", "assistant"] * 2
    assert (told["schema"], told["plan"]["storage"]) == (1, "float32")
    assert done.stderr.count("tokens/s") == 2
    assert ">" not in done.stdout


def test_nobody_talks(tiny_qwen3: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A conversation without a line is no error."""
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    done = run("generate", tiny_qwen3, "--chat")
    assert (done.returncode, done.stdout) == (0, "")


def test_a_prompt_is_needed(tiny_qwen3: Path, run: Run) -> None:
    """Without --chat a missing prompt is a wrong usage, told before anything is loaded."""
    done = run("generate", tiny_qwen3)
    assert (done.returncode, done.stdout) == (2, "")
    assert "PROMPT" in done.stderr
    assert "--chat" in done.stderr


class Terminal:
    """`safe-dtype` on a terminal of its own, and a person in front of it."""

    def __init__(self, *arguments: str) -> None:
        """Start it."""
        pty = pytest.importorskip("pty")
        self.process, self._screen = pty.fork()
        if self.process == 0:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # which the background of a shell ignores
            os.execv(sys.executable, [sys.executable, "-m", "safe_dtype", *arguments])
        self.text, self._seen = "", 0

    def wait_for(self, words: str, seconds: float = 60) -> None:
        """Read until `words` are shown, after what was waited for before."""
        end = time.monotonic() + seconds
        while words not in self.text[self._seen :]:
            ready, _, _ = select.select([self._screen], [], [], max(0.0, end - time.monotonic()))
            if not ready:
                os.kill(self.process, signal.SIGKILL)
                pytest.fail(f"waited for {words!r} in {self.text!r}")
            self.text += os.read(self._screen, 4096).decode("utf-8", "replace")
        self._seen = self.text.index(words, self._seen) + len(words)

    def press(self, keys: str) -> None:
        """Type."""
        os.write(self._screen, keys.encode())

    def status(self) -> int:
        """Read the rest, and return how it ended."""
        while True:
            try:
                rest = os.read(self._screen, 4096)
            except OSError:  # Linux says so when the other side is closed
                break
            if not rest:
                break
            self.text += rest.decode("utf-8", "replace")
        return os.waitstatus_to_exitcode(os.waitpid(self.process, 0)[1])


@pytest.mark.slow
def test_on_a_terminal(tiny_qwen3: Path, tmp_path: Path) -> None:
    """Ctrl-C stops an answer and not the chat, nor does it end it at the prompt; Ctrl-D ends it."""
    folder = without_an_end(tiny_qwen3, tmp_path / "endless")
    terminal = Terminal("generate", str(folder), "--chat", "--max-new-tokens", "3000", "--dtype", "float32")
    terminal.wait_for("\n> ")
    time.sleep(0.5)  # Python loses a signal between the prompt that it shows and the wait for a key
    terminal.press("\x03")
    terminal.wait_for("Ctrl-D")
    terminal.wait_for("> ")
    for _ in range(2):
        terminal.press("Hello\n")
        terminal.wait_for("Hello")
        time.sleep(1)
        terminal.press("\x03")
        terminal.wait_for("stopped")
        terminal.wait_for("> ")
    terminal.press("\x04")
    assert terminal.status() == 0, terminal.text
    assert "Traceback" not in terminal.text


def test_the_prompt_stands_before_its_answer(tiny_qwen3: Path) -> None:
    """On a terminal the answer follows the prompt that it continues."""
    terminal = Terminal("generate", str(tiny_qwen3), "The argument is", "--max-new-tokens", "4", "--dtype", "float32")
    assert terminal.status() == 0, terminal.text
    lines = [line for line in terminal.text.replace("\r", "\n").splitlines() if "The argument is" in line]
    assert len([line for line in lines if line.rpartition("The argument is")[2].strip()]) == 1


def test_echo_is_not_the_answer(generator: Generator) -> None:
    """With the echo the same answer is given, and the stream holds the prompt before it."""
    stream: Any = io.StringIO()
    plain: Answer = generator.answer("The argument is", max_new_tokens=4)
    echoed = generator.answer("The argument is", max_new_tokens=4, stream=stream, echo=True)
    assert echoed.text == plain.text
    assert stream.getvalue().startswith("The argument is")
    assert stream.getvalue().rstrip("\n").endswith(plain.text)


def test_refused_by_name(generator: Generator) -> None:
    """The error names the model that has no template."""
    mute = Generator(generator.model, SimpleNamespace(chat_template=None, name_or_path="org/mute"))
    with pytest.raises(CheckpointError, match="org/mute"):
        Chat(mute, max_new_tokens=1)


def test_without_stdin(run: Run, tiny_qwen3: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A chat of a process without stdin ends before its first turn."""
    monkeypatch.setattr(sys, "stdin", None)
    done = run("generate", str(tiny_qwen3), "--chat", "--dtype", "float32")
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
