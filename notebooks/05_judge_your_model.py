# %% [markdown]
# # 05 Judge your own model
# A score from a language model means something only beside controls: real stories, and real stories that were damaged.
# If the judge does not see the damage, its score of your model says nothing.
#
# One to three minutes on two CPU cores with the toy judge below, most of it training where notebook 01 has not run yet.
# %% first
# %% [markdown]
# ## The judge
# Any server that speaks OpenAI's chat protocol will do. With one of your own, set `BASE_URL` (it usually ends in `/v1`),
# `JUDGE` (the model's name there) and, where it asks for a key, the environment variable `OPENAI_API_KEY`; requests are
# then paid for, and `budget_usd` below is the most they may cost (tell it the prices with `price_in` and `price_out`, in
# dollars a million tokens). Without, this notebook starts a toy judge on this machine. It understands nothing: it gives
# points for words in small letters and for length.
# %%
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import matplotlib.pyplot as plt
import rich.console

import mla_jax
from mla_jax.judge import judge_mode
from mla_jax.rows import read_rows

BASE_URL, JUDGE = "", "toy"


class ToyJudge(BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        messages = body["messages"]
        names = re.findall(r"^- (\w+):", messages[0]["content"], re.M)  # what the rubric asks for
        texts = re.findall(r"<<<\n(.*?)\n>>>", messages[-1]["content"], re.S)
        words = texts[1].split() if len(texts) > 1 else []
        ordered = sum(word.islower() or word.endswith((".", ",", '"')) for word in words) / max(1, len(words))
        grade = round(1 + 6 * ordered + 3 * min(1, len(words) / 60))
        grades = {"reason": "counted words"} | dict.fromkeys(names, grade) if names else {"ready": True}
        content = json.dumps(grades)
        message = {"role": "assistant", "content": content, "refusal": None}
        choice = {"index": 0, "finish_reason": "stop", "message": message}
        usage = {"prompt_tokens": 400, "completion_tokens": 40, "total_tokens": 440}
        reply = {"id": "1", "object": "chat.completion", "created": 1, "model": "toy", "choices": [choice]}
        payload = json.dumps(reply | {"usage": usage}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    def log_message(self, *_):
        pass


server = None
if not BASE_URL:
    server = ThreadingHTTPServer(("127.0.0.1", 0), ToyJudge)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    BASE_URL = f"http://127.0.0.1:{server.server_port}/v1"
# %% [markdown]
# ## The model
# %%
RUN = Path("runs/notebook_01")  # of the first notebook; trained here when it is missing
knobs = {"train.steps": 400, "train.eval_every": 50, "train.log_every": 20, "train.tensorboard": False}
if QUICK:
    knobs |= {"train.steps": 4, "train.eval_every": 2, "train.log_every": 1}
    knobs |= {"optim.learning_rate": 1e-2, "optim.warmup_steps": 0}
if not (RUN / "result.json").exists():
    mla_jax.train(mla_jax.load_config("smoke" if QUICK else "quickstart", **knobs), RUN)
# %% [markdown]
# ## The judging
# Your model continues 40 beginnings of stories. The judge grades its stories, 20 real ones and the same 20 in four damaged
# forms, in shuffled order and without names. The command line of this cell, in a shell: `python -m mla_jax.main --mode judge
# --workdir RUN --base_url ... --yes`. Judging that was stopped goes on, and answers that were paid for are kept.
# %%
OUT = RUN / "judged"
given = {
    "base_url": BASE_URL,
    "model": JUDGE,
    "yes": True,
    "num_prompts": 40,
    "builtin_prompts": 20,
    "num_controls": 20,
    "budget_usd": 1.0,
}
given |= {"max_new_tokens": 120, "cache_dir": str(OUT.resolve().with_name("judge_cache"))}
if QUICK:
    given |= {"num_prompts": 4, "builtin_prompts": 2, "num_controls": 8, "max_new_tokens": 16}
judge_mode.run([str(RUN)], given, str(OUT), None, rich.console.Console())
if server:
    server.shutdown()
# %%
rows = [row for row in read_rows(OUT / "rows.jsonl") if "overall" in row["metrics"]]
scores = {row["name"]: row["metrics"]["overall"] for row in rows}
figure, axes = plt.subplots(figsize=(7, 3.5), layout="constrained")
axes.barh(list(scores), list(scores.values()), color=["C1" if name.startswith("control") else "C0" for name in scores])
for name, score in scores.items():
    axes.annotate(f" {score:.1f}", (score, name), va="center")
axes.set(xlabel="mean grade (1 to 10)", xlim=(1, 10), title=f"judge: {JUDGE} (orange: controls)")
axes.invert_yaxis()
# %% [markdown]
# Compare `control:real` with the damaged forms below it before you look at the model: a judge that grades shuffled words as
# high as real stories does not read. The toy judge is such a judge, so its grade of the model is worth nothing. The report
# says so in its second sentence, and its table of controls has the p-values.
# %%
print((OUT / "report.md").read_text().split("## Differences")[0])
