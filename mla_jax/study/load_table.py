"""How evenly a study's experts are used, beside its loss: what balancing gives, and what it costs."""

from mla_jax.markdown import table
from mla_jax.study.results import Results
from mla_jax.study.rows import best_loss
from mla_jax.study.tables import with_error, with_range


def expert_load(found: Results) -> str:
    """A line a point with experts: loss, the busiest and the idlest expert of all layers over an even share, dead
    ones; "" for none."""
    lines = []
    for p in found.distinct():
        used = [row["experts"] for row in p.measured.values() if row.get("experts")]
        if not used:
            continue
        loads, dead = [u["load"] for u in used], [float(sum(u["dead"])) for u in used]
        lines.append(
            (
                p.label,
                with_error(p.over_seeds(best_loss)),
                with_range([max(map(max, load)) for load in loads], 2),
                with_range([min(map(min, load)) for load in loads], 2),
                with_range(dead, 0),
                sum(map(len, loads[0])),
            )
        )
    if not lines:
        return ""
    text = (
        "At the end of training: choices of the busiest and of the idlest expert over an even share, of all layers "
        "(mean, lowest to highest seed), and how many experts nobody chose, of how many in all layers."
    )
    return text + "\n\n" + table(("point", "loss", "busiest", "idlest", "dead", "experts"), lines)
