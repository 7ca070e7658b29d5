"""Several processes of one run, on this machine."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from run_tools import REPOSITORY


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


class Processes:
    """`count` processes of one run, with `devices` simulated devices each; their output goes to files.

    driver: (a command, its last argument) instead of the command line of mla_jax: COMMAND PORT COUNT INDEX LAST.
    """

    def __init__(
        self, folder: Path, flags: list[str], count: int = 2, devices: int = 4, each: Any = None, driver: Any = None
    ):
        self.logs = [folder / f"process{i}.txt" for i in range(count)]
        environment = {n: v for n, v in os.environ.items() if n != "JAX_COMPILATION_CACHE_DIR"}
        environment |= {"MLA_JAX_CACHE": str(folder / "cache"), "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(REPOSITORY)}
        environment["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
        port, self.children = free_port(), []
        for i in range(count):
            launch = [f"--coordinator_address=localhost:{port}", f"--num_processes={count}", f"--process_id={i}"]
            command = [sys.executable, "-m", "mla_jax.main", *flags, *(launch if count > 1 else [])]
            command += each[i] if each else []
            if driver:
                command = [*driver[0], str(port), str(count), str(i), driver[1]]
            with self.logs[i].open("w") as log:
                self.children.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))

    def wait(self, timeout: float = 400) -> list[int]:
        try:
            return [child.wait(timeout) for child in self.children]
        finally:
            for child in self.children:
                child.kill()

    def wait_for(self, text: str, timeout: float = 400, index: int = 0) -> None:
        """Until process `index` has said `text`."""
        until = time.monotonic() + timeout
        while text not in self.text(index):
            assert time.monotonic() < until and self.children[index].poll() is None, self.text(index)
            time.sleep(0.2)

    def text(self, index: int) -> str:
        return self.logs[index].read_text()
