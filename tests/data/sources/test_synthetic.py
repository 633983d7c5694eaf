import json
import math

import numpy as np
import pytest

from scaling_jax.config import DataConfig
from scaling_jax.data.corpus import load_corpus
from scaling_jax.data.sources.opening import open_source
from scaling_jax.data.sources.synthetic import Synthetic
from scaling_jax.errors import RequestError
from scaling_jax.zipf import ZipfFacts

SMALL = ZipfFacts(n_keys=20, n_values=6, mean_facts=5.0)


def contents(source: Synthetic) -> list[np.ndarray]:
    return [np.asarray(document.content) for document in source.documents()]


def split_facts(documents: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    tokens = np.concatenate(documents).astype(np.int64)
    return tokens[::2], tokens[1::2]


def test_spec_names_every_option():
    source = Synthetic.from_spec(
        "synthetic:tokens=5000, seed=3, keys=20, values=6, alpha=0.5, facts=4"
    )
    assert source == Synthetic(ZipfFacts(20, 6, 0.5, 4.0), tokens=5000, seed=3)
    assert Synthetic.from_spec("synthetic") == Synthetic()


def test_opens_by_spec():
    assert open_source("synthetic:keys=20,tokens=100") == Synthetic(
        ZipfFacts(n_keys=20), tokens=100
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("key=5", "no option 'key'. Did you mean 'keys'?"),
        ("keys=many", "keys is a whole number, not 'many'"),
        ("keys", "keys is a whole number, not ''"),
        ("alpha=x", "alpha is a number"),
        ("seed=1,seed=2", "seed is given twice"),
        ("tokens=0", "tokens 0"),
        ("seed=-1", "seed -1"),
        ("keys=2000000000,values=2000000000", "fewer than"),
        ("alpha=-1", "alpha"),
        ("facts=1e12", "facts 1e+12: it is 10,000 or fewer"),
    ],
)
def test_faulty_specs(options, message):
    with pytest.raises(RequestError) as caught:
        Synthetic.from_spec(f"synthetic:{options}")
    assert message in str(caught.value)


def test_documents_are_the_same_each_time_and_of_more_tokens():
    source = Synthetic(SMALL, tokens=60_000)  # more than one block of draws
    documents = list(source.documents())
    longer = list(Synthetic(SMALL, tokens=80_000).documents())
    assert len(longer) > len(documents)
    for first, again, other in zip(documents, source.documents(), longer, strict=False):
        assert first.id == again.id == other.id
        np.testing.assert_array_equal(first.content, again.content)
        np.testing.assert_array_equal(first.content, other.content)
    assert len({document.id for document in documents}) == len(documents)


def test_another_seed_has_other_facts_and_documents():
    one, other = (contents(Synthetic(SMALL, tokens=2000, seed=seed)) for seed in (0, 1))
    assert dict(zip(*map(np.ndarray.tolist, split_facts(one)), strict=True)) != dict(
        zip(*map(np.ndarray.tolist, split_facts(other)), strict=True)
    )
    assert [len(document) for document in one] != [len(document) for document in other]


def test_as_many_tokens_as_asked_for_with_separators():
    documents = contents(Synthetic(SMALL, tokens=5000))
    lengths = np.array([len(document) + 1 for document in documents])
    assert lengths[:-1].sum() < 5000 <= lengths.sum()


def test_a_key_has_one_value_and_tokens_have_their_ranges():
    source = Synthetic(SMALL, tokens=50_000)
    documents = contents(source)
    assert all(document.dtype == np.uint8 and document.size for document in documents)
    keys, values = split_facts(documents)
    assert set(keys.tolist()) == set(range(20))
    assert values.min() >= 20 and values.max() < source.n_vocab == 26
    pairs = set(zip(keys.tolist(), values.tolist(), strict=True))
    assert len(pairs) == 20
    assert len({value for _, value in pairs}) > 2


def test_draws_are_those_of_the_process():
    documents = contents(Synthetic(SMALL, tokens=200_000))
    keys, _ = split_facts(documents)
    p = SMALL.key_probabilities
    counts = np.bincount(keys, minlength=20)
    error = np.sqrt(len(keys) * p * (1 - p))
    assert np.all(np.abs(counts - len(keys) * p) < 4 * error)
    n_facts = np.array([len(document) // 2 for document in documents])
    for facts in (1, 2, 5):
        share = 0.2 * 0.8 ** (facts - 1)
        error = math.sqrt(share * (1 - share) / len(n_facts))
        assert np.mean(n_facts == facts) == pytest.approx(share, abs=4 * error)


def test_coding_with_the_true_probabilities_costs_the_entropy():
    source = Synthetic(SMALL, tokens=400_000)
    documents = contents(source)
    end = 1 / SMALL.mean_facts
    costs, lengths = [], []
    for document in documents:
        facts = len(document) // 2
        of_keys = -np.log(SMALL.key_probabilities[document[::2]]).sum()
        costs.append(of_keys - math.log(end) - (facts - 1) * math.log1p(-end))
        lengths.append(len(document) + 1)
    mean = sum(costs) / sum(lengths)
    residual = np.array(costs) - mean * np.array(lengths)
    error = math.sqrt((residual**2).sum()) / sum(lengths)
    assert error < 0.005
    assert abs(mean - source.facts["entropy_nats"]) < 3 * error


@pytest.mark.parametrize("n_tokens", [300, 3000])
def test_a_table_of_seen_facts_has_the_excess_of_theory(n_tokens):
    process = ZipfFacts(n_keys=128, n_values=16, mean_facts=4.0)
    documents = contents(Synthetic(process, tokens=120 * n_tokens))
    tokens = np.concatenate([np.append(document, 144) for document in documents])
    unseen = []
    for i in range(120):
        own = tokens[i * n_tokens : (i + 1) * n_tokens]
        held = np.isin(np.arange(process.n_keys), own[:-1])  # a key at the end lacks its value
        unseen.append(process.key_probabilities[~held].sum())
    excess = np.array(unseen) * math.log(process.n_values) / process.tokens_a_fact
    error = excess.std() / math.sqrt(len(excess))
    expected = float(process.excess_of_data(n_tokens))
    assert error < 0.05 * expected
    assert excess.mean() == pytest.approx(expected, abs=3 * error)


def test_as_a_corpus_its_bigrams_cost_the_entropy(tmp_path):
    spec = "synthetic:tokens=400000,keys=20,values=6,facts=5"
    corpus = load_corpus(DataConfig(source=spec), cache=tmp_path)
    assert (corpus.n_vocab, corpus.separator) == (27, 26)
    # The sampling error of 20,000 validation tokens is 0.008 nats.
    assert corpus.bigram_nats == pytest.approx(SMALL.entropy_nats, abs=0.024)


def test_facts_and_key_are_json():
    source = Synthetic(SMALL)
    assert source.facts["data_exponent"] == 0.5
    assert source.facts["capacity_exponent"] == 1.0
    assert json.loads(json.dumps(source.facts)) == source.facts
    assert json.loads(json.dumps(source.key())) == source.key()
    assert source.key() != Synthetic(SMALL, seed=1).key()
    assert source.key() != Synthetic(ZipfFacts(n_keys=21), tokens=source.tokens).key()
