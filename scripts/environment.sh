# Sourced by the other scripts: makes or reuses .venv in the project's folder.

say() { printf '\n== %s\n' "$*"; }
fail() { printf 'error: %s\n' "$*" >&2; exit 1; }

# Prints the name of a Python that is new enough.
find_python() {
  local candidate
  for candidate in python3 python3.14 python3.13 python3.12 python3.11 python; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  fail "Python 3.11 or newer is needed and was not found on the PATH"
}

# Installs the package with the extras $1 ("" or "[dev]"), unless just that was done before.
# The stamp is written last: an installation that was interrupted is done again.
install_package() {
  local extras=$1 stamp wanted python
  stamp=".venv/installed${extras//[^a-z]/}"
  wanted=$(cat pyproject.toml constraints.txt | cksum)
  if [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then
    say "Using the environment in .venv"
    return
  fi
  python=$(find_python) || exit 1
  say "Installing resnet_jax$extras into .venv (once, a few minutes)"
  "$python" -m venv .venv || fail "could not make .venv; is Python's venv module installed?"
  .venv/bin/python -m pip install --quiet --disable-pip-version-check \
    --constraint constraints.txt --editable ".$extras" ||
    fail "pip could not install the package; its message is above"
  echo "$wanted" >"$stamp"
}
