"""What Orbax prints beside the exceptions that it raises, kept from the user's terminal."""

from __future__ import annotations

import logging
import sys
from typing import Any

_LOGS = ("absl", "asyncio", None)  # Orbax logs to the first and to the root


def quieten_orbax() -> None:
    """From now on a checkpoint that cannot be written or read is told once, by its exception.

    Orbax would log it again, with traces. And where one array cannot be read it drops the event
    loop of the others, whose own faults then come up wherever Python finds them.
    """
    for name in _LOGS:
        logging.getLogger(name).addFilter(_is_news)
    before = sys.unraisablehook

    def tell(fault: Any) -> None:
        if not _is_dropped_read(fault):
            before(fault)

    sys.unraisablehook = tell


def _is_news(record: logging.LogRecord) -> bool:
    return "orbax" not in record.pathname and "never retrieved" not in record.getMessage()


def _is_dropped_read(fault: Any) -> bool:
    code = getattr(fault.object, "cr_code", None)
    return str(fault.exc_value) == "Event loop is closed" or (
        code is not None and "orbax" in code.co_filename
    )
