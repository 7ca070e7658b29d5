"""What the world is like, measured: `python -m mla_jax.world.report --stories 100000 > world.md`.

Prints Markdown: distinct stories, types and tokens, skeletons in use, n-gram entropies, the 5-gram's answers
to the fact questions, what the checker says of the corpus, and ten stories.
"""

import argparse
import time
from collections import Counter
from collections.abc import Iterator
from hashlib import blake2b

from ..judge.checker import check_many, summarize
from ..markdown import table
from .events import EVENTS, GOALS
from .generate import WORLD_VERSION, stories
from .grammar import skeletons
from .ngram import MAX_ORDER, NGram
from .parse import parse
from .questions import probes, score
from .sentences import split, tokenize


def corpus_figures(count: int, seed: int) -> dict[str, float]:
    """Counts over `count` training stories, in one pass: no story is kept."""
    seen: set[bytes] = set()
    types: set[str] = set()
    lengths: Counter[int] = Counter()
    plots: Counter[str] = Counter()
    size = 0
    seconds = 0.0
    rows = stories(count, seed)
    while True:
        began = time.perf_counter()
        row = next(rows, None)
        seconds += time.perf_counter() - began
        if row is None:
            break
        text = row["text"]
        seen.add(blake2b(text.encode(), digest_size=12).digest())
        tokens = tokenize(text)
        types.update(token.lower() for token in tokens if token[0].isalpha())
        lengths[text.count(" ") + 1] += 1
        plots[row["facts"]["plot"]] += 1
        size += len(text.encode())
    words = sum(length * n for length, n in lengths.items())
    return {
        "stories": count,
        "distinct stories": len(seen) / count,
        "words": words,
        "words a story, mean": words / count,
        "words a story, least": min(lengths),
        "words a story, most": max(lengths),
        "word types": len(types),
        "bytes": size,
        "plots": len(plots),
        "seconds to generate, one process": seconds,
    }


def skeleton_figures(count: int, seed: int) -> dict[str, float]:
    """Skeletons that the grammar has, and those that `count` stories use (as the parser finds them)."""
    used: Counter[str] = Counter()
    shapes: set[tuple[str, ...]] = set()
    for row in stories(count, seed):
        used_plots = tuple(event[0] for event in row["facts"]["events"])
        shapes.add(used_plots)
        for sentence in split(tokenize(row["text"])):
            used.update(reading.skeleton.key() for reading in parse(sentence))
    return {
        "events": len(EVENTS),
        "goals": len(GOALS),
        "sentence skeletons": sum(map(len, skeletons().values())),
        f"skeletons used in {count} stories": len(used),
        f"different orders of events in {count} stories": len(shapes),
    }


def markdown(arguments: argparse.Namespace) -> Iterator[str]:
    """The report, piece by piece, a line end after each left out."""
    yield f"# The story world, version {WORLD_VERSION}, seed {arguments.seed}\n"
    for title, figures in (
        ("Corpus", corpus_figures(arguments.stories, arguments.seed)),
        ("Skeletons", skeleton_figures(min(2000, arguments.stories), arguments.seed)),
    ):
        yield f"## {title}\n\n{_table(figures)}\n"
    held_out = list(stories(arguments.held_out, arguments.seed, "valid"))
    texts = [row["text"] for row in held_out]
    model = NGram().fit(row["text"] for row in stories(arguments.train, arguments.seed))
    yield f"## n-gram entropies (fitted on {arguments.train} stories, on {len(texts)} held-out ones)\n"
    entropies = [model.entropy(texts, order) for order in range(1, MAX_ORDER + 1)]
    bits = ((n, f"{e['bits_per_word']:.3f}", f"{e['bits_per_byte']:.3f}") for n, e in enumerate(entropies, 1))
    yield table(("n", "bits a word", "bits a byte"), bits)
    questions = list(probes(held_out))
    yield f"\n## Fact questions answered by the 5-gram ({len(questions)} probes)\n"
    shares = ("accuracy", "probability", "chance")
    answers = (
        (row["kind"], row["distance"], row["n"], *(f"{row[key]:.3f}" for key in shares))
        for row in score(questions, model.answer)
    )
    yield table(("kind", "distance in words", "n", *shares), answers)
    began = time.perf_counter()
    verdicts = summarize(check_many(texts))
    seconds = time.perf_counter() - began
    yield f"\n## The checker on {len(texts)} held-out stories ({seconds:.2f} s)\n"
    yield _table(verdicts)
    yield "\n## Ten stories\n"
    yield from (f"{i}. {row['text']}\n" for i, row in enumerate(stories(10, arguments.seed), 1))


def _table(figures: dict[str, float]) -> str:
    return table(("what", "value"), ((name, _number(value)) for name, value in figures.items()))


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stories", type=int, default=10_000, help="stories counted")
    parser.add_argument("--train", type=int, default=10_000, help="stories that the n-gram models are fitted on")
    parser.add_argument("--held_out", type=int, default=1_000, help="held-out stories measured")
    parser.add_argument("--seed", type=int, default=0)
    for line in markdown(parser.parse_args()):
        print(line)


if __name__ == "__main__":
    main()
