"""The judging itself: many requests side by side, one row on disk for each, a budget, and a clean stop."""

import asyncio
import concurrent.futures
import dataclasses
import math
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

from mla_jax.errors import UserError
from mla_jax.judge import tasks as T
from mla_jax.judge.client import Answer, JudgeClient, RejectedError, TransientError
from mla_jax.judge.rubric import get_rubric
from mla_jax.judge.settings import JudgeSettings
from mla_jax.judge.store import JudgementFile, ReplyCache

_DRAIN_S = 10.0


@dataclasses.dataclass
class Estimate:
    """What is left to do and what it will cost, about."""

    judgements: int
    cached: int
    tokens_in: int
    tokens_out: int
    usd: float

    def sentence(self, s: JudgeSettings) -> str:
        cost = f"about ${self.usd:.2f} of ${s.budget_usd:g} (judge.budget_usd)"
        if not s.price_in and not s.price_out:
            cost = "$0 as far as we know (judge.price_in and price_out are 0, so no budget can hold)"
        return (
            f"{self.judgements} judgements by {s.model} at {s.public_url()}, {self.cached} of them from the "
            f"cache: about {self.tokens_in:,} tokens in and {self.tokens_out:,} out, {cost}."
        )


def estimate(stories: list[dict[str, Any]], todo: list[T.Task], s: JudgeSettings, cache: ReplyCache) -> Estimate:
    rubric = get_rubric(s.rubric)
    result = Estimate(len(todo), 0, 0, 0, 0.0)
    for task in todo:
        asked = T.task_messages(task, stories, rubric)
        if _known(cache, T.cache_key(task, asked, s, rubric)) is not None:
            result.cached += 1
            continue
        result.tokens_in += T.estimate(asked, rubric)
        result.tokens_out += min(T.EXPECTED_REPLY_TOKENS, s.max_reply_tokens)
    result.usd = T.price(result.tokens_in, result.tokens_out, s)
    return result


def _known(cache: ReplyCache, key: str) -> Answer | None:
    """The answer that was paid for before; None also for what is no whole answer: a damaged cache costs a request."""
    reply = cache.get(key)
    return Answer(**reply) if reply and set(reply) == {f.name for f in dataclasses.fields(Answer)} else None


class _Run:
    """State shared by the workers of one event loop."""

    def __init__(
        self,
        stories: list[dict[str, Any]],
        s: JudgeSettings,
        client: JudgeClient,
        file: JudgementFile,
        cache: ReplyCache,
        on_row: Callable[[dict[str, Any]], None],
    ):
        self.stories, self.s, self.client, self.file, self.cache = stories, s, client, file, cache
        self.on_row = on_row
        self.rubric = get_rubric(s.rubric)
        self.reserved_usd = 0.0
        self.dearer = 1.0  # the most that a prompt took of our estimate so far: half-learned words are twice as dear
        self.failed_in_a_row = 0
        self.stop: str | UserError | None = None

    async def work(self, todo: Iterator[T.Task]) -> None:
        for task in todo:
            asked = T.task_messages(task, self.stories, self.rubric)
            key = T.cache_key(task, asked, self.s, self.rubric)
            row = T.base_row(task, self.stories, self.s, self.rubric)
            known = _known(self.cache, key)
            if known is not None:
                self._write(T.answered_row(row, known, True, self.s, self.rubric))
                await asyncio.sleep(0)
            elif not self.stop:  # once the budget is spent, what is in the cache is still done: it is free
                await self._ask(task, asked, key, row)
            if isinstance(self.stop, UserError):
                return

    async def _ask(self, task: T.Task, asked: list, key: str, row: dict[str, Any]) -> None:
        # an upper bound, so that requests in flight cannot carry the study over its budget
        guess = T.estimate(asked, self.rubric)
        worst = T.price(math.ceil(guess * self.dearer), self.s.max_reply_tokens, self.s)
        if self.file.spent_usd + self.reserved_usd + worst > self.s.budget_usd:
            self.stop = self.stop or "budget"
            return
        self.reserved_usd += worst
        try:
            schema = self.rubric.schema(row["kind"] == "pair")
            answer = await self.client.ask(asked, schema, self.s.seed + task.repeat)
        except UserError as error:
            self.stop = error
            return
        except RejectedError as error:
            row = T.failed_row(row, "rejected", "rejected", str(error), error.attempts)
        except TransientError as error:
            row = T.failed_row(row, "error", error.kind, str(error), error.attempts)
            self.failed_in_a_row += 1
            if self.failed_in_a_row >= self.s.give_up_after and not self.stop:
                self.stop = UserError(
                    f"{self.failed_in_a_row} judgements in a row got no answer from {self.s.public_url()} "
                    f"(the last: {error}): every judgement so far is kept, and the same command continues "
                    "once it answers again."
                )
        else:
            self.failed_in_a_row = 0
            self.dearer = max(self.dearer, answer.tokens_in / guess)
            self.cache.put(key, dataclasses.asdict(answer))
            row = T.answered_row(row, answer, False, self.s, self.rubric)
        finally:
            self.reserved_usd -= worst
        self._write(row)

    def _write(self, row: dict[str, Any]) -> None:
        self.file.append(row)
        self.on_row(row)


async def _judge(run: _Run, todo: list[T.Task]) -> None:
    iterator = iter(todo)
    workers = {asyncio.create_task(run.work(iterator)) for _ in range(min(run.s.concurrency, len(todo)))}
    pending = workers
    while pending:
        # after a fatal answer the others may finish what they have paid for, but not go on retrying for
        # minutes
        timeout = _DRAIN_S if isinstance(run.stop, UserError) else None
        done, pending = await asyncio.wait(pending, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        for worker in done:
            worker.result()
        if timeout and not done:
            for worker in pending:
                worker.cancel()
            await asyncio.gather(*pending, return_exceptions=True)
            return


def judge(
    stories: list[dict[str, Any]],
    todo: list[T.Task],
    s: JudgeSettings,
    client: JudgeClient,
    file: JudgementFile,
    cache: ReplyCache,
    on_row: Callable[[dict[str, Any]], None] = lambda row: None,
) -> str:
    """Makes the judgements `todo` and appends a row for each to `file` as soon as it is there.

    Returns:
      "done", or "budget" when a judgement might have cost more than `budget_usd` allows: from there on only what
      is in the cache is done.

    Raises:
      UserError: wrong key, unknown model, spent quota, or `give_up_after` judgements in a row without an
        answer; all rows so far are on disk.
    """
    run = _Run(stories, s, client, file, cache, on_row)

    async def main() -> None:
        try:
            await _judge(run, todo)
        finally:
            await client.aclose()

    run_async(main())
    if isinstance(run.stop, UserError):
        raise run.stop
    return run.stop or "done"


def run_async(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """`asyncio.run`, also from inside a notebook, whose own loop is running already."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(coroutine)
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, coroutine).result()
