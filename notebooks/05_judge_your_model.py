# %% [markdown]
# # 05 Judge your own model
# A score from a language model means something only beside controls: real stories, and real stories that were damaged.
# If the judge does not see the damage, its score of your model says nothing.
# %% first
# %% [markdown]
# With an endpoint of your own, set `BASE_URL`, `JUDGE` and, where it asks for one, the environment variable
# `OPENAI_API_KEY`. Without, this notebook starts a toy judge on this machine: it only counts words in their usual order.
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
        names = re.findall(r"^- (\w+):", messages[0]["content"], re.M)
        texts = re.findall(r"<<<\n(.*?)\n>>>", messages[-1]["content"], re.S)
        words = texts[1].split() if len(texts) > 1 else []
        ordered = sum(word.islower() or word.endswith((".", ",", '"')) for word in words) / max(1, len(words))
        grade = round(1 + 6 * ordered + 3 * min(1, len(words) / 60))
        content = json.dumps({"reason": "counted words"} | dict.fromkeys(names, grade) | {"ready": True})
        if names:
            content = json.dumps({"reason": "counted words"} | dict.fromkeys(names, grade))
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
# %%
RUN = Path("runs/notebook_01")  # of the first notebook; trained here when it is missing
knobs = {"train.steps": 200, "train.eval_every": 50, "train.log_every": 10, "train.tensorboard": False}
if QUICK:
    knobs |= {"train.steps": 4, "train.eval_every": 2, "train.log_every": 1}
    knobs |= {"optim.learning_rate": 1e-2, "optim.warmup_steps": 0}
if not (RUN / "result.json").exists():
    mla_jax.train(mla_jax.load_config("smoke" if QUICK else "quickstart", **knobs), RUN)
# %% [markdown]
# The command line of this cell, in a shell: `python -m mla_jax.main --mode judge --workdir RUN --base_url ... --yes`. A study
# that was stopped goes on; answers that were paid for are kept.
# %%
OUT = RUN / "judged"
given = {
    "base_url": BASE_URL,
    "model": JUDGE,
    "yes": True,
    "num_prompts": 40,
    "builtin_prompts": 20,
    "num_controls": 20,
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
axes.set(xlabel="grade, 1 to 10", xlim=(0, 10))
axes.invert_yaxis()
# %% [markdown]
# Read the report's first sentence before any score: it says which damage the judge saw. The toy judge grades shuffled words
# as it grades real stories, so its grade of the model is worth nothing.
# %%
print((OUT / "report.md").read_text()[:1500])
