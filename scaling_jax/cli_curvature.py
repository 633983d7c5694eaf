"""The command that measures the noise scale with the Hessian: parse, call, print."""

from __future__ import annotations

import sys
from typing import Annotated

from tyro.conf import Positional, arg

from scaling_jax.cli_common import Json, leave_the_accelerator, print_json

_LEVEL = 0.9


def curvature(
    folder: Annotated[Positional[str], arg(metavar="DIR", help="A study folder.")],
    run: Annotated[
        str | None, arg(metavar="NAME_OR_ID", help="The run, where there are several.")
    ] = None,
    steps: Annotated[
        str, arg(metavar="100,1000,last", help="Steps that have a checkpoint; last; or all.")
    ] = "last",
    draws: Annotated[int, arg(metavar="M", help="Independent draws of rows at a step.")] = 16,
    batch: Annotated[
        int,
        arg(
            metavar="SEQUENCES",
            help="Rows of a draw's gradients; near the noise scale it is precise.",
        ),
    ] = 256,
    groups: Annotated[int, arg(metavar="K", help="Equal groups that a draw is cut into.")] = 8,
    hessian_sequences: Annotated[
        int, arg(metavar="SEQUENCES", help="Other rows of a draw, that the Hessian is taken of.")
    ] = 8,
    accelerator: Annotated[
        bool, arg(help="Compute on the accelerator, which no study may hold; else on the CPU.")
    ] = False,
    json: Json = False,
) -> int:
    """Measure B_noise = tr(H Sigma) / G^T H G, with the Hessian H, at checkpoints of a run."""
    if not accelerator:
        leave_the_accelerator()
    from scaling_jax.executors.curvature import choose_run, measure_run
    from scaling_jax.executors.startup import start_jax
    from scaling_jax.laws.describe_points import describe_points
    from scaling_jax.laws.noise_points import noise_points
    from scaling_jax.records.files import as_path
    from scaling_jax.records.store import load
    from scaling_jax.training.curvature_draws import Draws

    plan = Draws(draws, groups, batch, hessian_sequences)
    plan.check()
    start_jax()
    runs = load(folder).runs
    run_id = choose_run(dict(runs.select("run_id", "name").iter_rows()), run)
    place = as_path(folder)
    out = place.resolve().parent if (place / "study.json").exists() else place
    measured = measure_run(out, run_id, steps, plan, _tell)
    found = noise_points(load(folder), _LEVEL).filter(run_id=run_id)
    found = found.filter(found["step"].is_in(measured))
    if json:
        print_json({"level": _LEVEL, "checkpoints": found.to_dicts()})
    else:
        print(describe_points(found, _LEVEL))
    return 0


def _tell(words: str) -> None:
    print(f"scaling-jax: {words}", file=sys.stderr)
