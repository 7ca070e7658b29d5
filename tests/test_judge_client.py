import asyncio
import http.server
import socket
import threading
import time

import pytest
from fault_server import PERMANENT, FaultServer
from judge_helpers import ENVIRONMENT, KEY, settings

from mla_jax.errors import UserError
from mla_jax.judge import waiting
from mla_jax.judge.client import JudgeClient, RejectedError, TransientError, redact, resolve_key
from mla_jax.judge.rubric import RUBRICS, messages, parse_reply

RUBRIC = RUBRICS["paper_a"]


@pytest.fixture(autouse=True)
def quick_backoff(monkeypatch):
    """Short pauses; what a server asks for is honoured all the same."""
    monkeypatch.setattr("mla_jax.judge.client.backoff", lambda attempt: 0.01)


def ask(server, n=1, key=KEY, check=False, **changes):
    """Answers of `n` different judgements, made side by side, and the client."""

    async def main():
        client = JudgeClient(settings(server.url, **changes), key)
        try:
            if check:
                await client.check()
            asked = [messages(RUBRIC, "Once.", f"Tom ran home {i}.") for i in range(n)]
            return [*await asyncio.gather(*(client.ask(a, RUBRIC.schema(), 7) for a in asked))], client
        finally:
            await client.aclose()

    return asyncio.run(main())


def test_a_good_answer_and_what_is_sent():
    with FaultServer(key=KEY, keep=True) as server:
        (answer,), _ = ask(server)
    assert parse_reply(answer.text, RUBRIC)["scores"].keys() == set(RUBRIC.names)
    assert (answer.tokens_in, answer.tokens_out, answer.counted, answer.attempts) == (400, 40, True, 1)
    assert answer.served_model == "judge-1-2026" and answer.finish == "stop"
    body = server.bodies[0]
    assert body["model"] == "judge-1" and body["seed"] == 7 and body["max_tokens"] == 300
    assert body["response_format"]["json_schema"]["schema"] == RUBRIC.schema()


@pytest.mark.parametrize("kind", ["429", "500", "timeout", "cut_body", "broken_body", "drip", "hang_up"])
def test_passing_faults_are_tried_again(kind):
    with FaultServer(fault_rate=1, kinds=[kind], slow_s=30) as server:
        started = time.monotonic()
        (answer,), _ = ask(server, timeout_s=1.0)
    assert answer.attempts == 2 and parse_reply(answer.text, RUBRIC)
    assert server.requests == {kind: 1, "ok": 1}
    assert time.monotonic() - started < 20  # a dripping reply is cut off too, though it is never silent


@pytest.mark.parametrize(
    ("kind", "named"),
    [
        ("429", "rate_limit"),
        ("500", "server"),
        ("timeout", "timeout"),
        ("drip", "timeout"),
        ("cut_body", "connection"),
        ("hang_up", "connection"),
        ("broken_body", "broken_body"),
    ],
)
def test_faults_that_stay_end_as_an_error_of_their_kind(kind, named):
    with (
        FaultServer(always=kind, slow_s=30, retry_after="0.01") as server,
        pytest.raises(TransientError) as error,
    ):
        ask(server, timeout_s=1.0, max_retries=2)  # long enough for a busy machine to reach the server
    assert error.value.kind == named and error.value.attempts == 3 and server.requests[kind] == 3


@pytest.mark.parametrize("kind", PERMANENT)
def test_a_reply_is_never_asked_for_twice(kind):
    with FaultServer(always=kind) as server:
        (answer,), _ = ask(server)
    assert answer.attempts == 1 and server.requests == {kind: 1}
    assert bool(answer.refusal) == (kind == "refusal")
    assert answer.finish == {"cut_content": "length", "content_filter": "content_filter"}.get(kind, "stop")


def test_retry_after_holds_back_every_request():
    with FaultServer(fault_rate=0.3, kinds=["429"], retry_after="0.6") as server:
        ask(server, n=20)
    times = dict.fromkeys(("429", "ok"))
    refused = [t for what, t in server.times if what == "429"]
    assert len(refused) >= 3
    times["429"] = min(refused)
    # after the first wave, which was on its way already, nothing comes before the time the server named
    later = [t - times["429"] for _, t in server.times if t - times["429"] > 0.3]
    assert len(later) == len(refused) and min(later) >= 0.6


def test_a_wait_of_hours_is_an_error_not_a_nap():
    with FaultServer(always="429", retry_after="7200") as server, pytest.raises(TransientError):
        ask(server)
    assert server.requests["429"] == 1


@pytest.mark.parametrize(
    ("value", "seconds"),
    [({"retry-after": "3"}, 3), ({"retry-after": "0.5"}, 0.5), ({"retry-after-ms": "250"}, 0.25)]
    + [({"retry-after": x}, None) for x in ("", "soon", "nan", "inf", "-1")]
    + [({}, None)],
)
def test_retry_after_forms(value, seconds):
    assert waiting.retry_after(value) == seconds


def test_retry_after_as_a_date():
    from email.utils import formatdate

    assert 28 <= waiting.retry_after({"retry-after": formatdate(time.time() + 30, usegmt=True)}) <= 31


def test_backoff_grows_has_jitter_and_an_end():
    assert len({waiting.backoff(3) for _ in range(20)}) > 10
    for attempt, most in ((1, 0.5), (3, 2.0), (50, 60.0)):
        assert all(most / 2 <= waiting.backoff(attempt) <= most for _ in range(50))


