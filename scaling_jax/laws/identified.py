"""What a design cannot say: inputs that move together, or do not move."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

import numpy as np

from scaling_jax.errors import WorkError

if TYPE_CHECKING:
    from scaling_jax.laws.fitting import Points

# Spread of one log input at a given other one: below it the data do not split two terms.
_SPREAD_NEEDED = np.log(1.2)
_LEAST_VALUES = 2  # of each input, and one more under an offset


def require_independent(points: Points, fixed: Collection[str]) -> None:
    """Raises `WorkError` for too few values, and for inputs that move together, as in D = 20 N.

    A term that is fixed in size and exponent needs no spread of its input.
    """
    law = points.law
    scales = [name for name in law.params if name not in (*law.exponents, law.offset)]
    terms = zip(scales, law.exponents, strict=False)  # in the order of the inputs
    held = any({scale, power} <= set(fixed) for scale, power in terms)
    if law.slug == "data_constrained" or held:
        return
    least = _LEAST_VALUES + (law.offset is not None and law.offset not in fixed)
    for name, row in zip(law.inputs, points.x, strict=True):
        if (count := np.unique(row).size) < least:
            raise WorkError(
                f"{law.slug} needs {least} values of {name}, and the points have {count}"
            )
    if len(law.inputs) < 2:
        return
    first, second = points.x[:2]
    slope, level = np.polyfit(first, second, 1)
    left = float(np.std(second - slope * first - level))
    if left >= _SPREAD_NEEDED:
        return
    a, b = law.inputs[:2]
    raise WorkError(
        f"{b} goes as {a}^{slope:.2f} in every run (spread of ln {b} at given {a}: {left:.2f}, "
        f"{_SPREAD_NEEDED:.2f} needed), as in designs with {b} = 20 {a}: their two terms cannot be "
        "told apart. Train some sizes on more and on fewer tokens"
    )
