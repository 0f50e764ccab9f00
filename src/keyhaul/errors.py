"""What can go wrong, as one tree under `EtlError`.

Every message has the form ``<verb> <object>: <got>, expected <x>. <what to do>``. No message
holds a password or a row's value. The driver's own error is attached with ``raise … from``.
"""

from __future__ import annotations


class EtlError(Exception):
    """The root of every error that keyhaul raises on purpose; its text is for a person."""


class ConfigError(EtlError):
    """The command, job file, environment or database does not fit; nothing was moved."""


class ConnectError(ConfigError):
    """A database cannot be reached or refuses the login."""


class RefusedError(ConfigError):
    """The job is understood and must not run as it stands (a column, a mode, a lock)."""


class ChunkError(EtlError):
    """One chunk could not be moved; the others are not concerned."""


class TransientError(ChunkError):
    """A lost connection, a deadlock, a restarting server: worth another try, after a look in the ledger."""


class CancelledError(ChunkError):
    """The chunk was given up because the run was told to stop at once."""


class StopRunError(EtlError):
    """The run must stop now (a rule with ``on_fail: stop``, a lost snapshot); it can be resumed."""