@pytest.mark.parametrize(
    ("rejects", "gone", "note"),
    [
        (["json_schema"], {"json_schema"}, "json_schema"),
        (["json_schema", "json_object"], {"json_schema", "json_object"}, "json_object"),
        (["max_tokens"], {"max_tokens"}, "max_tokens"),
        (["temperature", "seed"], {"temperature", "seed"}, "temperature"),
    ],
)
def test_what_a_server_does_not_take_is_left_out_and_said(rejects, gone, note):
    with FaultServer(rejects=rejects, keep=True) as server:
        answers, client = ask(server, n=6, check=True)
    last = server.bodies[-1]
    assert all(a.attempts == 1 for a in answers) and any(note in n for n in client.notes)
    assert not gone & (set(last) | {last.get("response_format", {}).get("type")})
    if "max_tokens" in gone:
        assert last["max_completion_tokens"] == 300
    # found out by the greeting, kept for all judgements
    assert len(server.bodies) == 1 + len(gone) + 6


def test_a_server_without_token_counts():
    with FaultServer(usage=False) as server:
        (answer,), _ = ask(server)
    assert not answer.counted and 200 < answer.tokens_in < 400 and 5 < answer.tokens_out < 60


def test_a_text_that_is_rejected_is_no_reason_to_stop():
    with FaultServer(always="reject") as server, pytest.raises(RejectedError, match="content policy"):
        ask(server)
    assert server.requests["reject"] == 1


@pytest.mark.parametrize(
    ("server", "key", "said"),
    [
        (dict(key="sk-other"), KEY, r"refuses the key in OPENAI_API_KEY \(status 401"),
        (dict(models=["gpt-x"]), KEY, "judge.model is 'judge-1', which .* does not serve"),
    ],
)
@pytest.mark.parametrize("check", [True, False])
def test_what_no_retry_can_mend_stops_at_once(server, key, said, check):
    with FaultServer(**server) as running, pytest.raises(UserError, match=said) as error:
        ask(running, key=key, check=check)
    assert KEY not in str(error.value) and "\n" not in str(error.value)


def test_a_spent_quota_stops_at_once():
    with FaultServer(always="quota") as server, pytest.raises(UserError, match="quota is spent"):
        ask(server)
    assert server.requests["quota"] == 1


@pytest.mark.parametrize("kind", ["no_balance", "key_limit"])
def test_an_account_that_is_refused_stops_at_once(kind):
    """As a rejected row it would never be asked again once the account is in order."""
    with FaultServer(always=kind) as server, pytest.raises(UserError, match="refuses this account"):
        ask(server)
    assert server.requests[kind] == 1


def test_an_unreachable_host_is_said_soon():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    class Nowhere:
        url = f"http://127.0.0.1:{port}/v1"

    with pytest.raises(UserError, match="gives no answer .*check judge.base_url"):
        ask(Nowhere, check=True)


@pytest.mark.parametrize("status", [301, 302, 307, 308])
@pytest.mark.parametrize("check", [True, False])
def test_a_redirection_is_not_followed(status, check):
    """Stories and key go to the host that the user named, and to no other, whatever that host says."""
    with FaultServer() as elsewhere:
        target = elsewhere.url

        class Redirects(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                self.rfile.read(int(self.headers["Content-Length"]))
                self.send_response(status)
                self.send_header("Location", f"{target}/chat/completions")
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_):
                pass

        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Redirects) as server:
            threading.Thread(target=server.serve_forever).start()

            class Named:
                url = f"http://127.0.0.1:{server.server_port}/v1"

            try:
                with pytest.raises(UserError, match=rf"redirects .*to {target}.*give .*judge.base_url"):
                    ask(Named, check=check)
            finally:
                server.shutdown()
        assert not elsewhere.requests


def test_the_key():
    local, remote = settings("http://localhost:1/v1"), settings("https://judge.example.org/v1")
    assert resolve_key(remote, ENVIRONMENT) == resolve_key(local, ENVIRONMENT) == KEY
    assert resolve_key(local, {}) == "none"
    with pytest.raises(UserError, match="OPENAI_API_KEY is not set"):
        resolve_key(remote, {})
    for bad in ("sk-a b", "sk-ключ", "sk-a\nb"):
        with pytest.raises(UserError, match="blanks, line breaks or non-ASCII") as error:
            resolve_key(remote, {"OPENAI_API_KEY": bad})
        assert bad not in str(error.value)


def test_the_key_is_cut_out_and_nothing_else():
    assert redact("none of it", resolve_key(settings(), {})) == "none of it"
    assert redact("abc, but not abcd: 'abc'", "abc") == "[key], but not abcd: '[key]'"
    assert redact(f"x{KEY}y", KEY) == "x[key]y" and redact("a", "") == "a"


def test_a_story_too_long_for_the_judge_is_its_own_failure_not_the_servers_form():
    with FaultServer(always="too_long") as server, pytest.raises(RejectedError, match="context length"):
        ask(server)
    assert server.requests == {"too_long": 1}


def test_an_address_with_a_password_is_not_shown_whole():
    assert settings("https://me:secret@host.org:444/v1?token=x").public_url() == "https://host.org:444/v1"
    assert settings("http://[::1]:8/v1").public_url() == "http://[::1]:8/v1"
