#!/usr/bin/env bash
# All that a GPU has to show, in two parts of at most nine minutes each (expected, not measured):
#   bash scripts/benchmark/gpu.sh 1    correctness, then throughput beside PyTorch
#   bash scripts/benchmark/gpu.sh 2    resnet_v2's 60 epochs, then 200 runs of the speed record
# PYTHON names the interpreter, DATA the folder of CIFAR-10. Where the GPU can't be used it fails.
set -euo pipefail
cd "$(dirname "$0")/../.."
part=${1:?"which part: 1 or 2"}
python=${PYTHON:-python}
export JAX_PLATFORMS=cuda,cpu
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}

"$python" -c 'import jax; raise SystemExit(jax.default_backend() != "gpu" and "error: jax has no GPU")'

case $part in
1)
  "$python" -c 'import torch; raise SystemExit(not torch.cuda.is_available() and "error: PyTorch has no GPU")'
  "$python" scripts/benchmark agree
  "$python" scripts/benchmark --model=resnet_small,resnet_v2,resnet18 --batch=512 --dtype=bfloat16 \
    --peer=torch --rounds=5 --json=results/benchmark-gpu.json
  "$python" scripts/benchmark --model=resnet50 --image-size=224 --batch=256 --dtype=bfloat16 \
    --peer=torch --rounds=5 --json=results/benchmark-gpu-224.json
  ;;
2)
  "$python" scripts/reproduce.py --rows=R2.V2.SGD --budget=4m ${DATA:+--config.data.dir="$DATA"}
  "$python" scripts/speedrun.py --optimizer=muon --seeds=200 ${DATA:+--data-dir="$DATA"} \
    --json=results/speedrun94-gpu.json
  ;;
*)
  echo "error: there are the parts 1 and 2, not $part" >&2
  exit 2
  ;;
esac
