"""How this process was started, alone or as one of several, and how the several join and end.

Every process runs the same command. One that stands alone (no flags, no SLURM step, no mpirun, no JAX_* variables)
never touches jax.distributed.
"""

import contextlib
import dataclasses
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from typing import Any

import jax

from mla_jax import distributed, peers
from mla_jax.errors import UserError, brief


@dataclasses.dataclass(frozen=True)
class Launch:
    """How this process joins the others. method: "explicit", or the launcher that jax.distributed asks the rest of."""

    method: str
    coordinator_address: str = ""
    num_processes: int = 1
    process_id: int = 0
    timeout_s: int = 300


def launch_from(
    coordinator_address: str | None, num_processes: int | None, process_id: int | None, timeout_s: int
) -> Launch | None:
    """What the flags, else JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID, else the launcher say.

    None: this process stands alone. Raises UserError for a part of the three, or values that cannot be.
    """
    env = os.environ
    address = coordinator_address or env.get("JAX_COORDINATOR_ADDRESS", "")
    count = _number("num_processes", num_processes, env.get("JAX_NUM_PROCESSES"))
    index = _number("process_id", process_id, env.get("JAX_PROCESS_ID"))
    if timeout_s < 1:
        raise UserError(f"--init_timeout_s is {timeout_s}; it must be at least 1: give seconds, e.g. 300.")
    if count == 1:
        return None
    if address or count is not None or index is not None:
        missing = [
            name
            for name, value in (("coordinator_address", address), ("num_processes", count), ("process_id", index))
            if value in ("", None)
        ]
        if missing:
            raise UserError(
                f"--{' and --'.join(missing)} missing: several processes need --coordinator_address HOST:PORT, "
                "--num_processes N and --process_id I (or JAX_COORDINATOR_ADDRESS, ...), or none of them."
            )
        _check_address(address)
        if not 0 <= index < count:
            raise UserError(
                f"--process_id is {index} and --num_processes {count}; processes count from 0: use 0 to {count - 1}."
            )
        return Launch("explicit", address, count, index, timeout_s)
    if _int(env, "SLURM_STEP_NUM_TASKS") > 1 and "SLURM_PROCID" in env:  # a step of srun, not the shell of salloc
        return Launch("slurm", "", _int(env, "SLURM_STEP_NUM_TASKS"), _int(env, "SLURM_PROCID"), timeout_s)
    if _int(env, "OMPI_COMM_WORLD_SIZE") > 1:
        return Launch("ompi", "", _int(env, "OMPI_COMM_WORLD_SIZE"), _int(env, "OMPI_COMM_WORLD_RANK"), timeout_s)
    if len(env.get("TPU_WORKER_HOSTNAMES", "").split(",")) > 1:
        return Launch("tpu", "", len(env["TPU_WORKER_HOSTNAMES"].split(",")), _int(env, "TPU_WORKER_ID"), timeout_s)
    return None


def start(launch: Launch | None) -> None:
    """Join the other processes, before anything else asks JAX for devices. Raises UserError when that fails.

    A coordinator that cannot be reached is waited for, `timeout_s` in all.
    """
    if launch is None:
        return
    # Its handler of SIGTERM would replace the one that saves a checkpoint; `Agreement` tells the others.
    jax.config.update("jax_enable_preemption_service", False)
    # Without it JAX aborts the others when one dies, with a stack trace; `peers` ends them with a sentence.
    jax.config.update("jax_enable_recoverability", True)
    if launch.method == "explicit":
        _reach(launch)
        where = {
            "coordinator_address": launch.coordinator_address,
            "num_processes": launch.num_processes,
            "process_id": launch.process_id,
            "cluster_detection_method": "deactivate",
        }
    else:
        where = {} if launch.method == "tpu" else {"cluster_detection_method": launch.method}
    sentence = (
        f"process {launch.process_id} of {launch.num_processes} could not join the others within {launch.timeout_s} s"
        "{}: start all of them, with one --coordinator_address that all can reach (--init_timeout_s waits longer)."
    )

    def give_up() -> None:
        print(f"mla_jax: {sentence.format('')}", file=sys.stderr, flush=True)
        os._exit(2)

    # jaxlib aborts the process, with a stack trace, when its own time-out is over: ours comes first.
    timer = threading.Timer(launch.timeout_s, give_up)
    timer.start()
    try:
        jax.distributed.initialize(
            **where, initialization_timeout=launch.timeout_s + 60, heartbeat_timeout_seconds=peers.HEARTBEAT_S
        )
        jax.devices()  # exchanges the topology: all take part
    except Exception as error:  # jaxlib raises several types
        raise UserError(sentence.format(f" ({brief(error, first_line=True)})")) from None
    finally:
        timer.cancel()


@contextlib.contextmanager
def joined(launch: Launch | None) -> Iterator[None]:
    """`start`, then the run; a process that fails says why at once, and does not wait for the others to end."""
    start(launch)
    if launch is None:
        yield
        return
    with peers.watched(launch.coordinator_address or _coordinator()):
        try:
            yield
        except UserError as error:
            print(f"mla_jax: {error}", file=sys.stderr, flush=True)
            peers.leave(2)
            raise
        except Exception:
            time.sleep(peers.NEWS_S)  # of a lost process, which ends this one
            traceback.print_exc()
            peers.leave(1)
            raise
    if distributed.is_first():
        time.sleep(peers.GRACE_S)
    jax.distributed.shutdown()
    peers.rest()


def _coordinator() -> str:
    from jax._src.distributed import global_state  # no public name for what a launcher's variables were read as

    return global_state.coordinator_address


def _reach(launch: Launch) -> None:
    """Wait until the coordinator listens: jaxlib ends a process whose coordinator is unreachable without a sentence."""
    if launch.process_id == 0:
        return
    host, port = launch.coordinator_address.rsplit(":", 1)
    until, reason = time.monotonic() + launch.timeout_s, ""
    while time.monotonic() < until:
        try:
            with socket.create_connection((host.strip("[]"), int(port)), timeout=5):
                return
        except OSError as error:
            reason = error.strerror or str(error)
            time.sleep(min(0.5, max(0.0, until - time.monotonic())))
    raise UserError(
        f"--coordinator_address is {launch.coordinator_address!r}, which process {launch.process_id} could not reach "
        f"within {launch.timeout_s} s ({reason}): start process 0 there, or give its address (--init_timeout_s waits "
        "longer)."
    )


def _check_address(address: str) -> None:
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise UserError(f"--coordinator_address is {address!r}; it must be HOST:PORT of process 0: e.g. 10.0.0.1:9876.")


def _number(name: str, flag: int | None, variable: str | None) -> int | None:
    value = flag if flag is not None else variable
    if value in (None, ""):
        return None
    try:
        number = int(value)
    except ValueError:
        raise UserError(f"JAX_{name.upper()} is {value!r}; it must be a whole number: unset or mend it.") from None
    if number < (1 if name == "num_processes" else 0):
        raise UserError(f"--{name} is {number}; that is too few: give the number of all processes, or leave it out.")
    return number


def _int(env: Any, name: str) -> int:
    return int(env.get(name, "0")) if env.get(name, "0").isdigit() else 0
