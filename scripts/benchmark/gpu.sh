#!/usr/bin/env bash
# All that a GPU has to show, in three parts; their limits are below, their lengths not measured yet:
#   bash scripts/benchmark/gpu.sh 1    correctness, then throughput beside PyTorch    (8 minutes)
#   bash scripts/benchmark/gpu.sh 2    200 runs of the speed record, then the 60 epochs of resnet_v2
#                                      (8 minutes)
#   bash scripts/benchmark/gpu.sh 3    throughput of ResNet-50 at 224 pixels          (3 minutes)
# PYTHON names the interpreter, DATA the folder of CIFAR-10, RESULTS the folder of what is measured.
# What fails or takes too long does not keep the rest from being measured; the status tells of it.
set -euo pipefail
cd "$(dirname "$0")/../.."
part=${1:?"which part: 1, 2 or 3"}
python=${PYTHON:-python}
results=${RESULTS:-results}
export JAX_PLATFORMS=cuda,cpu
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
failed=0

try() {  # MINUTES ARGUMENTS OF PYTHON...: interrupted, a training saves its step
  timeout --foreground --signal=INT --kill-after=20s "$1m" "$python" "${@:2}" || failed=1
}

throughput() {  # MINUTES FILE FLAGS...
  try "$1" scripts/benchmark --dtype=bfloat16 --peer=torch --rounds=5 "${@:3}" --json="$results/$2"
}

has_gpu() {
  "$python" -c "import $1; raise SystemExit(not $2 and 'error: $1 has no GPU')"
}

has_gpu jax 'jax.default_backend() == "gpu"'
mkdir -p "$results"
case $part in
1)
  has_gpu torch 'torch.cuda.is_available()'
  try 2 scripts/benchmark agree
  for model in resnet_small resnet_v2 resnet18; do
    throughput 2 "benchmark-gpu-$model.json" --model=$model --batch=512
  done
  ;;
2)
  "$python" scripts/fetch_cifar10.py ${DATA:+--source=folder --dir="$DATA"}
  try 4 scripts/speedrun.py --optimizer=muon --seeds=200 ${DATA:+--data-dir="$DATA"} \
    --json="$results/speedrun94-gpu.json"
  # Then `python scripts/reproduce.py --record RUN "resnet_v2.py --config.model.dtype=bfloat16"`
  # keeps its record.
  try 4 -m resnet_jax.main --config=resnet_v2 --workdir="${RESULTS:-runs}/resnet_v2" \
    --config.model.dtype=bfloat16 \
    ${DATA:+--config.data.dir="$DATA"}
  ;;
3)
  has_gpu torch 'torch.cuda.is_available()'
  throughput 3 benchmark-gpu-resnet50.json --model=resnet50 --image-size=224 --batch=256
  ;;
*)
  echo "error: there are the parts 1 to 3, not $part" >&2
  exit 2
  ;;
esac
exit $failed
