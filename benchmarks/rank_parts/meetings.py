"""One rank of the measure of consensus: what every load of a model does before it plans, and after it."""

from __future__ import annotations

import json
import sys
import time

import torch
import torch.distributed as dist

from rank_parts.simulated import contributions_of
from rank_parts.votes import quantiles
from safe_dtype.ranks import agree, current_board

TIMES = 100
SECONDS = 60.0


def main() -> None:
    """Measure, and let rank 0 print."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    board = current_board()
    assert board is not None
    mine = contributions_of(board.size, 1)[board.rank]
    times = []
    for number in range(TIMES):
        dist.barrier()
        started = time.perf_counter()
        consensus = agree(board.gather(f"facts {number}", mine, SECONDS))
        board.gather(f"plan {number}", ("0" * 64, "bfloat16"), SECONDS, among=consensus.ranks)
        times.append(time.perf_counter() - started)
    if board.rank == 0:
        json.dump(quantiles(times), sys.stdout)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
