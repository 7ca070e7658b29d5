"""The tables of a study's report, each a Markdown text made from `Results`."""

import math
import statistics
from collections.abc import Iterable, Sequence

import numpy as np

from mla_jax.accounting import kv_bytes, mha_kv_bytes
from mla_jax.markdown import table
from mla_jax.study import commands
from mla_jax.study.results import Measured, Results, Row, reference_of, relative, seconds
from mla_jax.study.rows import best_loss, fact_accuracy, model_of
from mla_jax.study.stats import Estimate, estimate, holm, story_p

FULL_SCHEDULE = 50_000 * 128 * 512  # tokens: the papers' training
HARD = "050-099"  # the distance of fact questions that the main table shows


def without_empty(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """`table` without the columns in which no row has anything but "-"."""
    kept = [n for n in range(len(head)) if any(row[n] != "-" for row in rows)]
    return table((head[n] for n in kept), ([row[n] for n in kept] for row in rows))


def with_error(found: Estimate, digits: int = 4, sign: bool = False) -> str:
    """ "1.8490 ± 0.0021 (3)": mean, half the 95 % interval, seeds."""
    text = f"{found.mean:{'+' if sign else ''}.{digits}f}"
    if math.isnan(found.low):
        return f"{text} ({found.n})"
    return f"{text} ± {found.high - found.mean:.{digits}f} ({found.n})"


def with_range(values: Sequence[float], digits: int = 3) -> str:
    """ "0.710, 0.414 to 0.948 (3)": mean, lowest and highest, seeds; "-" where one is nan."""
    if not values or any(map(math.isnan, values)):
        return "-"
    mean = f"{statistics.fmean(values):.{digits}f}"
    between = f", {min(values):.{digits}f} to {max(values):.{digits}f}" if len(values) > 1 else ""
    return f"{mean}{between} ({len(values)})"


def kv_saved(row: Row) -> float:
    """Share of the KV cache of MHA with the same heads that the row's model does without."""
    model = model_of(row)
    return 1 - kv_bytes(model) / mha_kv_bytes(model)


def about(found: Results) -> str:
    """What the figures stand on: devices, versions, data, commands, what was scaled down, what is not there."""
    if not found.rows:
        return "No rows yet."
    rows = found.rows
    versions = sorted({", ".join(f"{k} {v}" for k, v in row["versions"].items()) for row in rows})
    lines = [
        f"{len(rows)} runs of {len(found.points)} points. Intervals are 95 % (Student's t over seeds; n in brackets); "
        "losses are nats per token on the held-out part, at each run's best evaluation.",
        "",
        f"* Device: {'; '.join(found.devices)}",
        *(f"* Versions: {version}" for version in versions),
        f"* Data: fingerprint {found.fingerprint[:16]}, tokenizer {rows[0]['tokenizer_sha256'][:16]}",
        *(
            f"* Command ({times} run{'s' if times > 1 else ''}): `{command}`"
            for command, times in commands.told_apart(r["command"] for r in rows)
        ),
        "* Commands are without `--workdir`, `--max_minutes` and whatever else changes no result; rows have them whole",
        *(f"* {line}" for line in _scale(found)),
    ]
    if found.study.only:
        lines.append(f"* Points that `only` asked for: {', '.join(found.study.only)}; the study has more")
    if found.other_data:
        lines.append(f"* Left out: {found.other_data} rows of the same configs on other data")
    if found.to_do:
        lines.append(f"* Not done yet: {found.to_do} runs")
    lines += [f"* Failed: {name}: {error}" for name, error in found.failed]
    lines += [f"* Not made: {point.name} needs {point.needs}" for point in found.missing]
    diverged = [f"{row['name']} (seed {row['study']['seed']}, learning rate {row['study']['learning_rate']:g})"
                for row in rows if row["study"]["status"] == "diverged"]  # fmt: skip
    lines += [f"* Diverged: {name}" for name in diverged]
    return "\n".join(lines)


def _scale(found: Results) -> list[str]:
    """A line a tier: how much training stands behind it, next to the papers' 3.3 billion tokens."""
    lines = []
    for name in found.tiers:
        row = found.tier(name)[0].any
        train = row["config"]["config"]["train"]
        tokens = train["steps"] * train["batch_size"] * train["seq_len"]
        lines.append(
            f"Tier {name}: {size_and_steps(row)} = {tokens / 1e6:.1f}M tokens "
            f"(the papers: 50,000 steps of 128 x 512 = 3,277M)"
        )
    return lines


def size_and_steps(row: Row) -> str:
    """ "9 layers, d=512, 8 heads; 1,000 steps of 64 x 512"."""
    model, train = (row["config"]["config"][part] for part in ("model", "train"))
    return (
        f"{model['n_layers']} layers, d={model['d_model']}, {model['n_heads']} heads; "
        f"{train['steps']:,} steps of {train['batch_size']} x {train['seq_len']}"
    )


def main(found: Results, tier: str) -> str:
    """The papers' table: cache against loss, a row a point. What was not measured of any has no column."""
    reference = reference_of(found, tier)
    rows = []
    for p in found.tier(tier):
        row = p.any
        change = estimate(relative(p, reference)) if reference and p is not reference else None
        rows.append(
            (
                p.name,
                f"{row['study']['learning_rate']:g}",
                f"{row['study']['params']['total']:,}",
                row["study"]["kv_numbers"],
                f"{kv_bytes(model_of(row)):,}",
                f"{100 * kv_saved(row):.1f} %",
                with_error(p.over_seeds(best_loss)),
                with_error(change, 2, sign=True) if change and change.n else "-",
                with_error(p.over_seeds(lambda r: r["metrics"].get("best_bits_per_byte", math.nan))),
                f"{row['metrics']['best_step']} of {row['config']['config']['train']['steps']}",
                with_range([fact_accuracy(r, HARD) for r in p.measured.values()]),
            )
        )
    head = ("point", "learning rate", "parameters", "KV numbers/token/layer", "KV bytes/token", "saved", "loss")
    name = reference.name if reference else "reference"
    return without_empty((*head, f"% against {name}", "bits/byte", "best step", f"facts, {HARD} words ago"), rows)


def by_story(found: Results) -> str:
    """Differences from the reference on each held-out story, averaged over the seeds that both have."""
    rows = []
    for tier in found.tiers:
        reference = reference_of(found, tier)
        if reference is None:
            continue
        differences = {p.name: _story_differences(p, reference) for p in found.tier(tier) if p is not reference}
        differences = {name: d for name, d in differences.items() if d is not None}
        adjusted = holm([story_p(d) for d in differences.values()])
        for (name, d), p_value in zip(differences.items(), adjusted, strict=True):
            error = d.std(ddof=1) / math.sqrt(len(d))
            better = f"{(d < 0).mean():.0%}"
            rows.append(
                (name, reference.name, len(d), f"{d.mean():+.4f} ± {1.96 * error:.4f}", better, f"{p_value:.4f}")
            )
    if not rows:
        return ""
    text = (
        "Paired on one held-out set: mean over stories of the loss per token, less the reference's. The error is that "
        "of other stories, not of other seeds (the tables above have that one). p: sign flips, Holm over the tier."
    )
    return text + "\n\n" + table(("point", "against", "stories", "difference", "better on", "p"), rows)


def _story_differences(p: Measured, reference: Measured) -> np.ndarray | None:
    seeds = sorted(p.measured.keys() & reference.measured.keys())
    if not seeds or not (p.tuned and reference.tuned):
        return None
    each = [np.subtract(p.measured[s]["story_losses"], reference.measured[s]["story_losses"]) for s in seeds]
    return np.mean(each, axis=0)


def learning_rates(found: Results) -> str:
    """Best loss of the first seed at every learning rate that was tried."""
    swept = [p for p in found.points if len(p.sweep) > 1]
    if not swept:
        return ""
    rates = sorted({row["study"]["learning_rate"] for p in swept for row in p.sweep})
    rows = []
    for p in swept:
        by_rate = {row["study"]["learning_rate"]: row for row in p.sweep}
        cells = [_swept_cell(by_rate.get(rate), p) for rate in rates]
        rows.append((p.name, *cells))
    text = (
        "Best loss of the first seed; the other seeds took the best rate (bold; none while one is missing, and such a "
        "point is compared with nothing). Where that is the first or the last that was tried, a better one may lie "
        "beyond."
    )
    return text + "\n\n" + table(("point", *(f"{rate:g}" for rate in rates)), rows)


def _swept_cell(row: Row | None, p: Measured) -> str:
    if row is None:
        return ""
    if row["study"]["status"] == "diverged":
        return "diverged"
    text = f"{best_loss(row):.4f}"
    chosen = p.tuned and row["study"]["learning_rate"] == p.any["study"]["learning_rate"]
    return f"**{text}**" if chosen else text


def facts(found: Results) -> str:
    """Accuracy over the distance to the fact, all kinds together."""
    asked = [p for p in found.points if p.measured and next(iter(p.measured.values()))["facts"]]
    if not asked:
        return ""
    first = next(iter(asked[0].measured.values()))["facts"]
    distances = [f["distance"] for f in first if f["kind"] == "all" and not f["distance"].startswith(">")]
    blind = {f["distance"]: f["chance"] for f in first if f["kind"] == "all"}
    rows = [
        (p.name, *(with_range([fact_accuracy(r, d) for r in p.measured.values()]) for d in distances)) for p in asked
    ]
    rows.append(("blind guess", *(f"{blind[d]:.3f}" for d in distances)))
    text = (
        "Share of right answers by how many words ago the story stated the fact (docs/world.md): mean, lowest to "
        "highest seed. A run recalls or does not, which an interval around the mean would not show."
    )
    return text + "\n\n" + table(("point", *distances), rows)


def by_position(found: Results) -> str:
    """Mean loss in the last eighth of 1, 2, 4 training lengths: does it go on falling, or does it break?"""
    lengths = sorted({int(times) for p in found.points for r in p.measured.values() for times in r["by_position"]})
    if lengths in ([], [1]):
        return ""
    rows = []
    for p in found.points:
        cells = []
        for times in lengths:
            value = p.over_seeds(lambda r, t=str(times): r["by_position"].get(t, [[0, math.nan]])[-1][1])
            cells.append("-" if math.isnan(value.mean) else with_error(value, 3))
        if any(cell != "-" for cell in cells[1:]):
            rows.append((p.name, *cells))
    text = "Loss in the last eighth of a window of so many training lengths (-: the positions end before)."
    return text + "\n\n" + table(("point", *(f"{times}x" for times in lengths)), rows)


def effective_ranks(found: Results) -> str:
    """Effective rank of what each layer's cache holds, next to its width."""
    rows = []
    for p in found.points:
        if not p.measured:
            continue
        spectra = next(iter(p.measured.values()))["spectra"]
        for entry in dict.fromkeys(s["entry"] for s in spectra):
            layers = [s for s in spectra if s["entry"] == entry]
            rows.append((p.name, entry, layers[0]["width"], " ".join(f"{s['effective_rank']:.0f}" for s in layers)))
    if not rows:
        return ""
    text = (
        "exp of the entropy of the singular values (Roy & Vetterli 2007) of the cached vectors, heads side by side, "
        "first seed, layers from the input to the output."
    )
    return text + "\n\n" + table(("point", "cache entry", "width", "effective rank by layer"), rows)


def samples(found: Results) -> str:
    """A story a point, of the first seed's best checkpoint. The prompt ends at `|`."""
    lines = []
    for p in found.tier(found.tiers[0])[:8] if found.tiers else []:
        for story in [s for row in list(p.measured.values())[:1] for s in row["stories"][:1]]:
            text = f"{story['prompt']}|{story['text']}".replace("\n", "\n> ")
            lines.append(f"**{p.name}**\n\n> {text}")
    return "\n\n".join(lines)


def time_used(found: Results) -> str:
    """Device minutes, and the hours of the papers' full schedule at the measured speed, a line a point and device.

    Where no run of a point had the device to itself there is no speed, and the hours are a bound.
    """
    lines = []
    for p in found.points:
        for device, rows in sorted(_by_device(p.measured.values()).items()):
            alone = [r for r in rows if r["study"]["sharing"] == 1]
            median = statistics.median(r["metrics"]["tokens_per_s"] for r in alone or rows)
            hours = f"{'' if alone else 'at most '}{FULL_SCHEDULE / median / 3600:.1f}"
            mean = seconds(tuple(rows)) / len(rows)
            speed = f"{median:,.0f}" if alone else "-"
            lines.append((p.name, p.tier, device, speed, f"{mean:.0f}", hours))
    head = ("point", "tier", "device", "training tokens/s", "device seconds a run", "hours for 50,000 x 128 x 512")
    text = table(head, lines)
    if any(line[-1].startswith("at most") for line in lines):
        text += (
            "\n\nAt most: its runs took turns with others on the device, with few or with many, so such hours are no "
            "measure of a point beside another; alone they are faster."
        )
    return f"{device_minutes(found.rows)}.\n\n{text}"


def device_minutes(rows: Iterable[Row]) -> str:
    """ "12.3 device minutes in 45 runs on NVIDIA H200, compiling and evaluating included"."""
    used = "; ".join(_used(device, own) for device, own in sorted(_by_device(rows).items()))
    return f"{used}, compiling and evaluating included" if used else "no runs yet"


def _by_device(rows: Iterable[Row]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row["device"], []).append(row)
    return found


def _used(device: str, rows: list[Row]) -> str:
    return f"{seconds(tuple(rows)) / 60:.1f} device minutes in {len(rows)} runs on {device}"
