"""Judges stories from a file as if a model had written them: to try out a judge before there is a model.

    python launch/judge_texts.py --stories valid.txt --base_url http://127.0.0.1:8642/v1 \
        --judge_model smollm2 --out runs/judge_try

The file holds stories between lines `<|endoftext|>`. Two stand-ins for models are made of it: `whole`
completes a beginning as the story does, `cut` stops after 30 words, in the middle of things.
"""

import argparse
import sys
from pathlib import Path

from mla_jax.errors import UserError
from mla_jax.judge import sentences
from mla_jax.judge.evaluate import run
from mla_jax.judge.settings import JudgeSettings
from mla_jax.judge.study_folder import RunToJudge

CUT_WORDS = 30


def read_stories(path: Path) -> list[str]:
    """Stories of a text file in the layout of TinyStories."""
    if not path.is_file():
        raise UserError(f"--stories {path} is no file: give a text file with lines <|endoftext|> between stories.")
    parts = path.read_text(encoding="utf-8", errors="replace").split("<|endoftext|>")
    return [part.strip() for part in parts if part.strip()]


def stand_ins(stories: list[str]) -> list[RunToJudge]:
    """`whole` and `cut`: generators that look a beginning up in the file."""
    rest = {}
    for story in stories:
        first = sentences.first_sentence(story)
        rest.setdefault(first, story[len(first) :].strip())

    def whole(prompts: list[str], **_: object) -> list[str]:
        return [rest[prompt] for prompt in prompts]

    def cut(prompts: list[str], **_: object) -> list[str]:
        return [" ".join(rest[prompt].split()[:CUT_WORDS]) for prompt in prompts]

    return [RunToJudge("whole", whole, stories), RunToJudge("cut", cut, stories)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stories", type=Path, required=True)
    parser.add_argument("--base_url", required=True)
    parser.add_argument("--judge_model", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rubric", default="paper_a")
    parser.add_argument("--num_prompts", type=int, default=40)
    parser.add_argument("--num_controls", type=int, default=40)
    parser.add_argument("--pairwise", action="store_true")
    parser.add_argument("--concurrency", type=int, default=2)
    parser.add_argument("--budget_usd", type=float, default=1.0)
    parser.add_argument("--price_in", type=float, default=0.0)
    parser.add_argument("--price_out", type=float, default=0.0)
    parser.add_argument("--cache_dir", default="")
    parser.add_argument("--yes", action="store_true")
    flags = parser.parse_args()
    settings = JudgeSettings(
        base_url=flags.base_url,
        model=flags.judge_model,
        rubric=flags.rubric,
        num_prompts=flags.num_prompts,
        builtin_prompts=0,  # a file has no completions of our own openings
        stories_per_prompt=1,
        max_new_tokens=300,
        temperature=0.8,
        top_k=0,
        seed=0,
        num_controls=flags.num_controls,
        repeats=2,
        repeat_share=0.1,
        pairwise=flags.pairwise,
        judge_temperature=0.7,
        max_reply_tokens=300,
        concurrency=flags.concurrency,
        timeout_s=120.0,
        max_retries=5,
        give_up_after=20,
        budget_usd=flags.budget_usd,
        price_in=flags.price_in,
        price_out=flags.price_out,
        yes=flags.yes,
        cache_dir=flags.cache_dir,
        resamples=2000,
    )
    try:
        report = run(settings, stand_ins(read_stories(flags.stories)), flags.out, command=" ".join(sys.argv))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    print(report)


if __name__ == "__main__":
    main()
