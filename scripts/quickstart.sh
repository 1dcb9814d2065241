#!/usr/bin/env bash
# From a clone to an accuracy: environment, CIFAR-10, training of configs/quickstart.py.
# Arguments are passed on to the training, such as --config.seed=1.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/environment.sh

install_package "[cpu,report]"

say "Getting CIFAR-10"
folder=
for argument in "$@"; do
  case $argument in --config.data.dir=*) folder=${argument#*=} ;; esac
done
status=0
.venv/bin/python scripts/fetch_cifar10.py ${folder:+--dir "$folder"} || status=$?
[ "$status" -lt 128 ] || exit "$status" # interrupted
if [ "$status" -ne 0 ]; then
  cat >&2 <<'WARNING'

  ###########################################################################
  #  CIFAR-10 could not be reached. Training goes on with the BUNDLED       #
  #  SAMPLE of 640 images: its accuracy says nothing about the model.       #
  ###########################################################################
WARNING
  set -- --config.data.name=sample "$@"
fi

# An interrupted run is resumed; a finished one is kept, and a new one begins beside it.
run=runs/quickstart
number=2
while grep -qs '"kind": "final"' "$run/metrics.jsonl"; do
  run=runs/quickstart-$number
  number=$((number + 1))
done

say "Training configs/quickstart.py in $run"
exec .venv/bin/python -m resnet_jax.main --config=configs/quickstart.py --workdir="$run" "$@"
