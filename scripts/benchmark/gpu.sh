#!/usr/bin/env bash
# All that a GPU has to show, in two parts of at most nine minutes each:
#   bash scripts/benchmark/gpu.sh 1    correctness, then throughput beside PyTorch
#   bash scripts/benchmark/gpu.sh 2    200 runs of the speed record, then resnet_v2's 60 epochs
# Further arguments go to the trainings, such as --config.data.dir=DIR. PYTHON names the interpreter.
set -euo pipefail
cd "$(dirname "$0")/../.."
part=${1:?"which part: 1 or 2"}
shift
python=${PYTHON:-python}
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}

case $part in
1)
  "$python" scripts/benchmark agree
  "$python" scripts/benchmark --model=resnet_small,resnet_v2,resnet18 --batch=512 --dtype=bfloat16 \
    --peer=torch --rounds=5 --json=results/benchmark-gpu.json
  "$python" scripts/benchmark --model=resnet50 --image-size=224 --batch=256 --dtype=bfloat16 \
    --peer=torch --rounds=5 --json=results/benchmark-gpu-224.json
  ;;
2)
  "$python" scripts/speedrun.py --seeds=200 --json=results/speedrun94-gpu.json
  "$python" scripts/reproduce.py --rows=R2.V2.SGD --budget=5m "$@"
  ;;
*)
  echo "error: there are the parts 1 and 2, not $part" >&2
  exit 2
  ;;
esac
