"""Fit files as plans read them: every key checked, and nothing taken on trust."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from scaling_jax.errors import RequestError
from scaling_jax.laws.plan import plan
from tests.laws.plan_files import L_NS, a_fit

DEEP = {"draws": {**{name: [1.0] * 40 for name in L_NS}, "alpha_S": [1.0] * 39}}


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"format": ...}, "has no 'format'"),
        ({"format": 2}, "format 2 is of a newer version"),
        ({"format": 0}, "an older version"),
        ({"format": "1"}, "format is a whole number"),
        ({"format": True}, "format is a whole number"),
        ({"law": ...}, "has no 'law'"),
        ({"law": "l_n"}, "'l_n' cannot plan. Laws that can: l_ns, l_nd_chinchilla"),
        ({"law": ["l_ns"]}, "cannot plan"),
        ({"params": ...}, "has no 'params'"),
        ({"params": [1, 2]}, "params is an object"),
        ({"params": {**L_NS, "N_c": "big"}}, r"params\.N_c is a number, not 'big'"),
        ({"params": {**L_NS, "N_c": True}}, r"params\.N_c is a number"),
        ({"params": {**L_NS, "N_c": 0.0}}, r"params\.N_c is a finite number above 0"),
        ({"params": {**L_NS, "alpha_N": math.nan}}, r"params\.alpha_N is a finite"),
        ({"params": {**L_NS, "N_c": 10**400}}, r"params\.N_c is a finite"),
        ({"params": {"N_c": 1.0, "S_c": 1.0, "alpha_N": 0.1, "alpha_s": 1.0}}, "lacks alpha_S"),
        ({"critical_batch": None}, "--critical-batch B_star"),
        ({"critical_batch": {"B_star": 2e8}}, "critical_batch lacks alpha_B"),
        ({"critical_batch": 3}, "critical_batch is an object"),
        ({"level": 1.0}, "level is below 1"),
        ({"level": "high"}, "level is a number"),
        ({"tail": 0.5}, "tail is below 0.5"),
        ({"convention": ...}, "has no 'convention'"),
        ({"convention": 3}, "convention is a text"),
        ({"flags": "all"}, "flags is a list of texts"),
        ({"flags": [1]}, "flags is a list of texts"),
        ({"draws": [1]}, "draws is an object"),
        ({"draws": {"N_c": [1.0]}}, r"draws\.S_c is a list of numbers"),
        ({"draws": {name: [-1.0] * 50 for name in L_NS}}, r"draws\.N_c is a finite"),
        (DEEP, "differ in length"),
        ({"ranges": {"N": [1.0]}}, r"ranges\.N is a pair"),
        ({"ranges": {"N": [2.0, 1.0]}}, "wrong way round"),
        ({"ranges": 7}, "ranges is an object"),
        ({"refused": "alpha_S is flat"}, "it was refused: alpha_S is flat"),
    ],
)
def test_every_key_of_a_fit_is_checked_by_name(changed: dict[str, Any], says: str) -> None:
    with pytest.raises(RequestError, match=says):
        plan(1e20, fit=a_fit(**changed))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "not one JSON object"),
        (b"{", "not one JSON object"),
        (b"\xff\xfe\x00", "not one JSON object"),
        (b"[" * 100_000, "not one JSON object"),
        (b"9" * 10_000, "JSON"),
        (b"[1, 2]", "not the object that fit --json prints"),
        (b"{}", "has no 'format'"),
        (json.dumps(a_fit()).encode() + b"\n{}", "not one JSON object"),
    ],
)
def test_files_that_are_no_fit_are_told(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "fit.json"
    path.write_bytes(content)
    with pytest.raises(RequestError, match=says):
        plan(1e20, fit=path)


def test_missing_files_and_folders_are_told(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="No such file"):
        plan(1e20, fit=tmp_path / "none.json")
    with pytest.raises(RequestError, match="is a folder"):
        plan(1e20, fit=tmp_path)


def test_a_file_gives_what_the_object_gives(tmp_path: Path) -> None:
    path = tmp_path / "fit.json"
    path.write_text(json.dumps(a_fit()))
    found = plan(1e20, fit=str(path))
    assert found.params == plan(1e20, fit=a_fit()).params
    assert found.to_json()["constants"]["name"] == str(path)
