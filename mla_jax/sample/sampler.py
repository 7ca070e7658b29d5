"""The sampler: prompts in, stories out, through a jitted prefill and a jitted decode loop over an explicit cache."""

import dataclasses
import os
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mla_jax.config import Config, SampleConfig
from mla_jax.data.tokenizer import Tokenizer
from mla_jax.model.serving import serving_variables
from mla_jax.model.transformer import Transformer
from mla_jax.runs import Run, load_run
from mla_jax.sample import loop, request, settings
from mla_jax.sample.loop import SamplerState, Vocabulary
from mla_jax.sample.methods import Method
from mla_jax.sample.request import Request
from mla_jax.sample.text import TextStream, stopped_at

_NOT_ASKED = ("prompts", "num_samples", "prefill_chunk")  # fields of config.sample that are no keyword of generate


@dataclasses.dataclass(frozen=True)
class Completion:
    """What was written after a prompt.

    text: without the prompt, without the separator, cut before a stop string.
    tokens: the tokens drawn, the separator or the end of a stop string included.
    logprobs: of each token under the model (temperature 1, nothing cut off, no penalty); None unless asked for.
    finish_reason: "eos" (the model ended the story), "stop" (a stop string) or "length" (max_new_tokens).
    """

    text: str
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...] | None
    finish_reason: str


def sample_settings(cfg: SampleConfig) -> dict[str, Any]:
    """The keywords of `Sampler.generate` that a config's `sample` section asks for."""
    return {field.name: getattr(cfg, field.name) for field in dataclasses.fields(cfg) if field.name not in _NOT_ASKED}


