import itertools
import math

import numpy as np
import pytest

from scaling_jax.errors import RequestError
from scaling_jax.zipf import ZipfFacts


def chain(process: ZipfFacts) -> np.ndarray:
    """Transition matrix of the tokens: keys, values, separator, with key k's value k modulo V."""
    K, V, p = process.n_keys, process.n_values, process.key_probabilities
    matrix = np.zeros((K + V + 1, K + V + 1))
    matrix[np.arange(K), K + np.arange(K) % V] = 1.0
    matrix[K : K + V, :K] = p * (1.0 - 1.0 / process.mean_facts)
    matrix[K : K + V, -1] = 1.0 / process.mean_facts
    matrix[-1, :K] = p
    return matrix


@pytest.mark.parametrize(("alpha", "mean_facts"), [(1.0, 16.0), (0.5, 2.0), (2.0, 3.5)])
def test_entropy_is_that_of_the_markov_chain(alpha, mean_facts):
    process = ZipfFacts(n_keys=12, n_values=5, alpha=alpha, mean_facts=mean_facts)
    matrix = chain(process)
    values, vectors = np.linalg.eig(matrix.T)
    stationary = np.real(vectors[:, np.argmax(np.real(values))])
    stationary /= stationary.sum()
    logs = np.log(matrix, where=matrix > 0, out=np.zeros_like(matrix))
    assert process.entropy_nats == pytest.approx(-stationary @ (matrix * logs).sum(1), rel=1e-12)
    assert process.tokens_a_fact == pytest.approx(1 / stationary[:12].sum(), rel=1e-12)


def test_excess_of_data_is_the_mean_over_all_data():
    process = ZipfFacts(n_keys=3, n_values=7, alpha=0.8)
    p, n = process.key_probabilities, 4
    unseen = 0.0
    for keys in itertools.product(range(3), repeat=n):
        unseen += np.prod(p[list(keys)]) * sum(p[i] for i in range(3) if i not in keys)
    excess = process.excess_of_data(n * process.tokens_a_fact)
    assert excess == pytest.approx(unseen * math.log(7) / process.tokens_a_fact, rel=1e-12)


@pytest.mark.parametrize("alpha", [0.7, 1.0, 2.0])
def test_data_exponent_is_reached_where_keys_do_not_run_out(alpha):
    process = ZipfFacts(n_keys=1_000_000, alpha=alpha)
    a, tokens = 1 + alpha, np.array([1e4, 1e5])
    first, last = process.excess_of_data(tokens)
    beta = process.data_exponent
    assert math.log(first / last) / math.log(10) == pytest.approx(beta, abs=0.003)
    assert process.local_data_exponent(tokens) == pytest.approx([beta, beta], abs=0.003)
    # The sum as an integral: Gamma(1 - 1/a) / a Z^(-1/a) n^-beta.
    weights = np.arange(1, 1_000_001) ** -a
    n = 1e5 / process.tokens_a_fact
    unseen = math.gamma(1 - 1 / a) / a * weights.sum() ** (-1 / a) * n**-beta
    assert last == pytest.approx(unseen * math.log(256) / process.tokens_a_fact, rel=0.01)


def test_local_exponent_is_the_slope_of_the_excess():
    process = ZipfFacts(n_keys=64)
    tokens = 3000 * np.exp([-1e-4, 0.0, 1e-4])
    low, _, high = np.log(process.excess_of_data(tokens))
    slope = process.local_data_exponent(tokens[1])
    assert slope == pytest.approx((low - high) / 2e-4, rel=1e-6)
    assert slope > 1.5 * process.data_exponent  # of 64 keys few are left


def test_capacity_exponent_is_that_of_the_tail():
    process = ZipfFacts(n_keys=1_000_000, alpha=0.8)
    first, last = process.excess_of_capacity([100, 1000])
    assert math.log10(first / last) == pytest.approx(process.capacity_exponent, abs=0.01)


def test_capacity_for_all_facts_leaves_no_excess():
    process = ZipfFacts(n_keys=8)
    none, some, all_, more = process.excess_of_capacity([0, 1, 8, 9])
    assert none == pytest.approx(math.log(256) / process.tokens_a_fact)
    assert some == pytest.approx(none * (1 - process.key_probabilities[0]))
    assert all_ == more == 0.0


@pytest.mark.parametrize(
    ("field", "value"),
    [("n_keys", 1), ("n_values", 0), ("alpha", 0.0), ("alpha", math.inf), ("mean_facts", 1.0)],
)
def test_no_such_process(field, value):
    with pytest.raises(RequestError, match=field):
        ZipfFacts(**{field: value})
