"""Examine many classes side by side, each in a time box: a class that hangs or crashes ends its worker, not the sweep."""

from __future__ import annotations

import multiprocessing
import os
import queue
import threading
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection

from .subjects import Subject
from .trial import ORDERS, Row, examine

Orders = tuple[tuple[str, str | None], ...]
_START = 120.0  # seconds to import everything


def rows_of(
    subjects: Sequence[Subject], *, workers: int = 2, limit: float = 120.0, orders: Orders = ORDERS
) -> Iterator[Row]:
    """Yield the row of each class, in the order in which they are done.

    Args:
        subjects: What to examine.
        workers: Processes side by side, of one thread each.
        limit: Seconds for one class.
        orders: Files and dtypes that each is loaded with.
    """
    waiting: queue.SimpleQueue[Subject] = queue.SimpleQueue()
    done: queue.SimpleQueue[Row] = queue.SimpleQueue()
    for subject in subjects:
        waiting.put(subject)
    threads = [
        threading.Thread(target=_drive, args=(waiting, done, limit, orders), daemon=True) for _ in range(workers)
    ]
    for thread in threads:
        thread.start()
    for _ in subjects:
        yield done.get()


def _drive(waiting: queue.SimpleQueue[Subject], done: queue.SimpleQueue[Row], limit: float, orders: Orders) -> None:
    """Have one worker after another examine what is waiting; a new one wherever the last one has ended."""
    worker = None
    while True:
        try:
            subject = waiting.get_nowait()
        except queue.Empty:
            break
        worker = worker or _Worker(orders)
        row = worker.row(subject, limit)
        if worker.is_over:
            worker = None
        done.put(row)
    if worker is not None:
        worker.end()


class _Worker:
    """A process that examines one class after another."""

    def __init__(self, orders: Orders) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._pipe, theirs = spawn.Pipe()
        self._process = spawn.Process(target=_work, args=(theirs, orders), daemon=True)
        self._process.start()
        theirs.close()
        self.is_over = not self._pipe.poll(_START) or self._pipe.recv() != "ready"

    def row(self, subject: Subject, limit: float) -> Row:
        """Return what comes of `subject`, or how the process has ended over it."""
        problem = f"not done within {limit:.0f} s"
        try:
            self._pipe.send(subject)
            if self._pipe.poll(limit):
                row: Row = self._pipe.recv()
                return row
        except (EOFError, OSError):
            self._process.join()
            problem = f"CRASHED: ended with status {self._process.exitcode}"
        self.is_over = True
        self.end()
        return Row(subject.model_type, subject.model_class, problem=problem, seconds=limit)

    def end(self) -> None:
        """Stop the process."""
        self._process.kill()
        self._process.join()
        self._pipe.close()


def _work(pipe: Connection, orders: Orders) -> None:
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch
    import transformers

    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    pipe.send("ready")
    while True:
        try:
            subject = pipe.recv()
        except EOFError:
            return
        pipe.send(examine(subject, orders))