class Sampler:
    """Generates text from a model.

        sampler = Sampler.from_run("runs/mla_rope")
        stories = sampler.generate(["Once upon a time"], max_new_tokens=200, temperature=0.8, top_k=40, seed=0)

        for piece in sampler.stream("Once upon a time", top_p=0.95):
            print(piece, end="", flush=True)

        best = sampler.generate_with_details(["Tom had a red ball."], temperature=0, stop=["."], logprobs=True)[0]
        print(best.text, sum(best.logprobs), best.finish_reason)

    Settings of all three calls, as keywords:
      max_new_tokens: a completion ends at the model's end of story, or after so many tokens; by default after the
        run's `sample.max_new_tokens`, or as many as fit in `model.max_len` behind the row's prompt.
      temperature, top_k, top_p, min_p, repetition_penalty: `methods.Method`; by default top-k 40 at temperature 0.8.
      seed: row i draws with seed + i; or a list with one seed a row.
      stop: strings; a completion ends before the first of them.
      cache_dtype: of the KV cache: auto (that of the computation) | bfloat16 | float32 | int8 (latents only).

    A row's text depends on its prompt, its seed and the settings, not on the other rows of the call. An empty prompt
    starts a story from nothing; characters that the tokenizer does not know are spelled in bytes. Every call raises
    UserError, before anything is traced, when there is no prompt, when a prompt and its completion do not fit in
    `model.max_len`, or when a setting is of another type or out of range. Shapes are rounded up, so that calls of
    similar size share their compiled programs.
    """

    def __init__(self, model: Transformer, variables: Any, tokenizer: Tokenizer, config: Config):
        """variables: `Run.variables` or `TrainState.variables`. What decoding reads is made of them here, once: other
        weights need another Sampler."""
        self.model, self.tokenizer, self.config = model, tokenizer, config
        self.variables = serving_variables(model.cfg, variables, model.backend)
        self._vocabulary = Vocabulary(tokenizer.vocab_size, tokenizer.separator_id)

    @classmethod
    def from_run(cls, workdir: str | os.PathLike | Run, step: int | None = None) -> "Sampler":
        """The best checkpoint of a run folder (or the one of `step`). Raises UserError as `runs.load_run` does."""
        run = workdir if isinstance(workdir, Run) else load_run(workdir, step)
        return cls(run.model, run.variables, run.tokenizer, run.config)

    def generate(
        self,
        prompts: Sequence[str],
        max_new_tokens: int | None = None,
        temperature: float = 0.8,
        top_k: int = 40,
        seed: int | Sequence[int] = 0,
        **more: Any,
    ) -> list[str]:
        """One completion, without its prompt, for each prompt. More keywords: see `generate_with_details`."""
        settings = {"max_new_tokens": max_new_tokens, "temperature": temperature, "top_k": top_k, "seed": seed}
        return [each.text for each in self.generate_with_details(prompts, **settings, **more)]

    def generate_with_details(
        self,
        prompts: Sequence[str],
        max_new_tokens: int | None = None,
        temperature: float = 0.8,
        top_k: int = 40,
        seed: int | Sequence[int] = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        stop: Sequence[str] = (),
        cache_dtype: str = "auto",
        logprobs: bool = False,
    ) -> list[Completion]:
        """As `generate`, with each completion's tokens, the reason of its end and, if asked, log-probabilities."""
        method = Method(temperature, top_k, top_p, min_p, repetition_penalty)
        logprobs = settings.flag("logprobs", logprobs)
        asked = request.build(self.tokenizer, self.config, prompts, method, max_new_tokens, seed, stop, cache_dtype)
        state = self._start(asked, logprobs)
        if asked.stop:
            state = self._decode_to_stops(asked, state)
        else:
            state = loop.decode_until_done(self.model, self.variables, state, method, self._vocabulary)
        out, count = np.asarray(state.out), np.asarray(state.count)
        scores = None if state.logprobs is None else np.asarray(state.logprobs)
        return [
            self._completion(out[row, : count[row]], None if scores is None else scores[row], asked.stop)
            for row in range(asked.rows)
        ]

    def stream(
        self,
        prompt: str,
        max_new_tokens: int | None = None,
        temperature: float = 0.8,
        top_k: int = 40,
        seed: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        stop: Sequence[str] = (),
        cache_dtype: str = "auto",
    ) -> Iterator[str]:
        """The text that `generate` gives for one prompt, in pieces, as the tokens are drawn.

        A piece holds whole characters; the beginning of a stop string is held back until it is known not to be one.
        Refusals come from the call itself, not from the first piece.
        """
        method = Method(temperature, top_k, top_p, min_p, repetition_penalty)
        asked = request.build(self.tokenizer, self.config, [prompt], method, max_new_tokens, seed, stop, cache_dtype)
        return self._pieces(asked)

    def _pieces(self, asked: Request) -> Iterator[str]:
        state, text = self._start(asked, False), TextStream(self.tokenizer, asked.stop)
        while True:
            token, done = int(state.last[0]), bool(state.done[0])
            if token != self.tokenizer.separator_id:
                piece = text.push(token)
                if piece:
                    yield piece
            if done or text.stopped:
                break
            state = loop.decode_loop(self.model, self.variables, state, 1, asked.method, self._vocabulary)
        rest = text.finish()
        if rest:
            yield rest

    def _start(self, asked: Request, logprobs: bool) -> SamplerState:
        """Read the prompts, draw the first tokens."""
        dtype = self.model.backend.dtype if asked.cache_dtype == "auto" else asked.cache_dtype
        tokens, lengths = jnp.asarray(asked.tokens), jnp.asarray(asked.lengths)
        (_, end), *others = asked.pieces
        logits, store = loop.prefill(self.model, asked.cache_length, dtype, self.variables, tokens[:, :end], lengths)
        for start, end in others:
            piece = tokens[:, start:end]
            logits, store = loop.extend(self.model, self.variables, piece, jnp.int32(start), lengths, logits, store)
        keys = jax.vmap(jax.random.key)(jnp.asarray(asked.seeds))
        limit = jnp.asarray(asked.limit)
        return loop.begin(
            logits, store, tokens, lengths, keys, limit, asked.columns, asked.method, self._vocabulary, logprobs
        )

    def _decode_to_stops(self, asked: Request, state: SamplerState) -> SamplerState:
        """Decode until every row is done, looking for stop strings every CHECK_EVERY steps."""
        while True:
            out, count, done = map(np.asarray, (state.out, state.count, state.done))
            for row in np.flatnonzero(~done[: asked.rows]):
                if stopped_at(self.tokenizer, out[row, : count[row]].tolist(), asked.stop):
                    done = np.where(np.arange(len(done)) == row, True, done)
            if done.all():
                return state
            state = state.replace(done=jnp.asarray(done))
            state = loop.decode_loop(
                self.model, self.variables, state, loop.CHECK_EVERY, asked.method, self._vocabulary
            )

    def _completion(self, tokens: np.ndarray, scores: np.ndarray | None, stop: tuple[str, ...]) -> Completion:
        ended = len(tokens) > 0 and tokens[-1] == self.tokenizer.separator_id
        drawn = tokens.tolist()
        words = drawn[:-1] if ended else drawn
        end = stopped_at(self.tokenizer, words, stop)
        text, reason = self.tokenizer.decode(words), "eos" if ended else "length"
        if end is not None:
            drawn, text, reason = drawn[: end[0]], end[1], "stop"
        logprobs = None if scores is None else tuple(scores[: len(drawn)].tolist())
        return Completion(text, tuple(drawn), logprobs, reason)
