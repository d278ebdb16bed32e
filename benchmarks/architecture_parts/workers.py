"""Examine many classes side by side, each in a time box: a class that hangs or crashes ends its worker, not the sweep."""

from __future__ import annotations

import gc
import math
import multiprocessing
import os
import queue
import threading
import time
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection

from .subjects import Subject
from .trial import ORDERS, Orders, Row, examine

_START = 120.0  # seconds to import everything


def rows_of(
    subjects: Sequence[Subject],
    *,
    workers: int = 2,
    limit: float = 120.0,
    orders: Orders = ORDERS,
    seconds: float | None = None,
) -> Iterator[Row]:
    """Yield a row for each class, in the order in which they are done.

    Args:
        subjects: Classes.
        workers: Processes side by side, of one thread each.
        limit: Seconds for one class.
        orders: Files and dtypes that each is loaded with.
        seconds: After so long no further class is begun.
    """
    waiting: queue.SimpleQueue[Subject] = queue.SimpleQueue()
    done: queue.SimpleQueue[Row | None] = queue.SimpleQueue()
    for subject in subjects:
        waiting.put(subject)
    end = math.inf if seconds is None else time.monotonic() + seconds
    threads = [
        threading.Thread(target=_drive, args=(waiting, done, limit, orders, end), daemon=True) for _ in range(workers)
    ]
    for thread in threads:
        thread.start()
    left = workers
    while left:
        row = done.get()
        if row is None:
            left -= 1
        else:
            yield row


def _drive(
    waiting: queue.SimpleQueue[Subject], done: queue.SimpleQueue[Row | None], limit: float, orders: Orders,
    end: float,
) -> None:  # fmt: skip
    """Have one worker after another examine what is waiting; a new one wherever the last one has ended."""
    worker = None
    try:
        while time.monotonic() < end:
            subject = waiting.get_nowait()
            worker = worker or _Worker(orders)
            done.put(worker.row(subject, limit))
            if worker.is_over:
                worker = None
    except queue.Empty:
        pass
    finally:
        if worker is not None:
            worker.end()
        done.put(None)


class _Worker:
    """A process that examines one class after another."""

    def __init__(self, orders: Orders) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._pipe, theirs = spawn.Pipe()
        self._process = spawn.Process(target=_work, args=(theirs, orders), daemon=True)
        self._process.start()
        theirs.close()
        self.is_over = False
        try:
            self._pipe.poll(_START)
            self._pipe.recv()  # it has imported everything: that is not counted to the first class
        except EOFError:
            self.is_over = True

    def row(self, subject: Subject, limit: float) -> Row:
        """Return what comes of one class, or how the process has ended over it."""
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
        return Row(subject, problem=problem, seconds=limit)

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
    gc.freeze()
    pipe.send("ready")
    while True:
        try:
            subject = pipe.recv()
        except EOFError:
            return
        pipe.send(examine(subject, orders))
        gc.collect()
        gc.freeze()  # modules: to look through them after every class takes longer than the class
