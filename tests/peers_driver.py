"""One process of those that tests/test_peers.py ends in different ways: python peers_driver.py PORT COUNT INDEX HOW"""

import ctypes
import sys
import threading
import time

from mla_jax import distributed, launchers
from mla_jax.errors import UserError


def main(port: int, count: int, index: int, how: str) -> None:
    with launchers.joined(launchers.Launch("explicit", f"localhost:{port}", count, index, 60)):
        distributed.exchange("here", "")
        if how == "abort" and index == 0:
            threading.Thread(target=ctypes.CDLL(None).abort).start()  # as gloo does when a process is lost
        print("all are here", flush=True)
        if how == "refuse" and index == count - 1:
            raise UserError("mine alone")
        time.sleep(60 if how != "end" else 2 * index)  # the end of one comes before that of another
    assert not any("_ask" in thread.name for thread in threading.enumerate())  # it would end the process badly
    print("ended well", flush=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:4]), sys.argv[4])
