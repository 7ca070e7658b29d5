"""Whether the other processes of a run are alive, and how this one ends when one is not.

Three things tell, whichever comes first, and all end this process with one sentence and the exit code `PEER_LOST`:
* process 0 holds a connection to each of the others. The kernel closes it when a process dies, however it dies, and
  gives it up when a host is silent for `SILENCE_S`, whatever Python is doing. Process 0 passes the news on;
* the heartbeats that jaxlib sends to the coordination service, for a process that is frozen, or cannot be connected;
* an error of a collective operation (`peers_needed`).

jaxlib's own way is to abort the process, with a stack trace: always when process 0 is gone, at times when another is
(a callback in place of the abort, which its client takes, ends in std::bad_cast in jaxlib 0.10 to 0.12). So aborts are
held up for as long as the sentence takes (`_slow_aborts`).
"""

import contextlib
import ctypes
import os
import secrets
import selectors
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import NoReturn

import jax
from absl import logging

from mla_jax.distributed import client, count, exchange, index, is_first
from mla_jax.errors import brief, out_of_memory

HEARTBEAT_S = 30  # after which a process that sends none counts as dead
SILENCE_S = 30  # the same for a host that does not answer the kernel's probes of a connection
CONNECT_S = 20  # for connections to process 0; without one heartbeats have to do
PEER_LOST = 4  # exit code
GRACE_S = 3.0  # process 0 goes last: jaxlib aborts a process whose coordinator is gone before it
NEWS_S = 2.0  # how long an error waits for the news of a lost process, which would explain it
DONE = b"done"

_links: dict[int, socket.socket] = {}  # process -> connection: of process 0 to all others, of the others to it
_over = threading.Event()  # this process ends on purpose: from now on nobody is missed
_speaking = threading.Lock()  # held by the first to say that a process is lost, and never given back
_asking: list[threading.Thread] = []  # the one thread that waits inside jaxlib, while there is one
REST_S = 10  # how long it may take to come back once the client is shut down


@contextlib.contextmanager
def watched(coordinator_address: str) -> Iterator[None]:
    """Around a run of several processes: threads that end this process when another one is lost.

    coordinator_address: HOST:PORT; the host is that of process 0, as the others reach it. All enter together, and
    leave together: a body that ends without an error waits for the others to come to their end too.
    """
    _over.clear()
    with _slow_aborts():
        _asking[:] = [_start(_ask)]  # first: connecting waits for all of them
        try:
            _connect(coordinator_address.rsplit(":", 1)[0].strip("[]"))
            _start(_listen)
            yield
            with contextlib.suppress(Exception):
                client().wait_at_barrier("mla_jax/done", 60_000)  # process 0 serves the others until all are here
            _tell(DONE)
        finally:
            _over.set()


def rest() -> None:
    """After `watched` and the client's shutdown: wait until no thread of the watch is inside jaxlib.

    Python ends a thread that comes back from there while the interpreter goes down by unwinding it, and C++ ends the
    process for that: "FATAL: exception not rethrown", exit code -6, at the end of a run that ended well.
    """
    for thread in _asking:
        thread.join(REST_S)


def _start(work: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=work, name=f"mla_jax peers {work.__name__}", daemon=True)
    thread.start()
    return thread


@contextlib.contextmanager
def peers_needed() -> Iterator[None]:
    """Around work that communicates: an error of the communication ends this process as the loss of another one.

    Nothing orderly is left to do then: closing a checkpoint manager would wait for the dead process.
    """
    try:
        yield
    except RuntimeError as error:  # JaxRuntimeError is one
        if count() == 1 or out_of_memory(error) is not None or not isinstance(error, jax.errors.JaxRuntimeError):
            raise
        time.sleep(NEWS_S)  # the watch knows which process it is
        _lost(brief(error, first_line=True))


def leave(code: int) -> None:
    """End this process at once, whatever the others do; returns where there are no others."""
    if not jax.distributed.is_initialized() or count() == 1:
        return
    _over.set()
    sys.stdout.flush()
    sys.stderr.flush()
    with contextlib.suppress(Exception):  # process 0 serves what the others may still have to read
        client().wait_at_barrier("mla_jax/leaving", 5000)
        if is_first():
            time.sleep(GRACE_S)
    os._exit(code)


