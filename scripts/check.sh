#!/usr/bin/env bash
# Format, lint, types, and the layers of rooms.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
scripts/setup.sh dev
export PATH="$PWD/.venv/bin:$PATH"
ruff format --check --quiet .
ruff check --quiet .
mypy --no-error-summary
lint-imports --no-cache >/dev/null || lint-imports --no-cache
echo "check: format, lint, types and rooms are right"
