"""How often a chunk, or a part of a comparison, is tried, and how long is waited; who is cancelled does not wait on."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import tenacity

from keyhaul.errors import TransientError

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterable


def attempts(
    retries: int,
    cancelled: threading.Event,
    announce: Callable[[int, float, BaseException | None], None] | None = None,
    waited: Callable[[float], None] | None = None,
) -> Iterable[tenacity.AttemptManager]:
    """Return the attempts; only a `TransientError` leads to another one, the last error is raised.

    Args:
        retries: after the first attempt.
        cancelled: ends them, and the wait between two.
        announce: told, before each wait, which attempt has ended, the seconds to be waited, and the error.
        waited: told the seconds that were waited.
    """

    def before_sleep(state: tenacity.RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        if announce is not None:
            announce(state.attempt_number, state.next_action.sleep if state.next_action else 0.0, error)

    def sleep(seconds: float) -> None:
        began = time.monotonic()
        cancelled.wait(seconds)
        if waited is not None:
            waited(time.monotonic() - began)

    return tenacity.Retrying(
        stop=tenacity.stop_any(tenacity.stop_after_attempt(retries + 1), tenacity.stop_when_event_set(cancelled)),
        wait=tenacity.wait_exponential(multiplier=0.2, max=10) + tenacity.wait_random(0, 0.5),
        retry=tenacity.retry_if_exception_type(TransientError),
        sleep=sleep,
        before_sleep=before_sleep,
        reraise=True,
    )
