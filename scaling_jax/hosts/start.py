"""JAX in several processes: started together, ended together."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Iterator, Mapping

import jax

from scaling_jax.errors import RequestError, WorkError
from scaling_jax.hosts.agreement import connect, end_all, gathered
from scaling_jax.hosts.checks import require_same
from scaling_jax.hosts.rollcall import Place, call_roll, parse_place

AUTO = "auto"
_JAX_S = 60  # that JAX waits for processes which have all answered the roll call
_SHUTDOWN_S = 30


@contextlib.contextmanager
def many_hosts(asked: str | None, facts: Mapping[str, str]) -> Iterator[None]:
    """Inside, JAX sees the devices of all processes; must begin before it looks for any.

    `asked` is what `parse_place` reads, or `auto` on a cluster that JAX knows; None is one process.
    `facts` are compared at the start, before JAX is started. Raises what `call_roll` and
    `require_same` do. What is raised inside ends the other processes too, and this one.
    """
    place = None if asked is None else _detect() if asked == AUTO else parse_place(asked)
    if place is None or place.count == 1:
        yield
        return
    channel = call_roll(place)
    connect(channel)
    with _ending_all():
        require_same(facts)
        _start_jax(place, detected=asked == AUTO)
        yield
        gathered("the end", "")
        channel.close()
    connect(None)


@contextlib.contextmanager
def _ending_all() -> Iterator[None]:
    """A failure on one host is one of all, and none of them waits for another any more."""
    try:
        yield
    except BaseException as error:
        if not isinstance(error, RequestError | WorkError | KeyboardInterrupt):
            traceback.print_exc()
        message = str(error) or type(error).__name__
        code = 2 if isinstance(error, RequestError) else 1
        end_all(message, code)


def _detect() -> Place:
    # Asked of JAX's own list of clusters, for what it would otherwise keep to itself.
    from jax._src.clusters import ClusterEnv

    try:
        found = ClusterEnv.auto_detect_unset_distributed_params(None, None, None, None, None, 60)
    except Exception as error:
        raise WorkError(f"--hosts auto: the cluster does not say who is there: {error}") from error
    address, count, index, _ = found
    if address is None or count is None or index is None:
        raise RequestError(
            "--hosts auto: this is no cluster that JAX knows (TPU pod, SLURM, Open MPI, "
            "Kubernetes); name the hosts as in --hosts 10.0.0.1:8476,0/4"
        )
    host, _, port = address.rpartition(":")
    return Place(host.strip("[]"), int(port), index, count)


def _start_jax(place: Place, detected: bool) -> None:
    # Its preemption service would take SIGTERM, which is ours; what it agrees on, `together` does.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            f"{place.address}:{place.port}",
            place.count,
            place.index,
            # a cluster may tell which of a host's devices are this process's
            cluster_detection_method=None if detected else "deactivate",
            initialization_timeout=_JAX_S,
            shutdown_timeout_seconds=_SHUTDOWN_S,
        )
    except (RuntimeError, ValueError) as error:
        raise WorkError(f"JAX could not be started on all hosts: {error}") from error
    require_same(_device_facts())
    if jax.process_count() != place.count:
        raise WorkError(
            f"JAX sees the devices of {jax.process_count()} of {place.count} processes: their "
            "platform does not join them"
        )


def _device_facts() -> dict[str, str]:
    devices = jax.local_devices()
    return {"devices": f"{len(devices)} x {devices[0].device_kind}"}
