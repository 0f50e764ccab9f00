"""A Python step's function: found by its name."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from keyhaul.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

    import polars as pl


def load_function(target: str, at: str) -> Callable[[pl.LazyFrame], pl.LazyFrame]:
    """Import ``module:function``, looking in the current directory as well.

    Raises:
        ConfigError: it cannot be imported or is not callable.
    """
    module_name, _, name = target.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    try:
        function = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError, ValueError) as error:
        msg = f"{at}: import {target}: {error}, expected module:function of a module in the current directory"
        raise ConfigError(msg) from error
    if not callable(function):
        msg = f"{at}: import {target}: got a {type(function).__name__}, expected a function LazyFrame -> LazyFrame"
        raise ConfigError(msg)
    return function  # type: ignore[no-any-return]  # the signature is checked by calling it with an empty frame
