"""The calls between the parts of a long step: they report progress and end the step for a stop."""

from __future__ import annotations

import time
from collections.abc import Callable

# A stop waits this long for the end of the current step, which is then saved; a longer step is abandoned.
PATIENCE_SECONDS = 20.0

Say = Callable[[str, int, int], None]


class Abandoned(Exception):
    """The current work was abandoned for a stop. None of it counts, and the weights are those before it."""


def nothing(what: str, done: int, total: int) -> None:
    """Report nothing: for callers that show no progress."""


class Within:
    """`within("answers", 40, 655_360)` between the parts of a step or of an evaluation: a few microseconds.

    Raises Abandoned where a stop was requested `PATIENCE_SECONDS` ago. Of several processes none gives up by itself, as
    the others wait for it: those end their step.
    """

    def __init__(
        self,
        requested: Callable[[], bool],
        ranks: Callable[[], int] = lambda: 1,
        patience: float | None = None,
    ) -> None:
        """requested: whether to stop. ranks: processes that compute together at this moment.

        patience: seconds; None: PATIENCE_SECONDS.
        """
        self.say: Say = nothing
        self._requested, self._ranks = requested, ranks
        self._patience = PATIENCE_SECONDS if patience is None else patience
        self._since: float | None = None

    def __call__(self, what: str, done: int, total: int) -> None:
        """Show the progress; give the step up where a stop has waited too long.

        what: the name of the units. done, total: units that are through, and all. Raises Abandoned, as the class says.
        """
        self.say(what, done, total)
        if not self._requested():
            return
        now = time.monotonic()
        if self._since is None:
            self._since = now
        if now - self._since >= self._patience and self._ranks() == 1:
            raise Abandoned
