"""What a study measured beside its mean validation loss: by position, and on other corpora."""

from __future__ import annotations

from typing import NamedTuple

from scaling_jax import laws
from scaling_jax.errors import RequestError, WorkError
from scaling_jax.laws.corpora import other_corpora
from scaling_jax.records.store import Records


class Beside(NamedTuple):
    """Each is None where nothing of it was recorded, or nothing could be made of it."""

    positions: laws.Positions | None
    transfer: laws.Transfer | None


def measure_beside(records: Records) -> Beside:
    """Loss by position and transfer, of what the records have."""
    positions, transfer = None, None
    try:
        positions = laws.measure_positions(records)
    except (RequestError, WorkError):
        positions = None
    if other_corpora(records):
        try:
            transfer = laws.measure_transfer(records)
        except (RequestError, WorkError):
            transfer = None
    return Beside(positions, transfer)
