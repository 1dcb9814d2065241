#!/usr/bin/env bash
# Lint, types and tests. Arguments are passed on to pytest, such as -m slow.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/environment.sh

install_package "[dev]"

say "ruff"
.venv/bin/ruff check .
.venv/bin/ruff format --check .

say "mypy"
.venv/bin/mypy

say "pytest"
exec .venv/bin/python -m pytest --numprocesses=auto --maxprocesses=4 --dist=worksteal "$@"
