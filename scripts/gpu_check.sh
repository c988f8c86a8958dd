#!/usr/bin/env bash
# `make gpu-check` where there is an NVIDIA GPU. Limits, clocks and modes stay as they are:
#   meter    counter and power sensor against each other        docs/results/gpu-check-*
#   tests    the torch engine's tests, which need the GPU
#   profile  sweep and fit of a real model's shape with random bf16 weights: on vLLM where PYTHON has
#            it, else on a plain torch engine with CUDA graphs  docs/results/profile-*, configs/profiles
# PYTHON needs no set-up by this project, only the packages that are checked first. PARTS chooses among
# the three, SHAPE is one of configs/models/shapes.yaml, ARCHIVE packs what was written.
set -uo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3} PARTS=${PARTS:-meter tests profile} SHAPE=${SHAPE:-llama-3.1-8b}
BUDGET_S=${BUDGET_S:-360} MAX_NUM_SEQS=${MAX_NUM_SEQS:-64} MAX_MODEL_LEN=${MAX_MODEL_LEN:-2048}
export CUDA_VISIBLE_DEVICES=${CUDA_VISIBLE_DEVICES:-0} PYTHONPATH=$PWD PYTHONUNBUFFERED=1
say() { printf '\033[1mgpu-check\033[0m  %s\n' "$*" >&2; }
jouleserve() { "$PYTHON" -m serve_app.cli.main "$@"; }
has() { case " $PARTS " in *" $1 "*) true ;; *) false ;; esac; }

for part in $PARTS; do
  case $part in meter | tests | profile) ;; *) say "PARTS: $part; allowed: meter, tests, profile"; exit 2 ;; esac
done
"$PYTHON" - <<'PY' || exit 2
import importlib.util, sys
needed = "torch typer rich psutil yaml numpy scipy pynvml pyarrow matplotlib".split()
lacking = [name for name in needed if importlib.util.find_spec(name) is None]
if lacking:
    sys.exit(f"gpu-check: {sys.executable} lacks {', '.join(lacking)}: make gpu-check PYTHON=...")
PY
gpu=$(nvidia-smi --query-gpu=name --format=csv,noheader -i "${CUDA_VISIBLE_DEVICES%%,*}" | head -1)
gpu=$(echo "$gpu" | tr '[:upper:]' '[:lower:]' | sed -E 's/^nvidia //; s/[^a-z0-9]+.*$//')
[ -n "$gpu" ] || { say "nvidia-smi names no GPU"; exit 1; }

status=0
if has meter; then
  say "the meter of this $gpu"
  jouleserve gpu-check --out "docs/results/gpu-check-$gpu-$(date +%F)" || status=$?
fi
if has tests; then
  say "the torch engine's tests"
  "$PYTHON" -m pytest -c /dev/null --rootdir=. --import-mode=importlib -p no:cacheprovider -q \
    tests/profiler/test_torch_engine.py tests/profiler/test_torch_step.py \
    tests/profiler/test_batching.py || status=$?
fi
if has profile; then
  engine=torch
  "$PYTHON" -c "import vllm" 2>/dev/null && engine=vllm
  name=$SHAPE@$gpu-$engine
  say "profile of $SHAPE on $engine"
  extra=(--engine "$engine")
  [ "$engine" = vllm ] && extra+=(--random-weights)
  jouleserve profile "$SHAPE" "${extra[@]}" --max-num-seqs "$MAX_NUM_SEQS" \
    --max-model-len "$MAX_MODEL_LEN" --duration-budget-s "$BUDGET_S" \
    --out "configs/profiles/$name.yaml" --samples "docs/results/profile-$name" \
    --picture "docs/results/profile-$name/fit.png" | tee "/tmp/fit-$$.txt"
  profiled=${PIPESTATUS[0]}
  [ -d "docs/results/profile-$name" ] && mv "/tmp/fit-$$.txt" "docs/results/profile-$name/fit.txt"
  rm -f "/tmp/fit-$$.txt"
  # 1: fitted, but not exactly enough to act on; the file says so.
  [ "$profiled" -le 1 ] || status=$profiled
fi
say "to commit: $(git status --short docs/results configs/profiles 2>/dev/null | awk '{print $2}' | tr '\n' ' ')"
if [ -n "${ARCHIVE:-}" ]; then
  tar czf "$ARCHIVE" docs/results/gpu-check-"$gpu"-* docs/results/profile-*@"$gpu"-* \
    configs/profiles/*@"$gpu"-*.yaml 2>/dev/null
  say "packed into $ARCHIVE"
fi
exit "$status"
