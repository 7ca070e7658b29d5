"""All machine scores of a batch of stories in one row each: the checker's, the surface's, the novelty's."""

from collections.abc import Sequence

from .checker import check_many
from .novelty import NoveltyIndex
from .prose import check_prose


def score_stories(
    texts: Sequence[str], *, of_world: bool, index: NoveltyIndex | None = None, processes: int = 1
) -> list[dict[str, float]]:
    """One flat row of numbers a story, in order.

    `of_world`: the stories are meant to be of the embedded world: its grammar and facts apply (keys of
    `checker.Verdict.metrics`). The surface's keys start with `prose_`, those of `index` (the training set)
    with `novelty_`.
    """
    verdicts = check_many(texts, processes) if of_world else None
    rows = []
    for number, text in enumerate(texts):
        row = dict(verdicts[number].metrics()) if verdicts else {}
        row.update({f"prose_{key}": value for key, value in check_prose(text).items()})
        if index is not None:
            row.update({f"novelty_{key}": value for key, value in index.compare(text).items()})
        rows.append(row)
    return rows
