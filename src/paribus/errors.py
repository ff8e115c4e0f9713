"""The one error meant for people: what is wrong, what is allowed, what to do."""

from collections.abc import Iterable


class UserError(Exception):
    """Problems a person can mend, all of them at once.

    The command line prints each on a line of its own and exits with status 2, without a traceback.
    """

    def __init__(self, problems: str | Iterable[str]) -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))
