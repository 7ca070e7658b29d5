"""A run with experts from end to end: its metrics and plots, resuming, sampling, tracing, and a lost bias."""

import io
import json
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
import rich.console
from run_tools import small_config, write_stories

from mla_jax import eval_mode, rows, runs
from mla_jax.errors import UserError, run_command
from mla_jax.main import main
from mla_jax.sample import expert_page, expert_trace, sample_mode
from mla_jax.train import expert_report
from mla_jax.train.expert_meter import ExpertMeter, max_over_mean
from mla_jax.train.loop import train

pytest_plugins = ["run_fixtures"]
pytestmark = pytest.mark.usefixtures("run_env")

EXPERTS = {
    "model.ffn": "moe",
    "model.n_routed_experts": 6,
    "model.n_shared_experts": 1,
    "model.top_k": 2,
    "model.d_expert": 8,
    "train.steps": 4,
    "train.eval_every": 2,
}


@pytest.fixture(scope="module")
def cache(run_cache: Path) -> None:
    """The session's cache for the module's run, which is older than a test's environment."""
    patch = pytest.MonkeyPatch()
    patch.setenv("MLA_JAX_CACHE", str(run_cache))
    yield
    patch.undo()


@pytest.fixture(scope="module")
def stories(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_stories(tmp_path_factory.mktemp("moe") / "stories.txt")


@pytest.fixture(scope="module")
def moe_run(stories: Path, cache: None) -> Path:
    """4 steps, checkpoints at 2 and 4."""
    workdir = stories.parent / "run"
    train(small_config(stories, **EXPERTS), workdir, rich.console.Console(quiet=True))
    return workdir


def test_the_run_folder_says_how_the_experts_are_used(moe_run: Path) -> None:
    written = rows.read_rows(moe_run / "metrics.jsonl")
    last = [row for row in written if row["kind"] == "experts"][-1]
    assert (last["step"], last["steps"]) == (4, 2)
    assert np.asarray(last["load"]).shape == (2, 6)
    np.testing.assert_allclose(np.mean(last["load"], axis=1), 1, atol=1e-4)
    assert (np.asarray(last["max_load"]) >= 1).all()
    assert last["dead"] == (np.asarray(last["load"]) == 0).sum(axis=1).tolist()
    assert 0 < max(last["bias_max"]) <= 4 * 2 * 3e-3  # four steps of the rate, recentred
    assert (np.asarray(last["entropy"]) > 0).all()
    trained = [row for row in written if row["kind"] == "train"]
    assert all(len(row["expert_max_load"]) == 2 and row["router_loss"] == 0 for row in trained)
    assert (moe_run / "plots" / "experts.png").stat().st_size > 10_000
    assert "plots/experts.png" in (moe_run / "report.md").read_text()


def test_the_meter_counts_by_hand() -> None:
    """Two steps of one layer: loads 6 0 0 and 0 3 3, so 3 and 1.5 over the mean; nobody is dead over both."""
    meter = ExpertMeter()
    for load in ([6.0, 0.0, 0.0], [0.0, 3.0, 3.0]):
        meter.add({"expert_load": np.asarray([load]), "router_entropy": np.asarray([1.0]), "router_loss": 0.5})
    assert max_over_mean(np.asarray([6.0, 0.0, 0.0])) == 3
    values = meter.train_values()
    assert (values["expert_max_load"], values["expert_max_load_worst"], values["expert_dead"]) == ([2.25], 2.25, 0)
    assert values["router_loss"] == 0.5
    row = meter.eval_values(np.asarray([[0.1, -0.3, 0.2]]))
    assert (row["load"], row["max_load"], row["dead"], row["bias_max"]) == ([[1.5, 0.75, 0.75]], [2.25], [0], [0.3])
    assert meter.train_values() == {} and meter.eval_values(None) == {}
    meter.add({"loss": np.float32(1.0)})  # a dense model
    assert meter.train_values() == {}


def test_a_loaded_run_has_its_bias_and_evaluates_as_in_training(moe_run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(moe_run, copy)
    run = runs.load_run(copy, 4)
    assert run.router_bias.shape == (2, 6)
    assert np.abs(run.router_bias).max() > 0
    np.testing.assert_allclose(np.mean(run.router_bias, axis=1), 0, atol=1e-7)
    losses = {row["step"]: row["loss"] for row in rows.read_rows(moe_run / "metrics.jsonl") if row["kind"] == "eval"}
    assert eval_mode.evaluate(run).result.loss == pytest.approx(losses[4], abs=1e-6)


@pytest.mark.slow  # compiles the step again; test_moe_model.py resumes one step without the loop
def test_resuming_ends_in_the_same_bias_and_weights(moe_run: Path, stories: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(moe_run, copy)
    shutil.rmtree(copy / "checkpoints" / "4")
    train(small_config(stories, **EXPERTS), copy, rich.console.Console(quiet=True))
    whole, resumed = (runs.load_run(folder, 4) for folder in (moe_run, copy))
    jax.tree.map(np.testing.assert_array_equal, whole.variables, resumed.variables)


def test_a_checkpoint_that_lost_its_bias_is_refused_in_a_sentence(
    moe_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(moe_run, copy)
    params = runs.load_run(copy, 4).params
    item = copy / "checkpoints" / "4" / "model"
    shutil.rmtree(item)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(item.resolve(), {"params": params})
    for path in (copy / "checkpoints" / "4").glob("*sum*"):
        path.unlink()
    assert main(["mla_jax", "--mode=sample", f"--workdir={copy}", "--step=4"]) == 2
    error = capsys.readouterr().err
    assert "it has no router_bias, without which a model with experts routes differently): the newest good one" in error
    assert "Traceback" not in error
    shutil.rmtree(copy / "checkpoints" / "2" / "model")
    shutil.copytree(item, copy / "checkpoints" / "2" / "model")
    for path in (copy / "checkpoints" / "2").glob("*sum*"):
        path.unlink()
    assert main(["mla_jax", "--mode=sample", f"--workdir={copy}", "--step=4"]) == 2
    assert "routes differently): copy the run folder again." in capsys.readouterr().err  # the other one has none either


class Page(HTMLParser):
    """Counts tags and gathers the tokens' attributes; complains of tags that are not closed, and of what would load."""

    def __init__(self) -> None:
        super().__init__()
        self.open, self.count, self.tokens, self.text = [], {}, [], []

    def handle_starttag(self, tag: str, attributes: list) -> None:
        self.count[tag] = self.count.get(tag, 0) + 1
        if tag not in ("meta", "br", "input"):
            self.open.append(tag)
        if tag == "span":
            self.tokens.append(dict(attributes))
        assert not any(name.startswith("on") or name in ("src", "href") for name, _ in attributes)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "span" in self.open:
            self.text.append(data)


def page_of(text: str) -> Page:
    page = Page()
    page.feed(text)
    assert not page.open and "script" not in page.count and page.count["style"] == 1
    assert "@import" not in text and "url(" not in text
    return page


def test_traced_samples_name_the_experts_of_every_token(moe_run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(moe_run, copy)
    given = {"prompts": ("the <b>little</b> fox",), "num_samples": 2, "max_new_tokens": 8}
    console = rich.console.Console(record=True, quiet=False, file=io.StringIO())
    sample_mode.run(str(copy), given, 4, console, trace_experts=True)
    rich_text = console.export_text()
    content = json.loads((copy / "experts" / "trace.json").read_text())
    assert (content["n_routed_experts"], content["top_k"], content["step"]) == (6, 2, 4)
    n_tokens = 0
    for text in content["texts"]:
        experts, weights = np.asarray(text["experts"]), np.asarray(text["weights"])
        assert experts.shape == weights.shape == (2, len(text["tokens"]), 2)
        assert "".join(text["tokens"][1 : text["n_prompt"]]) == "the <b>little</b> fox"
        np.testing.assert_allclose(weights.sum(axis=-1), 1, atol=1e-3)
        assert (experts[..., 0] != experts[..., 1]).all()
        n_tokens += len(text["tokens"])
    assert np.asarray(content["load"]).sum() == 2 * n_tokens * 2
    assert np.asarray(content["coactivation"]).shape == (1, 6, 6)
    assert np.asarray(content["coactivation"]).sum() == n_tokens * 4
    text = (copy / "experts" / "trace.html").read_text()
    page = page_of(text)
    assert page.count["span"] == len(page.tokens) == 2 * n_tokens
    assert page.count["details"] == 2 and "&lt;" in text and "<b>" not in text
    assert page.tokens[0]["data-x"].split() == [str(e) for e in content["texts"][0]["experts"][0][0]]
    assert "trace.html" in rich_text and len(content["texts"]) == 2


def test_odd_tokens_and_layers_behind_a_dense_one_are_shown_as_what_they_are(moe_run: Path) -> None:
    """Markup, line breaks, bytes of a character that has no piece, characters that turn or hide text."""
    run = runs.load_run(moe_run, 4)
    prompt = '<script>alert("x")</script> & a\nb\u202e\u2028\x00 <0xC3> é'
    trace = expert_trace.trace(run, [(prompt, "")])
    ids = run.tokenizer.encode(prompt)
    assert [run.tokenizer.piece(i) for i in ids] == trace[0].tokens[1:]
    raw = run.tokenizer.encode("\N{SNOWMAN}")
    assert [run.tokenizer.piece(i) for i in raw] == ["<0xE2>", "<0x98>", "<0x83>"]
    odd = expert_trace.Trace(["s", prompt, "<0xE2>"], 1, np.zeros((1, 3, 1), int), np.ones((1, 3, 1)))
    page = page_of(expert_trace.render("a <name>", [odd], 3, first_layer=1))
    shown = "".join(page.text)
    assert '<script>alert("x")</script> & a↵\nb[U+202E][U+2028][U+0000] <0xC3> é<0xE2>' in shown
    text = expert_trace.render("a <name>", [odd], 3, first_layer=1)
    assert "<summary>layer 1</summary>" in text and "a &lt;name&gt;" in text
    assert text.count(" disabled>") == 2  # experts 1 and 2 saw nothing


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium, e.g. apt-get install chromium")
def test_a_browser_lights_the_tokens_of_the_expert_that_is_chosen(tmp_path: Path) -> None:
    """Styles decide by their weight; only a browser says which one wins. Its answers are written into the document."""
    rng = np.random.default_rng(0)
    experts = np.argsort(rng.random((2, 30, 5)), axis=-1)[..., :2]
    trace = expert_trace.Trace([f"{i} " for i in range(30)], 3, experts, np.ones(experts.shape))
    script = """<script>
    const full = form => [...form.querySelectorAll("p span")].map(s => +(getComputedStyle(s).opacity == 1)).join("");
    const forms = [...document.querySelectorAll("form.layer")];
    const before = forms.map(full).join();
    forms[0].querySelector("label.e3").click();
    const after = forms.map(full).join();
    document.querySelector(".numbers").click();
    const number = getComputedStyle(forms[0].querySelector("p span"), "::after").content;
    document.body.innerHTML = `<i>${before}|${after}|${number}</i>`;
    </script></body>"""
    path = tmp_path / "page.html"
    path.write_text(expert_trace.render("x", [trace], 5).replace("</body>", script), encoding="utf-8")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    command = [CHROMIUM, *flags, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", path.as_uri()]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    before, after, number = shown.partition("<i>")[2].partition("</i>")[0].split("|")
    assert before == ",".join(["1" * 30] * 2)
    used = "".join("1" if 3 in chosen else "0" for chosen in experts[0])
    assert after == f"{used},{'1' * 30}" and "0" in used
    assert number == f'"{experts[0, 0, 0]}"'


def luminance(colour: str) -> float:
    """WCAG 2: relative luminance of "#rrggbb"."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    return float(np.dot([0.2126, 0.7152, 0.0722], [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4
                                                   for p in parts]))  # fmt: skip


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_experts_colour_can_be_read_on(scheme: str) -> None:
    ink = luminance(expert_page.INK[scheme])
    colours = [expert_page.colour(expert, scheme) for expert in range(256)]
    for colour in colours:
        pair = sorted((luminance(colour), ink))
        assert (pair[1] + 0.05) / (pair[0] + 0.05) >= 4.5, colour
    assert len(set(colours[:128])) == 128


def test_coactivation_by_hand() -> None:
    """Two tokens, two layers, 3 experts: token 0 uses {0, 1} then {2, 0}; token 1 uses {1, 2} then {2, 1}."""
    experts = np.asarray([[[0, 1], [1, 2]], [[2, 0], [2, 1]]])
    trace = expert_trace.Trace(["a", "b"], 1, experts, np.ones(experts.shape))
    np.testing.assert_array_equal(expert_trace.coactivation([trace], 3)[0], [[1, 0, 1], [1, 1, 2], [0, 1, 1]])
    np.testing.assert_array_equal(expert_trace.loads([trace], 3), [[1, 2, 1], [1, 1, 2]])


def test_the_worst_window_by_hand() -> None:
    """Rows of 10 steps; windows of 20 that begin at step 20 or later: rows (3, 4), (4, 5), (5, 6)."""
    steps = np.asarray([10, 20, 30, 40, 50, 60])
    load = np.asarray([[9.0, 1], [9, 1], [2, 1], [1, 1], [1, 3], [1, 2]])
    np.testing.assert_allclose(expert_report.worst_window(steps, load, after=20, window=20), [1.5, 2.5])
    assert np.isnan(expert_report.worst_window(steps, load, after=50, window=20)).all()


def test_the_balance_of_runs_is_a_table(
    moe_run: Path, trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    made = tmp_path / "balance.jsonl"
    assert (
        run_command(expert_report.main, [str(moe_run), str(trained_run), "--after=2", "--window=2", f"--rows={made}"])
        == 0
    )
    lines = capsys.readouterr().out.splitlines()
    logs = [row for row in rows.read_rows(moe_run / "metrics.jsonl") if row["kind"] == "train" and row["step"] > 2]
    expected = np.mean([row["expert_max_load"] for row in logs], axis=0).max()
    assert f"| bias 0.003 | {expected:.3f} |" in lines[2]
    assert "no experts" in lines[3]
    (row,) = rows.read_rows(made)  # the dense run has none
    assert (row["name"], row["metrics"]["max_load"]) == (f"balance {moe_run.name}", pytest.approx(expected))
    assert row["device"] and row["data_fingerprint"]
    kept = made.read_text()
    assert run_command(expert_report.main, [str(trained_run), f"--rows={made}"]) == 2 and made.read_text() == kept
    assert "no run with experts is finished" in capsys.readouterr().err
    assert run_command(expert_report.main, [str(moe_run), f"--rows={tmp_path / 'none' / 'x.jsonl'}"]) == 2
    assert "cannot be written" in capsys.readouterr().err
    assert run_command(expert_report.main, [str(moe_run / "plots")]) == 2
    assert "no run folder" in capsys.readouterr().err


def test_a_dense_run_has_no_experts_to_trace(trained_run: Path) -> None:
    with pytest.raises(UserError, match=r"--trace_experts is for models with experts, .*ffn=dense"):
        expert_trace.trace(runs.load_run(trained_run), [("a", "b")])
