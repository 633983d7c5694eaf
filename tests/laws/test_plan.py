"""Plans against the papers' numbers, brute force over sizes, and draws taken one at a time."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaling_jax.errors import RequestError
from scaling_jax.laws.describe_plan import describe_plan
from scaling_jax.laws.frontier import PF_DAY, excess_compute, loss_at
from scaling_jax.laws.plan import QUANTITIES, plan
from scaling_jax.laws.plan_input import plannable
from scaling_jax.laws.published import published
from tests.laws.plan_files import CRITICAL, L_ND, L_NS, a_fit

KEYS = {"flops", "flops_min", "pf_days", *QUANTITIES, "intervals", "constants", "flags"}


def test_one_pf_day_at_small_batches_is_the_papers_frontier() -> None:
    found = plan(PF_DAY, batch="small")
    assert found.loss == pytest.approx(2.6876, abs=1e-4)
    assert found.params == pytest.approx(6.042e8, rel=1e-3)
    assert found.tokens == pytest.approx(1.321e4 * 1.805e6, rel=1e-3)
    assert found.critical_batch == pytest.approx(1.805e6, rel=1e-3)
    assert found.flops_min == found.flops and found.batch_tokens is None and found.steps is None
    assert found.batch_bound == "any batch well below B_crit = 1.805e+06 tokens"


def test_the_critical_batch_reaches_the_same_with_twice_everything() -> None:
    small, critical = plan(PF_DAY, batch="small"), plan(2 * PF_DAY)
    assert critical.loss == pytest.approx(small.loss) and critical.flops_min == small.flops_min
    assert critical.params == pytest.approx(small.params)
    assert critical.tokens == pytest.approx(2 * small.tokens)
    assert critical.steps == pytest.approx(2 * 1.321e4, rel=1e-3)
    assert critical.batch_tokens == critical.critical_batch == small.critical_batch
    assert critical.pf_days == pytest.approx(2.0)


@pytest.mark.parametrize("batch", [2.0**14, 2.0**19, 1e7, 3e8])
def test_at_a_batch_in_tokens_no_other_size_does_better(batch: float) -> None:
    found = plan(1e20, batch=batch)
    assert found.flops_min is not None and found.critical_batch is not None
    # Kaplan's eq. 5.5, with B_crit at the loss that the plan itself reaches.
    assert found.flops_min * (1 + batch / found.critical_batch) == pytest.approx(1e20, rel=1e-12)
    sizes = found.params * np.exp(np.linspace(-2, 2, 4001))
    losses = loss_at(sizes, 1e20 / (6 * sizes * batch), batch, L_NS | CRITICAL)
    assert sizes[np.argmin(losses)] == pytest.approx(found.params, rel=2e-3)
    assert losses.min() == pytest.approx(found.loss, rel=1e-6)


def test_batches_in_tokens_run_from_small_to_beyond_critical() -> None:
    small, critical = plan(1e20, batch="small"), plan(1e20)
    assert critical.critical_batch is not None
    at_critical = plan(1e20, batch=critical.critical_batch)
    assert at_critical.params == pytest.approx(critical.params, rel=1e-9)
    assert at_critical.steps == pytest.approx(critical.steps, rel=1e-9)
    assert plan(1e20, batch=1).loss == pytest.approx(small.loss, rel=1e-6)


@given(
    flops=st.floats(1e18, 1e26),
    batch=st.one_of(st.sampled_from(["critical", "small"]), st.floats(1e3, 1e8)),
    constants=st.sampled_from(plannable()),
)
def test_six_params_tokens_is_the_compute_spent(
    flops: float, batch: str | float, constants: str
) -> None:
    found = plan(flops, constants, batch=batch)
    assert 6 * found.params * found.tokens == pytest.approx(flops, rel=1e-9)
    if found.steps is not None and found.batch_tokens is not None:
        assert found.steps * found.batch_tokens == pytest.approx(found.tokens, rel=1e-9)
    text = describe_plan(found)
    assert max(map(len, text.splitlines())) < 100 and "nan" not in text
    json.dumps(found.to_json(), allow_nan=False)


def test_chinchilla_sets_divide_compute_as_published_and_leave_the_batch_open() -> None:
    found = plan(1e21, "besiroglu2024")
    assert found.params == pytest.approx(2.78e9, rel=2e-3)
    assert found.tokens / found.params == pytest.approx(21.6, abs=0.05)
    assert found.loss == pytest.approx(2.3055, abs=1e-4)
    assert found.batch_tokens is found.steps is found.flops_min is found.critical_batch is None
    assert "no_critical_batch" in found.to_json()["flags"]
    assert found.intervals == dict.fromkeys(QUANTITIES)
    assert "no published correlation" in found.to_json()["warnings"]["no_intervals"]
    assert found.tenfold["params"].exponent == pytest.approx(0.5126, abs=1e-4)
    hoffmann = plan(5.76e23, "hoffmann2022", batch="4e6")
    assert hoffmann.params == pytest.approx(4.03e10, rel=1e-3)
    assert hoffmann.tokens == pytest.approx(2.38e12, rel=1e-3)
    assert hoffmann.steps == pytest.approx(hoffmann.tokens / 4e6)
    rounded = plan(5.76e23, "hoffmann2022.rounded")
    assert rounded.tokens / rounded.params == pytest.approx(92.6, abs=0.1)
    assert "rounded_constants" in rounded.to_json()["flags"]


def test_the_data_constrained_law_plans_with_fresh_tokens_and_says_so() -> None:
    found = plan(1e21, "muennighoff2023")
    assert found.params * found.tokens == pytest.approx(1e21 / 6)
    assert "fresh_tokens" in found.to_json()["flags"]
    assert set(found.basis.params) == set(L_ND)


def test_deepseek_gives_batch_and_learning_rate() -> None:
    found = plan(1e20, "deepseek2024")
    assert found.lr_peak == pytest.approx(9.86e-4, rel=1e-3)
    assert found.batch_tokens == pytest.approx(1.02e6, rel=5e-3)
    assert found.loss is None and "M / 6" in found.basis.convention
    # Its D_opt is a power of its own, which C = M D meets to the digits printed.
    assert found.tokens == pytest.approx(5.8316 * 1e20**0.4757, rel=2e-4)


def test_table6_has_its_own_size_and_batch_and_table_5s_loss() -> None:
    found = plan(2 * PF_DAY, "kaplan2020.table6")
    assert found.params == pytest.approx(1.3e9) and found.batch_tokens == pytest.approx(2e6)
    assert found.loss == pytest.approx(2.658, abs=1e-3)
    assert found.tenfold["params"].factor == pytest.approx(10**0.73)
    batch = plan(2 * PF_DAY, "kaplan2020.table6", batch=2e6)
    assert batch.params == pytest.approx(found.params, rel=1e-9)


@pytest.mark.parametrize(
    ("constants", "says"),
    [
        ("kaplan2020.table3", r"L\(N, S\) plans together with B_crit.*kaplan2020, "),
        ("kaplan2020.figure14", r"does not say how to spend compute\. Sets that do: kaplan2020"),
        ("kaplan202", "No published constants"),
    ],
)
def test_sets_that_cannot_plan_are_refused(constants: str, says: str) -> None:
    with pytest.raises(RequestError, match=says):
        plan(1e20, constants)


@pytest.mark.parametrize("batch", ["critical", "small", 2.0**19])
def test_intervals_are_quantiles_over_the_joint_draws(batch: str | float) -> None:
    doc = a_fit()
    found = plan(1e20, fit=doc, batch=batch)
    alone = []
    for row in zip(*(doc["draws"][name] for name in L_NS), strict=True):
        one = plan(
            1e20, fit=a_fit(params=dict(zip(L_NS, row, strict=True)), draws=...), batch=batch
        )
        alone.append([getattr(one, name) for name in QUANTITIES])
        if len(alone) == 60:
            break
    cut = {name: values[:60] for name, values in doc["draws"].items()}
    found = plan(1e20, fit=a_fit(draws=cut), batch=batch)
    for i, name in enumerate(QUANTITIES):
        values = [row[i] for row in alone]
        if values[0] is None or np.ptp(values) == 0:
            assert found.intervals[name] is None
        else:
            expected = np.quantile(np.array(values, dtype=float), [0.05, 0.95])
            assert found.intervals[name] == pytest.approx(expected, rel=1e-9)
            assert expected[0] < getattr(found, name) < expected[1]


def test_the_tail_and_level_of_the_file_are_used() -> None:
    narrow = plan(1e20, fit=a_fit(level=0.5)).intervals["params"]
    stated = plan(1e20, fit=a_fit(tail=0.01)).intervals["params"]
    default = plan(1e20, fit=a_fit()).intervals["params"]
    assert narrow is not None and stated is not None and default is not None
    assert stated[0] < default[0] < narrow[0] < narrow[1] < default[1] < stated[1]


def test_a_fit_plans_as_the_published_set_with_the_same_constants() -> None:
    found, same = plan(1e20, fit=a_fit()), plan(1e20, "kaplan2020")
    assert found.params == pytest.approx(same.params) and found.steps == pytest.approx(same.steps)
    flags = found.to_json()["flags"]
    assert "decades_of_N" in flags and "critical_batch_given" in flags
    assert "k20_frontier" not in flags and "no_intervals" not in flags
    chinchilla = plan(1e21, fit=a_fit("l_nd_chinchilla"))
    assert chinchilla.params == pytest.approx(plan(1e21, "besiroglu2024").params)
    assert chinchilla.intervals["loss"] is not None and chinchilla.intervals["steps"] is None
    twice = a_fit("data_constrained", params={**L_ND, "R_D_star": 15.0, "R_N_star": 5.0})
    assert "fresh_tokens" in plan(1e21, fit=twice).to_json()["flags"]


def test_without_draws_there_are_no_intervals_and_a_flag() -> None:
    for draws in (..., None, {name: [value] * 5 for name, value in L_NS.items()}):
        doc = plan(1e20, fit=a_fit(draws=draws)).to_json()
        assert doc["intervals"] == dict.fromkeys(QUANTITIES) and "no_intervals" in doc["flags"]
        assert doc["level"] is None


def test_a_draw_without_a_finite_plan_takes_the_intervals_away() -> None:
    huge = {name: [1e300, *[L_NS[name]] * 399] for name in ("N_c", "S_c")}
    draws = {**a_fit()["draws"], **huge}
    doc = plan(1e20, fit=a_fit(draws=draws)).to_json()
    assert doc["intervals"] == dict.fromkeys(QUANTITIES)
    assert "no finite plan" in doc["warnings"]["no_intervals"]


def test_extrapolation_is_measured_always_and_flagged_beyond_ten_times() -> None:
    near = plan(1e20, fit=a_fit())
    assert near.reach["N"].factor == 1.0 and near.reach["S_min"].factor == 1.0
    far = plan(1e26, fit=a_fit())
    assert far.reach["N"].factor == pytest.approx(far.params / 1e9) and far.params > 1e10
    assert "extrapolation" in far.to_json()["flags"]
    assert "extrapolation" not in near.to_json()["flags"]
    tiny = plan(1e13, fit=a_fit(ranges={"N": [1e8, 1e9]}))
    assert tiny.reach["N"].factor == pytest.approx(1e8 / tiny.params)
    # Without a range of its own, C is judged by 6 N D.
    both = plan(1e21, fit=a_fit("l_nd_chinchilla", ranges={"N": [1e7, 1e9], "D": [1e9, 1e10]}))
    assert both.reach["C"].factor == pytest.approx(1e21 / 6e19)
    assert "unknown_range" in plan(1e20, fit=a_fit(ranges=...)).to_json()["flags"]


def test_kaplans_caveats_appear_where_they_bite() -> None:
    def flags(flops: float, constants: str = "kaplan2020") -> set[str]:
        return set(plan(flops, constants).to_json()["flags"])

    assert "k20_frontier" in flags(1e18) and "k20_frontier" in flags(1e18, "kaplan2020.table6")
    # 85M parameters converge to 2.865 nats by Table 5: lower losses had no batch sweep.
    assert "b_crit_range" in flags(PF_DAY) and "b_crit_range" not in flags(1e-2 * PF_DAY)
    assert "small_data" in flags(1e9) and "small_data" not in flags(1e16)
    assert "context_compute" in flags(1e14) and "context_compute" not in flags(1e17)
    assert "contradiction_point" in flags(1e4 * PF_DAY)
    assert "contradiction_point" not in flags(1e2 * PF_DAY)
    # The tokens consumed grow as C^0.32, those needed as C^0.50: 300 PF-days of C_min part them.
    assert "required_data" in flags(2e3 * PF_DAY) and "required_data" not in flags(1e2 * PF_DAY)
    assert not {"k20_frontier", "required_data"} & flags(2e3 * PF_DAY, "besiroglu2024")


def test_the_trade_of_time_against_compute_is_the_hyperbola() -> None:
    found = plan(2 * PF_DAY, accelerator="v4-32")
    assert found.bill is not None and found.steps is not None
    assert [row.ratio for row in found.trade] == [1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8]
    for row in found.trade:
        assert (row.steps_relative - 1) * (row.flops_relative - 1) == pytest.approx(1.0)
        assert 6 * found.params * row.batch_tokens * row.steps == pytest.approx(row.flops)
        # The plan's loss, by the implicit law at that batch.
        again = loss_at(found.params, row.steps, row.batch_tokens, L_NS | CRITICAL)
        assert again == pytest.approx(found.loss, rel=1e-9)
        assert row.hours == pytest.approx(found.bill.hours * row.flops / found.flops)
        assert row.hours_scaled == pytest.approx(found.bill.hours * row.steps / found.steps)
    assert plan(1e21, "besiroglu2024").trade == []


def test_ten_times_the_compute_is_the_plan_at_ten_times() -> None:
    for constants in ("kaplan2020", "kaplan2020.table6", "besiroglu2024", "deepseek2024"):
        found, more = plan(1e20, constants), plan(1e21, constants)
        for name, each in found.tenfold.items():
            assert each.value == pytest.approx(getattr(more, name), rel=1e-9)
            if each.exponent is not None:
                assert each.factor == pytest.approx(10**each.exponent, rel=1e-9)
    sizes = plan(1e20).tenfold
    assert sizes["params"].exponent == pytest.approx(0.681, abs=5e-4)
    assert sizes["batch_tokens"].exponent == pytest.approx(0.250, abs=5e-4)
    assert sizes["steps"].exponent == pytest.approx(0.069, abs=5e-4)
    assert plan(1e20, batch=1e6).tenfold["params"].exponent is None


def test_json_has_the_promised_keys_and_the_bill() -> None:
    doc = plan(1e22, accelerator="v4-32", usd_per_chip_hour=3.0).to_json()
    assert set(doc) >= KEYS and doc["constants"]["name"] == "kaplan2020"
    assert doc["constants"]["params"] == published("kaplan2020").params
    assert doc["accelerator"]["chips"] == 16 and doc["accelerator"]["hosts"] == 4
    hours = 1e22 / (0.4 * 275e12) / 3600
    assert doc["accelerator"]["chip_hours"] == pytest.approx(hours)
    assert doc["accelerator"]["money_usd"] == pytest.approx(3 * hours)
    assert plan(1e22).to_json()["accelerator"] is None
    crowded = plan(1e24, accelerator="v5e", chips=4)
    assert crowded.bill is not None and crowded.bill.money_usd is None
    assert "memory" in crowded.to_json()["flags"]


def test_text_says_what_is_open_and_what_was_assumed() -> None:
    text = describe_plan(plan(1e21, "besiroglu2024", accelerator="H100-8"))
    assert "batch_tokens" in text and "open" in text and "assumed MFU   0.4" in text
    assert "8 chips on 1 host" in text and "unknown without --price" in text
    fitted = describe_plan(plan(1e20, fit=a_fit()))
    assert "90% interval" in fitted and " to " in fitted


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"flops": 0.0}, "flops is a finite number above 0"),
        ({"flops": -1e20}, "flops"),
        ({"flops": math.nan}, "flops"),
        ({"flops": math.inf}, "flops"),
        ({"flops": "1e20"}, "flops is a number"),
        ({"flops": 10.0}, "too few"),
        ({"batch": "critcal"}, r"not 'critcal'\. Did you mean 'critical'"),
        ({"batch": "nan"}, "batch"),
        ({"batch": 0.5}, "one token or more"),
        ({"batch": -4}, "batch"),
        ({"batch": 1e15, "constants": "besiroglu2024"}, "more than the whole plan's"),
        ({"batch": 1e300}, "more than 1e.20 FLOPs give to one parameter"),
        ({"mfu": 0.0, "accelerator": "v4"}, "mfu"),
        ({"mfu": 1.5}, "mfu"),
        ({"chips": 0, "accelerator": "v4"}, "chips are 1 or more"),
        ({"chips": 4}, "need an accelerator"),
        ({"usd_per_chip_hour": 3.0}, "need an accelerator"),
        ({"accelerator": "v4-3"}, "counts TensorCores"),
        ({"constants": "kaplan2020", "fit": {}}, "give one of them"),
    ],
)
def test_impossible_requests_are_told(asked: dict[str, Any], says: str) -> None:
    with pytest.raises(RequestError, match=says):
        plan(**{"flops": 1e20, **asked})


def test_other_sizes_cost_what_appendix_b_says() -> None:
    found = {row.ratio: row.flops_relative for row in plan(1e20).sizes}
    assert found[0.25] is None  # 0.2856 is the smallest that gets there
    assert found[0.5] == pytest.approx(1.393, abs=5e-4)
    assert found[2.0] == pytest.approx(excess_compute(2.0, published("kaplan2020").params))
    assert plan(1e20, "besiroglu2024").sizes[1].flops_relative == pytest.approx(1.26, abs=5e-3)
    assert plan(1e20, "deepseek2024").sizes == []


def test_numbers_beyond_float64_are_null_in_json() -> None:
    asked = {"batch": "small", "accelerator": "v5p-128", "usd_per_chip_hour": 1e300}
    doc = plan(1e307, **asked).to_json()
    assert doc["accelerator"]["money_usd"] is None
    json.dumps(doc, allow_nan=False)
