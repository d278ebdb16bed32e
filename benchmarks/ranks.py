"""What agreement between ranks costs: measured on 2 to 4 processes, and simulated for thousands.

    python benchmarks/ranks.py vote        # the time of a vote among 2, 3 and 4 ranks, beside gloo's all_reduce
    python benchmarks/ranks.py consensus   # the time in which 2, 3 and 4 ranks agree on the facts to plan from, and prove the plan
    python benchmarks/ranks.py store       # what the key-value store of a job can answer
    python benchmarks/ranks.py simulate    # votes and consensus among 1,000 and 10,000 ranks, from what the first two say

What the guard of a training window costs is in benchmarks/training.py, and what a restart costs in benchmarks/recovery.py.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import torch
from rank_parts.launch import figures_of
from rank_parts.simulated import consensus as simulated_consensus
from rank_parts.simulated import troubles, votes
from rank_parts.store import store_figures
from results_file import RESULTS, write_results

SIZES = (2, 3, 4)
CLIENTS = (200, 1000)
SIMULATED = (100, 1000, 10_000)
NETWORK_US = 25.0  # one way between two machines of one data center: assumed, and added to what is measured in one


@click.group()
def main() -> None:
    """Measure what agreement between ranks costs."""


@main.command()
def vote() -> None:
    """Time votes of real ranks."""
    click.echo(write_results("ranks_vote", {str(size): figures_of("votes", size) for size in SIZES}))


@main.command()
def consensus() -> None:
    """Time consensus of real ranks, each of which has its facts at hand."""
    click.echo(write_results("ranks_consensus", {str(size): figures_of("meetings", size) for size in SIZES}))


@main.command()
def store() -> None:
    """Ask a store with many clients."""
    click.echo(write_results("ranks_store", {str(clients): store_figures(clients) for clients in CLIENTS}))


@main.command()
@click.option("--size", "sizes", type=int, multiple=True, default=SIMULATED, show_default=True, help="How many ranks.")
@click.option("--votes/--no-votes", "has_votes", default=True, help="Whether votes too: a thread for each rank.")
def simulate(*, sizes: tuple[int, ...], has_votes: bool) -> None:
    """Simulate many ranks, on a quiet network and on one as uneven as this machine.

    Without votes, those that the file of results has are kept.
    """
    if not has_votes:
        click.echo(_with_decisions(sizes))
        return
    torch.set_num_threads(1)
    measured = _figures("ranks_vote")["2"]
    answers = _figures("ranks_store")[str(CLIENTS[-1])]
    quiet = [(measured["vote"]["p50_us"] + NETWORK_US) / 1e6]
    uneven = [(each + NETWORK_US) / 1e6 for each in measured["vote_quantiles_us"]]
    figures: dict[str, Any] = {
        "assumptions": {
            "seconds_of_a_message": quiet[0],
            "of_them_assumed_for_the_network": NETWORK_US / 1e6,
            "microseconds_of_a_request_to_the_store": answers["check_us"],
            "bytes_per_second_of_the_store": answers["bytes_per_second"],
        }
    }
    for size in sizes:
        figures[str(size)] = {
            "quiet": votes(size, quiet),
            "uneven": votes(size, uneven),
            "troubles": troubles(size, quiet),
            "consensus": simulated_consensus(size, answers["check_us"], answers["bytes_per_second"]),
        }
        click.echo(f"{size}: {figures[str(size)]}", err=True)
        write_results("ranks_simulated", figures)


def _with_decisions(sizes: tuple[int, ...]) -> Path:
    """Simulate how one plan is agreed on, and keep all else that the file of results has."""
    figures = _figures("ranks_simulated")
    assumed = figures["assumptions"]
    answers = assumed["microseconds_of_a_request_to_the_store"], assumed["bytes_per_second_of_the_store"]
    for size in sizes:
        figures[str(size)]["consensus"] = simulated_consensus(size, *answers)
    return write_results("ranks_simulated", figures)


def _figures(name: str) -> Any:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))["figures"]


if __name__ == "__main__":
    main()
