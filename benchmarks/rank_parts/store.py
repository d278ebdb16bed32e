"""What the one key-value store of a job can do: requests and bytes a second, with many real clients."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from torch.distributed import TCPStore  # type: ignore[attr-defined]  # its documented place

VALUE_BYTES = 4096


def store_figures(clients: int) -> dict[str, float]:
    """Return microseconds a request and bytes a second of a TCPStore that `clients` connections ask at once."""
    server = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    with ThreadPoolExecutor(min(clients, 64)) as connecting:
        stores = list(
            connecting.map(
                lambda _: TCPStore("127.0.0.1", server.port, is_master=False, wait_for_workers=False),
                range(clients),
            )
        )
    keys = [f"rank/{number}" for number in range(clients)]
    server.set("large", "x" * 2**22)

    def each(ask: Callable[[Any, int], Any]) -> float:
        """Return microseconds a request, asked by all clients one after the other: the store is one process."""
        started = time.perf_counter()
        for number, store in enumerate(stores):
            ask(store, number)
        return (time.perf_counter() - started) * 1e6 / clients

    figures = {
        "set_us": each(lambda store, number: store.set(keys[number], "x" * VALUE_BYTES)),
        "add_us": each(lambda store, _: store.add("count", 1)),
        "get_us": each(lambda store, number: store.get(keys[number])),
        "check_us": each(lambda store, number: store.check([keys[number]])),
    }
    started = time.perf_counter()
    stores[0].check(keys)
    figures["check_all_us_a_key"] = (time.perf_counter() - started) * 1e6 / clients
    started = time.perf_counter()
    stores[0].multi_get(keys)
    figures["multi_get_us_a_key"] = (time.perf_counter() - started) * 1e6 / clients
    started = time.perf_counter()
    for store in stores[:8]:
        store.get("large")
    figures["bytes_per_second"] = 8 * 2**22 / (time.perf_counter() - started)
    with ThreadPoolExecutor(32) as threads:
        started = time.perf_counter()
        list(threads.map(lambda store: [store.check(keys[:1]) for _ in range(5)], stores))
        figures["requests_per_second_at_once"] = 5 * clients / (time.perf_counter() - started)
    return {name: round(value, 2) for name, value in figures.items()}
