"""`safe-dtype completion`: scripts for shells, which ask the command itself what may come next."""

from __future__ import annotations

import click
from click.shell_completion import CompletionItem, get_completion_class

_NAME, _VARIABLE = "safe-dtype", "_SAFE_DTYPE_COMPLETE"  # the second is click's name for it


def complete_path(_: click.Context, __: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Have the shell complete a path."""
    return [CompletionItem(incomplete, type="file")]


def complete_dtype(_: click.Context, __: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Return the dtypes that a model can be loaded in."""
    from ..facts import COMPUTE

    return [CompletionItem(dtype.name) for dtype in COMPUTE if dtype.name.startswith(incomplete)]


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(*, shell: str) -> None:
    """Print the script that lets SHELL complete commands, options and paths.

    \b
    bash: eval "$(safe-dtype completion bash)"             in ~/.bashrc
    zsh:  eval "$(safe-dtype completion zsh)"              in ~/.zshrc, after compinit
    fish: safe-dtype completion fish | source              in ~/.config/fish/config.fish
    """
    group = click.get_current_context().find_root().command
    made_for = get_completion_class(shell)
    assert made_for is not None  # click has all that the argument offers
    click.echo(made_for(group, {}, _NAME, _VARIABLE).source())
