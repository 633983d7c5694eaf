from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scaling_jax.training.schedules import Horizon, learning_rate

NAMES = ["constant", "cosine", "linear", "wsd"]
PEAK, STEPS, WARMUP, FINAL, DECAY = 3e-3, 4000, 400, 0.1, 0.25
UPDATES = np.arange(STEPS, dtype=np.int32)
_learning_rate = jax.jit(learning_rate, static_argnums=0)


def horizon(
    peak: float = PEAK,
    steps: float = STEPS,
    warmup: float = WARMUP,
    final: float = FINAL,
    decay: float = DECAY,
) -> Horizon:
    return Horizon(*(jnp.float32(x) for x in (peak, steps, warmup, final, decay)))


def rates(name: str, **changes: float) -> np.ndarray:
    """The rate of every update of a run of `STEPS`."""
    return np.asarray(_learning_rate(name, UPDATES, horizon(**changes)), np.float64)


def optax_rates(name: str) -> np.ndarray:
    warm = optax.linear_schedule(0.0, PEAK, WARMUP)
    after = {
        "constant": optax.constant_schedule(PEAK),
        "linear": optax.linear_schedule(PEAK, FINAL * PEAK, STEPS - WARMUP),
        "cosine": optax.cosine_decay_schedule(PEAK, STEPS - WARMUP, alpha=FINAL),
    }[name]
    with jax.numpy_dtype_promotion("standard"):  # optax's own need it
        # optax starts its count at a rate of zero, an update that changes nothing
        return np.asarray(optax.join_schedules([warm, after], [WARMUP])(jnp.asarray(UPDATES + 1)))


@pytest.mark.parametrize("name", ["constant", "linear", "cosine"])
def test_as_optax_has_it(name):
    np.testing.assert_allclose(rates(name), optax_rates(name), rtol=2e-5)


def test_wsd_by_hand():
    decay = DECAY * STEPS
    expected = [
        PEAK * s / WARMUP
        if s <= WARMUP
        else PEAK * (1 - (1 - FINAL) * max(0.0, s - (STEPS - decay)) / decay)
        for s in range(1, STEPS + 1)
    ]
    np.testing.assert_allclose(rates("wsd"), expected, rtol=1e-5)


def test_a_wsd_that_decays_from_warm_up_on_is_linear():
    np.testing.assert_allclose(rates("wsd", decay=1.0), rates("linear"), rtol=1e-6)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("warmup", [0, 1, 400])
def test_ends_of_warm_up_and_of_the_run(name, warmup):
    found = rates(name, warmup=warmup)
    assert found[max(warmup - 1, 0)] == pytest.approx(PEAK, rel=1e-6 if warmup else 1e-3)
    np.testing.assert_allclose(found[:warmup], PEAK * np.arange(1, warmup + 1) / (warmup or 1))
    last = PEAK if name == "constant" else FINAL * PEAK
    assert found[-1] == pytest.approx(last, rel=1e-5)
    if name != "constant":
        assert rates(name, warmup=warmup, final=0.0)[-1] == pytest.approx(0.0, abs=1e-6 * PEAK)


@pytest.mark.parametrize(
    ("name", "share"), [("cosine", 1 / 2), ("linear", 1 / 2), ("constant", 1.0), ("wsd", 7 / 8)]
)
def test_sums_have_their_closed_forms(name, share):
    total = rates(name, warmup=0, final=0.0).sum()
    assert total == pytest.approx(share * PEAK * STEPS, rel=1e-3)


@settings(max_examples=60)
@given(
    st.sampled_from(NAMES),
    st.integers(1, 1_000_000),
    st.floats(0, 0.99),
    st.floats(0, 1),
    st.floats(0.01, 1),
)
def test_rates_rise_to_the_peak_and_never_rise_again(name, steps, warm, final, decay):
    warmup = int(warm * steps)
    updates = np.linspace(0, steps - 1, STEPS).round().astype(np.int32)
    found = _learning_rate(name, updates, horizon(1.0, steps, warmup, final, decay))
    updates, first = np.unique(updates, return_index=True)
    found = np.asarray(found, np.float64)[first]
    assert np.isfinite(found).all()
    assert found.max() <= 1 + 1e-6
    assert found.min() >= 0.0
    assert (np.diff(found[updates < warmup]) > 0).all()
    assert (np.diff(found[updates >= max(warmup - 1, 0)]) <= 1e-6).all()


def test_lanes_have_rates_of_their_own():
    lanes = jax.tree.map(lambda *x: np.stack(x), horizon(), horizon(1e-2, 200, 0, 0.0))
    together = jax.vmap(_learning_rate, in_axes=(None, None, 0))("cosine", jnp.int32(70), lanes)
    alone = [rates("cosine")[70], rates("cosine", peak=1e-2, steps=200, warmup=0, final=0.0)[70]]
    np.testing.assert_allclose(together, alone, rtol=1e-6)
