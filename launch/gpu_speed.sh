#!/usr/bin/env bash
# Training speed on one GPU: our step beside torch's, kernels beside plain XLA, and where the time goes.
#
#   bash launch/gpu_speed.sh OUT [PART ...]      on an H200 peer and mla took 2 minutes together
#
# Parts, in order of worth: peer mla muon startup trace peer_large flags memory tests. Each is bounded in time; rows are
# appended to OUT/rows.jsonl at once, tables go to OUT/*.md, and the summary comes last. Needs torch for the peer
# (pip install -e ".[gpu,hf]"); without it that row is left out, with a sentence.
#   PYTHON=python3.12   the interpreter    LIMIT=540   seconds for all parts; what does not fit is named at the end
set -uo pipefail
out=${1:?usage: gpu_speed.sh OUT [PART ...]}
shift
parts=${*:-peer mla muon startup trace peer_large flags memory tests}
python=${PYTHON:-python3}
limit=${LIMIT:-540}
mkdir -p "$out"
out=$(realpath --relative-to="$PWD" "$out") # rows keep their command: it names no place of this machine
export MLA_JAX_CACHE=${MLA_JAX_CACHE:-$PWD/$out/cache}
rows=$out/rows.jsonl
left_out=()

bounded() { # SECONDS NAME COMMAND... : runs it within its own and the session's limit, its output in OUT/NAME.md
    local seconds=$1 name=$2 left=$((limit - SECONDS))
    shift 2
    if [ "$left" -lt 20 ]; then
        left_out+=("$name")
        return
    fi
    [ "$seconds" -lt "$left" ] || seconds=$left
    echo "== $name (at $SECONDS s, at most $seconds s)"
    timeout "$seconds" "$@" 2>"$out/$name.log" | tee "$out/$name.md"
    local code=${PIPESTATUS[0]}
    [ "$code" = 0 ] || { echo "$name: exit code $code; $(tail -n 1 "$out/$name.log")"; left_out+=("$name ($code)"); }
}
ours() { # SECONDS NAME FLAGS...
    local seconds=$1 name=$2
    shift 2
    bounded "$seconds" "$name" "$python" -m mla_jax.bench.train_step --name "$name" --out "$rows" "$@"
}
torch() { # NAME SIZE VOCABULARY BATCH
    bounded 150 "$1" "$python" -m mla_jax.bench.peers.torch_train --size "$2" --vocab "$3" --batch "$4" --out "$rows"
}
gpt=(--config mha:m --knob model.block=gpt --knob model.position=learned)

peer() { # Target: 1.15 times torch, 1.25 is the stretch.
    ours 120 ours_m_8192 "${gpt[@]}" --vocab 8192 --variant "" --variant model.train_impl=xla
    torch torch_m_8192 m 8192 128
}
peer_large() {
    ours 120 ours_m_50304 "${gpt[@]}" --vocab 50304 --variant "" --variant train.loss_chunks=1
    torch torch_m_50304 m 50304 128
    ours 120 ours_l_50304 --config mha:l --knob model.block=gpt --vocab 50304 --batch 64 --variant ""
    torch torch_l_50304 l 50304 64
}
mla() { # Target: the second row at least 1/1.10 of the first.
    ours 150 mla_over_mha --config mla_rope:m --variant model.attention=mha --variant "" --variant model.train_impl=xla \
        --variant "model.attention=mha model.train_impl=xla"
}
muon() { # Target: Muon's share of the step at most 5 %: its step over AdamW's, and optimizer_ms in the rows.
    ours 90 muon_share --config mla_rope:m --optimizer --variant "" --variant optim.name=muon \
        --variant "optim.name=muon optim.muon_dtype=float32" --variant optim.ema_decay=0.999
}
trace() { # Kernels inside CUDA graphs have no names of operations: without command buffers.
    XLA_FLAGS="${XLA_FLAGS:-} --xla_gpu_enable_command_buffer=" \
        ours 90 trace_gpt "${gpt[@]}" --repeats 2 --variant "" --trace "$out/trace_gpt"
    XLA_FLAGS="${XLA_FLAGS:-} --xla_gpu_enable_command_buffer=" \
        ours 90 trace_mla --config mla_rope:m --repeats 2 --variant "" --trace "$out/trace_mla"
}
startup() { # Targets: 40 s cold, 12 s warm (the line "start-up"); tokens/s over the fixed batch: at most 1.01.
    local run
    for run in cold warm; do
        bounded 150 "startup_$run" "$python" -m mla_jax.main --config mla_rope:m --workdir "$out/startup_$run" \
            --config.data.stories=20000 --config.data.threads=8 --config.train.batch_size=128 \
            --config.train.steps=150 --config.train.eval_every=150 --config.train.log_every=25 \
            --config.train.tensorboard=False
    done
    ours 60 fixed_batch --config mla_rope:m --vocab 2048 --variant ""
    grep -h "startup\|\"train\"" "$out"/startup_*/metrics.jsonl | tail -n 4
}
flags() { # One that pays belongs into docs/how-to/speed.md and the launch scripts.
    local name set
    for set in none --xla_gpu_enable_latency_hiding_scheduler=true \
        --xla_gpu_triton_gemm_any=true --xla_gpu_enable_command_buffer=; do
        name=flags_$(echo "$set" | tr -dc a-z_ | cut -c 1-40)
        XLA_FLAGS="${XLA_FLAGS:-} ${set#none}" ours 70 "$name" "${gpt[@]}" --variant ""
    done
}
memory() {
    bounded 200 largest_batch "$python" -m mla_jax.bench.largest_batch --sizes m,l,xl --remat none,full --run \
        --out "$rows"
}
tests() { # Numbers that need a GPU: cuDNN's attention, the loss without a float32 copy. Compiling takes most of the time.
    local together=()
    if "$python" -c "import xdist" 2>/dev/null; then together=(-n 6); fi
    # 0.14: six processes share the memory.
    JAX_PLATFORMS=cuda,cpu XLA_PYTHON_CLIENT_MEM_FRACTION=0.14 \
        bounded 240 gpu_tests "$python" -m pytest -q -x "${together[@]}" \
        tests/test_loss.py tests/test_backend.py tests/test_train_kernels.py
}

for part in $parts; do
    case $part in
        peer | peer_large | mla | muon | trace | startup | flags | memory | tests) "$part" ;;
        *)
            echo "gpu_speed.sh: $part is no part; use peer peer_large mla muon trace startup flags memory tests" >&2
            exit 2
            ;;
    esac
done
echo "== summary after $SECONDS s; not run or cut: ${left_out[*]:-nothing}"
"$python" - "$rows" <<'PYTHON'
import json, sys
rows = [json.loads(line) for line in open(sys.argv[1])]
found = {row["name"]: row["metrics"] for row in rows if "step_ms" in row["metrics"]}
for name, m in found.items():
    more = f", optimizer {m['optimizer_ms']:.2f} ms" if "optimizer_ms" in m else ""
    print(f"{name}: {m['step_ms']:.2f} ms, {m['tokens_per_s']:,.0f} tokens/s{more}")
for key in ("m_8192", "m_50304", "l_50304"):
    torch = found.get(f"torch_{key}", {}).get("tokens_per_s")
    for name, m in found.items():
        if torch and name.split()[0] == f"ours_{key}":
            print(f"{name}: {m['tokens_per_s']:,.0f} over torch's {torch:,.0f} tokens/s = {m['tokens_per_s'] / torch:.3f}x")
PYTHON
