"""The sets of constants against each other and against what papers compute from them."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from scaling_jax.errors import RequestError
from scaling_jax.laws.forms import LAWS, critical_batch
from scaling_jax.laws.hyperparameters import deepseek, step_law
from scaling_jax.laws.published import PF_DAY, PUBLISHED, Constants, published

DAY = PF_DAY


def params(name: str) -> dict[str, float]:
    return published(name).params


@pytest.mark.parametrize("constants", PUBLISHED.values(), ids=lambda c: c.name)
def test_every_set_is_named_sourced_and_finite(constants: Constants) -> None:
    assert PUBLISHED[constants.name] is constants
    assert "arXiv" in constants.source
    assert constants.units and constants.law
    assert all(math.isfinite(value) and value != 0 for value in constants.params.values())
    if constants.standard_errors is not None:
        assert set(constants.standard_errors) <= set(constants.params)


@pytest.mark.parametrize("constants", PUBLISHED.values(), ids=lambda c: c.name)
def test_sets_of_a_known_law_have_its_parameters(constants: Constants) -> None:
    if constants.law in LAWS:
        assert set(constants.params) == set(LAWS[constants.law].params)


def test_tables_are_as_printed() -> None:
    printed = {
        "kaplan2020.table2": {"N_c": 6.4e13, "D_c": 1.8e13, "alpha_N": 0.076, "alpha_D": 0.103},
        "kaplan2020.table3": {"N_c": 6.5e13, "S_c": 2.1e3, "alpha_N": 0.077, "alpha_S": 0.76},
        "kaplan2020.table5.l_n": {"N_c": 8.8e13, "alpha_N": 0.076},
        "kaplan2020.table5.l_d": {"D_c": 5.4e13, "alpha_D": 0.095},
        "kaplan2020.table5.l_c": {"C_c": 1.6e7 * DAY, "alpha_C": 0.057},
        "kaplan2020.table5.l_c_min": {"C_c": 3.1e8 * DAY, "alpha_C": 0.050},
        "kaplan2020.table5.l_s": {"S_c": 2.1e3, "alpha_S": 0.76},
        "kaplan2020.table5.b_crit": {"B_star": 2.1e8, "alpha_B": 0.21},
        "kaplan2020.b_crit": {"B_star": 2.1e8, "alpha_B": 0.21},
        "hoffmann2022.rounded": {"E": 1.69, "A": 406.4, "B": 410.7, "alpha": 0.34, "beta": 0.28},
        "porian2024.openwebtext2": {
            "reproduction": 0.864, "head_flops": 0.699, "warmup": 0.603, "cosine": 0.574,
            "tuned": 0.518,
        },
        "porian2024.refinedweb": {
            "reproduction": 0.835, "head_flops": 0.706, "warmup": 0.602, "cosine": 0.571,
            "tuned": 0.497,
        },
    }  # fmt: skip
    for name, expected in printed.items():
        assert params(name) == expected


def test_the_composed_set_is_table_3_with_the_rounder_critical_batch() -> None:
    assert params("kaplan2020") == {
        **params("kaplan2020.table3"), "B_star": 2e8, "alpha_B": 0.21,
    }  # fmt: skip
    assert "Table 3" in published("kaplan2020").source


def test_porians_ladder_falls_at_every_step() -> None:
    for corpus in ("openwebtext2", "refinedweb"):
        ladder = list(params(f"porian2024.{corpus}").values())
        assert ladder == sorted(ladder, reverse=True)


def test_table_6_obeys_its_own_identities() -> None:
    p = params("kaplan2020.table6")
    assert 6 * p["N_e"] * p["B_e"] * p["S_e"] / DAY == pytest.approx(0.975, abs=5e-4)
    assert p["p_N"] + p["p_D"] == pytest.approx(1.0, abs=1e-12)
    assert p["p_N"] + p["p_B"] + p["p_S"] == pytest.approx(1.0, abs=1e-12)
    assert 2 * p["B_e"] * p["S_e"] == pytest.approx(2.16e10)
    assert 2 * DAY / (6 * p["N_e"]) == pytest.approx(2.2e10, rel=0.01)
    loss = params("kaplan2020.table5.l_c_min")["alpha_C"]
    assert loss / params("kaplan2020.b_crit")["alpha_B"] == pytest.approx(0.238, abs=5e-4)


def test_losses_of_one_pf_day_by_table_5() -> None:
    l_c = LAWS["l_c"]
    adjusted = float(l_c.predict(params("kaplan2020.table5.l_c_min"), C=DAY))
    naive = float(l_c.predict(params("kaplan2020.table5.l_c"), C=DAY))
    assert adjusted == pytest.approx(2.658, abs=5e-4)
    assert naive == pytest.approx(2.574, abs=5e-4)
    assert critical_batch(adjusted, 2.0e8, 0.21) == pytest.approx(1.90e6, rel=0.003)
    assert critical_batch(adjusted, 2.1e8, 0.21) == pytest.approx(2.00e6, rel=0.003)


def test_table_5s_lines_of_compute_cross_at_a_hundredth_of_a_pf_day() -> None:
    naive, adjusted = params("kaplan2020.table5.l_c"), params("kaplan2020.table5.l_c_min")
    log_c = (
        naive["alpha_C"] * np.log(naive["C_c"]) - adjusted["alpha_C"] * np.log(adjusted["C_c"])
    ) / (naive["alpha_C"] - adjusted["alpha_C"])
    assert np.exp(log_c) / DAY == pytest.approx(0.010, abs=5e-4)


def test_tables_must_not_be_mixed() -> None:
    l_d, joint = params("kaplan2020.table5.l_d"), params("kaplan2020.table2")
    law, D = LAWS["l_d"], 1e9
    losses = [
        law.predict({"D_c": scale["D_c"], "alpha_D": power["alpha_D"]}, D=D)
        for scale, power in ((l_d, l_d), (joint, joint), (joint, l_d), (l_d, joint))
    ]
    np.testing.assert_allclose(losses, [2.816, 2.743, 2.537, 3.072], atol=6e-4)


def test_statements_of_the_text() -> None:
    assert 2 ** -params("kaplan2020.table5.l_n")["alpha_N"] == pytest.approx(0.949, abs=5e-4)
    joint = params("kaplan2020.table2")
    assert 8 ** (joint["alpha_N"] / joint["alpha_D"]) == pytest.approx(4.66, rel=0.01)
    alpha_c = params("kaplan2020.table5.l_c_min")["alpha_C"]
    assert 1.01 ** (1 / alpha_c) == pytest.approx(1.22, abs=5e-3)


@pytest.mark.parametrize(
    ("loss", "tokens"), [(4.0, 2.7e5), (3.5, 5.1e5), (3.0, 1.07e6), (2.5, 2.5e6), (2.0, 7.4e6)]
)
def test_critical_batch_of_the_composed_set(loss: float, tokens: float) -> None:
    p = params("kaplan2020")
    assert critical_batch(loss, p["B_star"], p["alpha_B"]) == pytest.approx(tokens, rel=0.02)


def test_muennighoffs_logarithms() -> None:
    p = params("muennighoff2023")
    assert (p["A"], p["B"], p["E"]) == (
        pytest.approx(521, abs=0.5),
        pytest.approx(1488, abs=0.5),
        pytest.approx(1.87, abs=0.005),
    )


def test_besiroglus_standard_errors() -> None:
    errors = published("besiroglu2024").standard_errors
    assert errors == {"E": 0.03, "A": 124.58, "B": 1293.23, "alpha": 0.02, "beta": 0.02}


def test_step_law_and_deepseek() -> None:
    rate, batch = step_law(1e9, 1e11)
    assert rate == pytest.approx(1.63e-3, rel=0.003)
    assert batch == pytest.approx(1.11e6, rel=0.003)
    found = deepseek(1e20)
    assert found.lr_peak == pytest.approx(9.86e-4, rel=0.001)
    assert found.batch_tokens == pytest.approx(1.02e6, rel=0.005)
    C = np.array([1e17, 3e20])
    np.testing.assert_allclose(deepseek(C).M * deepseek(C).D, C, rtol=1e-3)


@pytest.mark.parametrize("wrong", [0.0, -1.0, np.nan, np.inf])
def test_hyperparameter_laws_refuse_what_is_no_size(wrong: float) -> None:
    with pytest.raises(RequestError, match=f"D = {wrong} not positive"):
        step_law(1e9, wrong)
    with pytest.raises(RequestError, match="1 of 2 values of C not positive"):
        deepseek([1e20, wrong])


def test_an_unknown_set_is_answered_with_its_family_or_the_nearest() -> None:
    with pytest.raises(RequestError, match=r"Known: kaplan2020\.table5\.l_n, .*table5\.b_crit"):
        published("kaplan2020.table5")
    with pytest.raises(RequestError, match="Did you mean 'besiroglu2024'"):
        published("besirogul2024")


def test_a_set_cannot_be_reassigned() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        published("kaplan2020").name = "mine"  # pyright: ignore[reportAttributeAccessIssue]
