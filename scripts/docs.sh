#!/usr/bin/env bash
# Builds the documentation in build/docs, without a warning or not at all. Arguments are passed on to mkdocs.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/environment.sh

install_package "[docs]"

say "Building build/docs/index.html"
export NO_MKDOCS_2_WARNING=1 # an advertisement of the theme
exec .venv/bin/python -m mkdocs build --strict --config-file docs/mkdocs.yml "$@"
