"""Asking an OpenAI-compatible server for judgements: one request at a time here, many side by side in the
caller.

`openai`'s own retries are switched off (`max_retries=0`), for three reasons seen with openai 3.54: its
time-out starts anew with every byte, so a server that drips a reply holds a request for ever; a reply of
status 200 with a broken body raises JSONDecodeError and is not tried again; and a spent quota (429
`insufficient_quota`) would be tried again.
"""

import asyncio
import dataclasses
import re
import time
from typing import Any

import openai

from mla_jax.errors import UserError
from mla_jax.judge.settings import JudgeSettings
from mla_jax.judge.waiting import MAX_ASKED_S, Gate, backoff, retry_after

NO_KEY = "none"  # sent to a server that wants no key: the client must send something
_RETRY_STATUS = frozenset({408, 409, 425, 429})
_SCHEMA_FORMS = ("json_schema", "json_object", "none")


class TransientError(Exception):
    """No answer after all retries. `kind`: timeout, connection, rate_limit, server or broken_body."""

    def __init__(self, kind: str, message: str, attempts: int):
        super().__init__(message)
        self.kind, self.attempts = kind, attempts


class RejectedError(Exception):
    """The server refuses this request as such (status 4xx, e.g. a content filter): asking again is no use."""

    def __init__(self, message: str, attempts: int):
        super().__init__(message)
        self.attempts = attempts


@dataclasses.dataclass(frozen=True)
class Answer:
    """What came back. `finish` is the server's finish_reason ("" if it gave none); tokens as the server
    counted them, estimated from the text when it did not (`counted` False)."""

    text: str
    refusal: str
    finish: str
    served_model: str
    tokens_in: int
    tokens_out: int
    counted: bool
    attempts: int
    seconds: float


def redact(text: str, key: str) -> str:
    """`text` without the key: servers echo it in error messages, and those are written to disk."""
    if key in ("", NO_KEY):
        return text
    if len(key) < 8:  # hardly a secret, and perhaps a word: only where it stands alone
        return re.sub(rf"(?<!\w){re.escape(key)}(?!\w)", "[key]", text)
    return text.replace(key, "[key]")


def estimate_tokens(text: str) -> int:
    """Roughly the tokens of English text: 4 bytes each (the rule of thumb of OpenAI's tokenizers), plus
    one.
    """
    return len(text.encode()) // 4 + 1


def resolve_key(settings: JudgeSettings, environment: dict[str, str]) -> str:
    """The API key from `environment`; a server on this machine may go without.

    Raises:
      UserError: no key for a remote server, or one that no HTTP header can carry.
    """
    key = environment.get("OPENAI_API_KEY", "").strip()
    if not key:
        if settings.is_local():
            return NO_KEY
        raise UserError(
            f"OPENAI_API_KEY is not set, and {settings.public_url()} wants a key: export it in the shell "
            "(it is neither logged nor written), or set it to 'none' for a server that needs none."
        )
    if not key.isascii() or not key.isprintable() or " " in key:
        raise UserError("OPENAI_API_KEY holds blanks, line breaks or non-ASCII characters: copy the key again.")
    return key