def _lost(reason: str, process: int | None = None) -> NoReturn:
    _speaking.acquire()
    print(
        f"mla_jax: process {index()} of {count()} lost another one ({reason}): start all of them again with the same "
        "command; training goes on from the newest checkpoint.",
        file=sys.stderr,
    )
    sys.stdout.flush()
    sys.stderr.flush()
    if process is not None:
        _tell(str(process).encode())
    os._exit(PEER_LOST)


def _tell(word: bytes) -> None:
    for link in _links.values():
        with contextlib.suppress(OSError):
            link.sendall(word)


def _connect(host: str) -> None:
    """Fill `_links`. All processes take part; one that cannot connect is left to the heartbeats, with a warning."""
    if not is_first():
        port, secret = exchange("peers", "")[0].split()
        try:
            link = socket.create_connection((host, int(port)), timeout=CONNECT_S)
            link.sendall(f"{index()} {secret}\n".encode())
            _links[0] = _probed(link)
        except OSError as error:
            logging.warning(
                "Process 0 cannot be reached at %s:%s (%s): if a process dies, it takes up to %s s to be noticed.",
                *(host, port, error.strerror or error, HEARTBEAT_S),
            )
        return
    both = socket.has_dualstack_ipv6()
    with socket.create_server(
        ("", 0), family=socket.AF_INET6 if both else socket.AF_INET, backlog=count(), dualstack_ipv6=both
    ) as server:
        secret, until = secrets.token_hex(16), time.monotonic() + CONNECT_S
        exchange("peers", f"{server.getsockname()[1]} {secret}")
        while len(_links) < count() - 1 and (left := until - time.monotonic()) > 0:
            server.settimeout(left)
            with contextlib.suppress(OSError, ValueError):  # strangers that knock on ports
                link, _ = server.accept()
                link.settimeout(5)
                number, given = link.makefile(errors="replace").readline(80).split()
                if secrets.compare_digest(given, secret):
                    _links[int(number)] = _probed(link)


def _probed(link: socket.socket) -> socket.socket:
    """The connection, blocking, and probed by the kernel while nothing is said."""
    link.settimeout(None)
    link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", SILENCE_S // 2), ("TCP_KEEPINTVL", SILENCE_S // 6), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, name):
            link.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return link


def _listen() -> None:
    """Wait for the end of a connection, or for process 0's word that another one ended."""
    with selectors.DefaultSelector() as open_links:
        for number, link in _links.items():
            open_links.register(link, selectors.EVENT_READ, number)
        while open_links.get_map():
            for key, _ in open_links.select():
                reason = f"process {key.data} has ended"
                try:
                    word = key.fileobj.recv(64)
                except OSError as error:
                    word, reason = b"", f"no word from process {key.data}: {error.strerror or error}"
                if _over.is_set() or word == DONE:
                    open_links.unregister(key.fileobj)
                elif word:
                    _lost(f"process {word.decode()} has ended")
                else:
                    _lost(reason, key.data)


def _ask() -> None:
    """Ask the coordination service every second who sends heartbeats; jaxlib sends them whatever Python is doing."""
    service, everyone = client(), list(range(count()))
    while not _over.wait(1.0):
        try:
            alive = service.get_live_nodes(everyone)  # returns when all that are alive have asked
            dead = sorted(set(everyone) - set(alive))
            reason = f"process {dead[0]} sent no heartbeat for {HEARTBEAT_S} s" if dead else ""
        except Exception as error:
            dead, reason = [0], f"process 0 is unreachable: {brief(error, 120, first_line=True)}"
        if reason and not _over.is_set():
            _lost(reason, dead[0])


@contextlib.contextmanager
def _slow_aborts() -> Iterator[None]:
    """An abort() of any thread takes 6 s, in which another thread can say why and end the process.

    The signal's handler is C's own `sleep`, whose argument is then the number of the signal, 6: no Python runs in the
    aborting thread, which may hold any lock (Python's own excepted, or nobody can speak). After it, abort() ends the
    process as if there were no handler.
    """
    libc = ctypes.CDLL(None)
    libc.signal.argtypes, libc.signal.restype = (ctypes.c_int, ctypes.c_void_p), ctypes.c_void_p
    before = libc.signal(signal.SIGABRT, ctypes.cast(libc.sleep, ctypes.c_void_p))
    try:
        yield
    finally:
        libc.signal(signal.SIGABRT, before)
