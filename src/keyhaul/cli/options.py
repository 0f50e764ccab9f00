"""The options of a command that come from a job's settings."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Annotated, Any

import typer

from keyhaul.cli.flags import FLAGS

if TYPE_CHECKING:
    from collections.abc import Callable


def with_settings(command: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a function the options of `command`: ``move``, ``replay`` or ``verify``.

    They stand after its own positional parameters, before its other options, and it gets them as ``**flags``. What it
    has no use for of a run's it takes as well, unseen, so that a run's command line fits.
    """

    def give(function: Callable[..., None]) -> Callable[..., None]:
        own = list(inspect.signature(function, eval_str=True).parameters.values())
        first = [one for one in own if one.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
        last = [one for one in own if one.kind is inspect.Parameter.KEYWORD_ONLY]
        function.__signature__ = inspect.Signature([*first, *_parameters(command), *last])  # type: ignore[attr-defined]
        return function

    return give


def given(flags: dict[str, Any]) -> dict[str, Any]:
    """Return the options that were given."""
    return {name: value for name, value in flags.items() if value not in (None, False)}


def only_for_moves() -> tuple[set[str], set[str]]:
    """Return the options that a replay does not have: the switches, and those with a value."""
    names = {name: value for name, value, _, many, commands in FLAGS if "replay" not in commands.split() and not many}
    return {name for name in names if not names[name]}, {name for name in names if names[name]}


def _parameters(command: str) -> list[inspect.Parameter]:
    return [
        _parameter(name, value, told, many=many, hidden=command not in commands.split())
        for name, value, told, many, commands in FLAGS
        if command in commands.split() or ("move" in commands.split() and not many)  # a replay's --rule is another
    ]


def _parameter(name: str, value: str, told: str, *, many: bool, hidden: bool) -> inspect.Parameter:
    kind: Any = list[str] | None if many else str | None if value else bool
    option = typer.Option(name, metavar=value or None, help=told, hidden=hidden)
    return inspect.Parameter(
        name[2:].replace("-", "_"),
        inspect.Parameter.KEYWORD_ONLY,
        annotation=Annotated[kind, option],
        default=None if value else False,
    )