class JudgeClient:
    """One connection to the judge. Bound to the event loop it is first used in; close with `aclose`.

    `like`: an earlier client, whose findings about what the server does not take are kept.
    """

    def __init__(self, settings: JudgeSettings, key: str, like: "JudgeClient | None" = None):
        self._s = settings
        self._key = key
        # Stories and key go to the host that the user named: openai would follow the server's word to any other.
        http = openai.DefaultAsyncHttpxClient(follow_redirects=False)
        self._client = openai.AsyncOpenAI(api_key=key, base_url=settings.url(), max_retries=0, http_client=http)
        self._gate = Gate()
        self._form = like._form if like else 0  # index into _SCHEMA_FORMS
        self._dropped: set[str] = set(like._dropped) if like else set()  # optional parameters this server does not take
        self.notes: list[str] = list(like.notes) if like else []  # what was given up for this server, in words

    async def aclose(self) -> None:
        await self._client.close()

    async def check(self) -> None:
        """One tiny request, which tells a wrong address, key or model before anything is sampled or spent,
        and finds out what the server does not take.

        Raises:
          UserError: unreachable host, wrong key, unknown model, spent quota, or no answer.
        """
        hello = [{"role": "user", "content": 'Reply with the JSON object {"ready": true}.'}]
        schema = {"type": "object", "properties": {"ready": {"type": "boolean"}}, "required": ["ready"]}
        schema["additionalProperties"] = False
        try:
            # a server may have to load its model first
            await self.ask(hello, schema, 0, retries=min(2, self._s.max_retries), timeout_s=max(60, self._s.timeout_s))
        except (TransientError, RejectedError) as error:
            raise UserError(
                f"the judge's server {self._s.public_url()} gives no answer ({error}): check judge.base_url "
                "and that the server is up."
            ) from None

    async def ask(
        self,
        messages: list[dict[str, str]],
        schema: dict[str, Any],
        seed: int,
        retries: int | None = None,
        timeout_s: float | None = None,
    ) -> Answer:
        """One judgement, tried up to `retries` times more (default: `max_retries`).

        Raises:
          TransientError, RejectedError: this judgement failed; others may do better.
          UserError: no judgement can succeed (wrong key, unknown model, spent quota).
        """
        retries = self._s.max_retries if retries is None else retries
        timeout_s = timeout_s or self._s.timeout_s
        timeout = openai.Timeout(timeout_s, connect=min(5.0, timeout_s))
        attempt = 0
        while True:
            await self._gate.wait()
            attempt += 1
            started = time.monotonic()
            used = (self._form, frozenset(self._dropped))
            wait = None
            try:
                async with asyncio.timeout(timeout_s):
                    request = self._request(messages, schema, seed)
                    reply = await self._client.chat.completions.create(**request, timeout=timeout)
                return self._answer(reply, messages, attempt, time.monotonic() - started)
            except openai.APIStatusError as error:
                if self._give_way(error, used):
                    attempt -= 1  # not a fault: the same request in a form that this server knows
                    continue
                kind = self._judge_status(error, attempt)
                wait = retry_after(error.response.headers)
                message = f"status {error.status_code}: {_server_message(error)}"
            except (TimeoutError, openai.APITimeoutError):
                kind, message = "timeout", f"no whole reply within {timeout_s:g} s"
            except openai.APIConnectionError as error:
                kind, message = "connection", str(error.__cause__ or error)
            except (ValueError, TypeError, AttributeError, LookupError, RecursionError, openai.APIError) as error:
                # JSONDecodeError, or a body of another shape: openai builds its objects without checking them
                kind, message = "broken_body", f"the reply is no chat completion ({error})"
            if attempt > retries or (wait or 0) > MAX_ASKED_S:
                raise TransientError(kind, redact(message, self._key), attempt)
            if wait is None:
                await asyncio.sleep(backoff(attempt))
            else:
                self._gate.close_for(wait)

    def _request(self, messages: list[dict[str, str]], schema: dict[str, Any], seed: int) -> dict[str, Any]:
        request: dict[str, Any] = {
            "model": self._s.model,
            "messages": messages,
            "temperature": self._s.judge_temperature,
            "seed": seed,
            "max_tokens": self._s.max_reply_tokens,
        }
        for name in self._dropped & {"temperature", "seed"}:
            del request[name]
        if "max_tokens" in self._dropped:
            request["max_completion_tokens"] = request.pop("max_tokens")
        form = _SCHEMA_FORMS[self._form]
        if form == "json_schema":
            request["response_format"] = {
                "type": "json_schema",
                "json_schema": {"name": "judgement", "strict": True, "schema": schema},
            }
        elif form == "json_object":
            request["response_format"] = {"type": "json_object"}
        return request

    def _give_way(self, error: openai.APIStatusError, used: tuple[int, frozenset[str]]) -> bool:
        """Whether the request can be said more simply; a server names what it does not take in its 400."""
        if error.status_code not in (400, 404, 415, 422, 501):
            return False
        if used != (self._form, frozenset(self._dropped)):
            return True  # another request has found the simpler form meanwhile
        said = _server_message(error).lower()
        unknown = any(w in said for w in ("support", "unrecognized", "unknown", "unexpected", "extra", "permitted"))
        for name in ("max_tokens", "temperature", "seed"):
            if unknown and name in said and name not in self._dropped:
                self._dropped.add(name)
                self.notes.append(f"the server does not take {name!r}: asked without it")
                return True
        about_schema = any(w in said for w in ("response_format", "json_schema", "schema", "json_object", "grammar"))
        if about_schema and self._form < len(_SCHEMA_FORMS) - 1:
            self.notes.append(f"the server does not take {_SCHEMA_FORMS[self._form]} replies: asked more simply")
            self._form += 1
            return True
        return False

    def _judge_status(self, error: openai.APIStatusError, attempt: int) -> str:
        """The kind of a status that is worth another try; raises for all others."""
        status, said, where = (
            error.status_code,
            redact(_server_message(error), self._key),
            self._s.public_url(),
        )
        code, lower = error.code or "", said.lower()
        if 300 <= status < 400:
            target = redact(error.response.headers.get("location", "nowhere"), self._key)[:200]
            raise UserError(
                f"{where} redirects requests (status {status}) to {target}: they are not sent there; give the address "
                "that answers as judge.base_url if you trust it."
            ) from None
        if status == 401:
            raise UserError(
                f"{where} refuses the key in OPENAI_API_KEY (status 401: {said}): set a valid one; every "
                "judgement so far is kept."
            ) from None
        missing = "model" in lower and any(w in lower for w in ("not found", "not exist", "unknown", "no such"))
        if status == 404 or code == "model_not_found" or (status in (400, 422) and missing):
            raise UserError(
                f"judge.model is {self._s.model!r}, which {where} does not serve (status {status}: {said}): "
                f"{where}/models lists the names it knows; the address itself usually ends in /v1."
            ) from None
        if status == 429 and "insufficient_quota" in (code, str(error.type or "")):
            raise UserError(
                f"{where} says that the account's quota is spent ({said}): top it up and run again; every "
                "judgement so far is kept."
            ) from None
        if status in (402, 403) or any(word in lower for word in ("credit balance", "billing", "api key")):
            raise UserError(  # every further request would be refused too: rows of it would be lost for good
                f"{where} refuses this account (status {status}: {said}): settle that and run again; every "
                "judgement so far is kept."
            ) from None
        if status in _RETRY_STATUS or status >= 500:
            return "rate_limit" if status == 429 else "server"
        raise RejectedError(f"status {status}: {said}", attempt) from None

    def _answer(self, reply: Any, messages: list[dict[str, str]], attempt: int, seconds: float) -> Answer:
        choices = getattr(reply, "choices", None)
        if not choices or getattr(choices[0], "message", None) is None:
            error = getattr(reply, "error", None)
            raise ValueError(f"error {error}" if error else "no choices in it")
        message = choices[0].message
        text = str(message.content or "")
        usage = reply.usage
        spent = [getattr(usage, name, None) for name in ("prompt_tokens", "completion_tokens")]
        counted = all(type(number) is int for number in spent) and spent[0] > 0
        return Answer(
            text=redact(str(text), self._key),
            refusal=redact(str(getattr(message, "refusal", None) or ""), self._key),
            finish=redact(str(choices[0].finish_reason or ""), self._key),
            served_model=redact(str(reply.model or ""), self._key),
            tokens_in=spent[0] if counted else sum(estimate_tokens(m["content"]) for m in messages),
            tokens_out=spent[1] if counted else estimate_tokens(text),
            counted=counted,
            attempts=attempt,
            seconds=seconds,
        )


def _server_message(error: openai.APIStatusError) -> str:
    """The server's own words, one line of at most 300 characters."""
    body = error.body
    message = body.get("message") if isinstance(body, dict) else None
    text = message if isinstance(message, str) else str(body if body is not None else error.message)
    return " ".join(text.split())[:300]
