"""Where the processes are, as a cluster says it."""

from __future__ import annotations

import pytest

from scaling_jax.errors import RequestError
from scaling_jax.hosts.agreement import alone
from scaling_jax.hosts.rollcall import Place
from scaling_jax.hosts.start import _detect, many_hosts

SLURM = {
    "SLURM_JOB_ID": "8191",
    "SLURM_STEP_NODELIST": "node[007-010],other",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "0",
}


def test_slurm_is_asked(monkeypatch):
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    assert _detect() == Place("node007", 65535, 3, 4)


def test_without_a_cluster_auto_is_refused(monkeypatch):
    for name in SLURM:
        monkeypatch.delenv(name, raising=False)
    with (
        pytest.raises(RequestError, match="no cluster that JAX knows"),
        many_hosts("auto", {}),
    ):
        pass


@pytest.mark.parametrize("asked", [None, "localhost:8476,0/1"])
def test_one_process_needs_no_other(asked):
    with many_hosts(asked, {}):
        assert alone()
