"""An HTTP server on loopback that answers like an OpenAI-compatible API, faults included.

Which fault a request meets is decided by a hash of its story: so a study that is killed and continued, or
one that asks in another order, meets the same faults.
"""

import hashlib
import json
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

# answers that never become a score, and faults that pass when the request is tried again
PERMANENT = ("cut_content", "wrong_schema", "refusal", "content_filter", "prose")
PASSING = ("429", "500", "timeout", "cut_body", "broken_body", "drip", "hang_up")
SLOW = ("timeout", "drip")  # those that only the client's patience ends


def fault(user: str, rate: float, kinds: Sequence[str] = PERMANENT + PASSING) -> str:
    """The fault planned for a judgement, "" for none; a function of the story alone."""
    digest = hashlib.sha256(user.encode()).digest()
    if int.from_bytes(digest[:4], "big") / 2**32 >= rate:
        return ""
    return kinds[digest[4] % len(kinds)]


def hidden_quality(first: str) -> float:
    """What the server's judge believes of a completion: long and well-ordered is good. 1 to 10."""
    words = first.split()
    ordered = sum(a.islower() or a.endswith((".", '"', ",")) for a in words) / max(len(words), 1)
    starts = re.findall(r"(?:^|[.!?]\"?\s+)(\S)", first)
    capital = sum(c.isupper() or c == '"' for c in starts) / max(len(starts), 1)
    return max(1.0, min(10.0, 1 + 3 * min(len(words) / 60, 1) + 3 * ordered + 3 * capital))


def parts_of(user: str) -> list[str]:
    """The texts between <<< and >>>: beginning, first completion and, in a comparison, the second."""
    return re.findall(r"<<<\n(.*?)\n>>>", user, re.S)


class FaultServer:
    """`with FaultServer(...) as server:` serves at `server.url`; `requests` counts what came in, by what
    was done.

    Args:
      fault_rate: share of judgements that meet a fault of `kinds`, in equal parts.
      quality: grade of a completion; the second argument is the whole user message.
      key: if given, any other key gets 401, with the offered one in the message, as some servers do.
      models: if given, any other model gets 404.
      rejects: names of parameters that get 400; also "json_schema" and "json_object".
      usage: whether replies count their tokens.
      keep: whether to keep request bodies in `bodies`.
      slow_s: how long a "timeout" is silent; a "drip" takes twice as long, a byte at a time. Both end with the server.
    """

    def __init__(
        self,
        fault_rate: float = 0.0,
        kinds: Sequence[str] = PERMANENT + PASSING,
        quality: Callable[[str, str], float] = lambda text, user: hidden_quality(text),
        winner: Callable[[str, str], str] = lambda a, b: "first" if len(a) > len(b) else "second",
        key: str | None = None,
        models: Sequence[str] | None = None,
        rejects: Sequence[str] = (),
        usage: bool = True,
        keep: bool = False,
        delay_s: float = 0.0,
        slow_s: float = 3.0,
        retry_after: str = "0.05",
        always: str = "",
    ):
        self.fault_rate, self.kinds, self.quality, self.winner = fault_rate, tuple(kinds), quality, winner
        self.key, self.models, self.rejects, self.usage = key, models, tuple(rejects), usage
        self.keep, self.delay_s, self.slow_s, self.retry_after = keep, delay_s, slow_s, retry_after
        self.always = always
        self.break_after = 0  # so many judgements are answered, then nothing but 500; 0 = never
        self.echo = ""  # put into reasons, prose and error messages, as a careless server does with a key
        self.requests: Counter[str] = Counter()
        self.bodies: list[dict] = []
        self.headers: list[dict[str, str]] = []
        self.times: list[tuple[str, float]] = []  # (what was done, when)
        self.most_at_once = self._now_inside = 0
        self._met: set[int] = set()
        self.lock = threading.Lock()
        self.closed = threading.Event()
        server = self

        class Handler(_Handler):
            owner = server

        self._http = _Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_port}/v1"

    def __enter__(self) -> "FaultServer":
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closed.set()
        self._http.shutdown()
        self._http.server_close()

    def fault(self, user: str) -> str:
        """The fault planned for a judgement, "" for none."""
        return self.always or fault(user, self.fault_rate, self.kinds)

    def meet(self, user: str) -> str:
        """The fault of this request: passing ones come once for a story."""
        kind = self.fault(user)
        with self.lock:
            if kind in PASSING and hash(user) in self._met and not self.always:
                kind = ""
            if self.break_after and self.requests.total() >= self.break_after:
                kind = "500"
            self._met.add(hash(user))
            self.requests[kind or "ok"] += 1
            self.times.append((kind or "ok", time.monotonic()))
        return kind

    def enter(self, step: int) -> None:
        with self.lock:
            self._now_inside += step
            self.most_at_once = max(self.most_at_once, self._now_inside)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, *_: object) -> None:
        pass  # clients that were killed hang up in the middle


