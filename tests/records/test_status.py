from __future__ import annotations

import pytest

from scaling_jax.records.schema import STATUSES
from scaling_jax.records.status import STALE_S, standing


@pytest.mark.parametrize(
    ("held", "age", "status"),
    [
        (True, 0.0, "running"),
        (True, STALE_S - 1, "running"),
        (True, STALE_S + 1, "stale"),
        (True, 30 - STALE_S, "running"),
        (True, -1e9, "stale"),  # written before the clock was set back
        (False, 0.0, "stale"),
        (False, 1e9, "stale"),
    ],
)
def test_running_is_believed_while_it_is_heard_of(held: bool, age: float, status: str) -> None:
    state = {"status": "running", "heartbeat": 1e9}
    assert standing(state, held, now=1e9 + age) == status


@pytest.mark.parametrize("status", [s for s in STATUSES if s not in ("running", "stale")])
@pytest.mark.parametrize("held", [True, False])
def test_what_has_ended_stays_as_it_ended(status: str, held: bool) -> None:
    assert standing({"status": status, "heartbeat": 0.0}, held, now=1e9) == status
