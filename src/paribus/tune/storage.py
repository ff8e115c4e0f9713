"""Where Optuna keeps the studies: sqlite by default, or a database that many workers share."""

from __future__ import annotations

import contextlib
import time
import warnings
from collections.abc import Iterator

import optuna
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from paribus.errors import UserError
from paribus.places import state_root

HEARTBEAT, GRACE = 5, 20  # seconds: a worker that has been silent for GRACE is taken as dead
LOST = (StorageInternalError, SQLAlchemyError)
RETRY = RetryHeartbeatStaleTrialCallback


def storage_url(url: str | None) -> str:
    """The requested storage; by default a sqlite file in the main checkout."""
    return url or f"sqlite:///{state_root() / 'tune.db'}"


def shown(url: str | None) -> str:
    """A storage as it may be printed: without its password."""
    try:
        return make_url(storage_url(url)).render_as_string(hide_password=True)
    except ArgumentError:
        return storage_url(url)


def connect(url: str | None) -> RDBStorage:
    """The storage, with its tables. Raises UserError where it is unavailable."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    warnings.filterwarnings(
        "ignore", message="Heartbeat of storage is supposed to be used with"
    )  # `heartbeat` beats here
    for attempt in range(10):
        try:
            return RDBStorage(
                storage_url(url),
                heartbeat_interval=HEARTBEAT,
                grace_period=GRACE,
                heartbeat_stale_trial_callback=RETRY(),
                engine_kwargs={"pool_pre_ping": True},
            )
        except ModuleNotFoundError as error:
            raise UserError(
                f"--storage {shown(url)}: needs the package {error.name}; pip install it, or leave --storage "
                "out"
            ) from None
        except Exception as error:  # SQLAlchemy and its drivers each have errors of their own
            words = str(error).strip() or type(error).__name__
            if attempt < 9 and any(
                sign in words for sign in ("already exists", "duplicate key", "UNIQUE constraint")
            ):
                time.sleep(0.2 * (attempt + 1))  # workers that begin at once all make the tables
                continue
            raise UserError(
                f"--storage {shown(url)}: unavailable: {words.splitlines()[0][:200]}"
            ) from None
    raise AssertionError


@contextlib.contextmanager
def lost_is_told(url: str | None) -> Iterator[None]:
    """A storage that goes away ends the command with a line and not a traceback."""
    try:
        yield
    except LOST as error:
        words = str(error.__cause__ or error).strip().splitlines()
        raise UserError(
            f"--storage {shown(url)}: lost ({words[0][:150]}); trials so far are kept, those under way have their "
            "training state: run the same command again"
        ) from None