class _Handler(BaseHTTPRequestHandler):
    owner: FaultServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1

    def log_message(self, *_: object) -> None:
        pass

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.owner.enter(1)
        try:
            self._answer(body)
        finally:
            self.owner.enter(-1)

    def _answer(self, body: dict) -> None:
        owner = self.owner
        if owner.keep:
            owner.bodies.append(body)
            owner.headers.append(dict(self.headers))
        offered = self.headers.get("authorization", "").removeprefix("Bearer ")
        if owner.key is not None and offered != owner.key:
            return self._error(401, f"Incorrect API key provided: {offered}", "invalid_api_key")
        if owner.models is not None and body["model"] not in owner.models:
            return self._error(404, f"The model `{body['model']}` does not exist", "model_not_found")
        form = body.get("response_format", {}).get("type", "")
        for name in owner.rejects:
            if name in body or name == form:
                return self._error(400, f"Unsupported parameter: '{name}' of response_format or request")
        user = body["messages"][-1]["content"]
        if len(body["messages"]) == 1:  # the client's greeting
            return self._complete('{"ready": true}', body)
        time.sleep(owner.delay_s)
        self._do(owner.meet(user), body, user)

    def _do(self, kind: str, body: dict, user: str) -> None:
        good = self._judgement(body, user)
        if kind == "429":
            return self._error(429, "Rate limit reached", "rate_limit", {"Retry-After": self.owner.retry_after})
        if kind == "500":
            return self._error(500, f"The server had an error {self.owner.echo}")
        if kind == "reject":
            return self._error(400, "This text violates the content policy", "content_policy_violation")
        if kind == "too_long":
            return self._error(400, "This model's maximum context length is 99 tokens, reduce max_tokens")
        if kind == "quota":
            return self._error(429, "You exceeded your current quota", "insufficient_quota")
        if kind == "no_balance":
            return self._error(402, "Insufficient Balance")
        if kind == "key_limit":
            return self._error(403, "Key limit exceeded")
        if kind == "timeout":
            self.owner.closed.wait(self.owner.slow_s)
            return self._complete(good, body)
        if kind in ("cut_body", "broken_body", "drip", "hang_up"):
            return self._broken(kind, good, body)
        if kind == "cut_content":
            return self._complete(good[: len(good) // 2], body, finish="length")
        if kind == "wrong_schema":
            return self._complete('{"reason": "fine", "score": "eleven"}', body)
        if kind == "prose":
            return self._complete(f"What a lovely story! I would give it full marks. {self.owner.echo}", body)
        if kind == "refusal":
            return self._complete(None, body, refusal="I cannot help with that.")
        if kind == "content_filter":
            return self._complete("", body, finish="content_filter")
        return self._complete(good, body)

    def _judgement(self, body: dict, user: str) -> str:
        """A well-formed reply: by the request's own schema, or by what the system message asks for."""
        texts = parts_of(user)
        if len(texts) == 3:
            return json.dumps({"reason": "compared", "winner": self.owner.winner(texts[1], texts[2])})
        system = body["messages"][0]["content"]
        names = re.findall(r"^- (\w+):", system, re.M)
        grade = int(round(max(1, min(10, self.owner.quality(texts[1], user)))))
        reply: dict = {"reason": f"graded {self.owner.echo}".strip()} | dict.fromkeys(names, grade)
        if "age_group" in system:
            reply["age_group"] = "6-7"
        return json.dumps(reply)

    def _payload(self, content: str | None, body: dict, finish: str = "stop", refusal: str | None = None) -> bytes:
        message = {"role": "assistant", "content": content, "refusal": refusal}
        reply = {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 1,
            "model": body["model"] + "-2026",
            "choices": [{"index": 0, "finish_reason": finish, "message": message}],
        }
        if self.owner.usage:
            reply["usage"] = {"prompt_tokens": 400, "completion_tokens": 40, "total_tokens": 440}
        return json.dumps(reply).encode()

    def _complete(self, content: str | None, body: dict, **kwargs: str) -> None:
        self._send(200, self._payload(content, body, **kwargs))

    def _broken(self, kind: str, good: str, body: dict) -> None:
        payload = self._payload(good, body)
        if kind == "broken_body":
            return self._send(200, payload[: len(payload) // 2])
        self.close_connection = True
        if kind == "hang_up":
            return None
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        if kind == "cut_body":
            return self._write(payload[:30])
        for at in range(len(payload)):  # a byte now and then: never silent, never finished in time
            if self.owner.closed.wait(2 * self.owner.slow_s / len(payload)) or not self._write(payload[at : at + 1]):
                break
        return None

    def _error(self, status: int, message: str, code: str = "", headers: dict | None = None) -> None:
        self._send(status, json.dumps({"error": {"message": message, "code": code}}).encode(), headers)

    def _send(self, status: int, payload: bytes, headers: dict | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(payload)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self._write(payload)

    def _write(self, payload: bytes) -> bool:
        """Whether the client is still there."""
        try:
            self.wfile.write(payload)
            self.wfile.flush()
        except OSError:
            self.close_connection = True
            return False
        return True
