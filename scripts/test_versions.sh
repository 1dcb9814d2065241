#!/usr/bin/env bash
# The core of the tests with newer jax and flax, in each newer Python that is here (pyenv's too).
# Arguments are passed on to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/environment.sh

core=(tests/test_{checkpoints,config,driver,inference,loop,main,models,package,recorder,step}.py)

tested=
for version in 3.12 3.13; do
  python=
  for candidate in "python$version" "${PYENV_ROOT:-${HOME:-}/.pyenv}/versions/$version".*/bin/python; do
    if "$candidate" -c '' 2>/dev/null; then python=$candidate; fi
  done
  if [ -z "$python" ]; then
    say "Python $version is not here: passed over"
    continue
  fi
  say "Python $version, jax 0.12, flax 0.12.12"
  venv=.venv-$version
  "$python" -m venv "$venv"
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    "jax==0.12.*" "flax==0.12.12" pytest --editable .
  "$venv/bin/python" -m pip list --disable-pip-version-check | grep -E '^(jax|flax|numpy) '
  "$venv/bin/python" -m pytest "${core[@]}" "$@"
  tested=1
done
[ -n "$tested" ] || fail "neither Python 3.12 nor 3.13 is here: nothing was tested"
