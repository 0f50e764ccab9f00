"""Writes src/keyhaul/cli/flags.py: the options that the settings of a job give the commands, as light data.

``etl --help`` is there before the models are imported, which cost more than the rest of it.
"""

from __future__ import annotations

import sys

from keyhaul.config.job import settings

_HEAD = '''"""The options that come from a job's settings, in the order of the model.

Written by `python tools/flagtable.py > src/keyhaul/cli/flags.py`; a test fails when it differs.
"""

from __future__ import annotations

from typing import Final

# fmt: off
FLAGS: Final[tuple[tuple[str, str, str, bool, str], ...]] = (
    # name, what its value is called (a switch has none), help, whether there may be several, commands
'''


def flag_table() -> str:
    """Return the text of src/keyhaul/cli/flags.py."""
    flags = [flag for setting in settings() for flag in setting.flags]
    rows = (
        f'    ("{flag.name}", "{flag.value}", "{flag.help}", {flag.many}, "{" ".join(flag.commands)}"),\n'
        for flag in flags
    )
    return f"{_HEAD}{''.join(rows)})\n"


if __name__ == "__main__":
    sys.stdout.write(flag_table())
