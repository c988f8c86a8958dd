#!/usr/bin/env bash
# Make the virtual environment: Python 3.11 or 3.12 in, everything for the CPU engine out.
# Safe to interrupt and run again: uv installs what is missing.
set -euo pipefail
started=$SECONDS
say() { printf '\033[1mjouleserve setup\033[0m  %s\n' "$*" >&2; }

version=$("$PYTHON" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
case $version in
  3.11 | 3.12) ;;
  *) say "needs Python 3.11 or 3.12, $PYTHON is $version: make PYTHON=python3.11 ..." && exit 2 ;;
esac
if [ ! -x "$VENV/bin/python" ] || ! "$VENV/bin/python" -c 'import pip' 2>/dev/null; then
  say "1/3 making $VENV with Python $version"
  "$PYTHON" -m venv --clear "$VENV" || { say "python3-venv is missing: install it and try again"; exit 2; }
fi
say "2/3 installing uv"
"$VENV/bin/python" -m pip install --quiet --disable-pip-version-check 'uv>=0.5' 2>&1 | grep -v '^WARNING' || true
# torch +cpu: from the folder that pip is configured with where there is one, else from PyTorch's own
# CPU index. uv does not read pip's configuration.
links=$("$VENV/bin/python" -m pip config get global.find-links 2>/dev/null || true)
links=${PIP_FIND_LINKS:-$links}
torch=(--torch-backend cpu)
if [ -n "$links" ]; then
  export UV_FIND_LINKS=${links// /,}
  torch=()
fi
say "3/3 installing Ray, vLLM for CPU and the tools (about 2.7 GB unpacked; two minutes with a fast line)"
# Compiled at once: each of the five processes of a replica's start would compile vLLM for itself.
"$VENV/bin/uv" pip install --compile-bytecode --python "$VENV/bin/python" "${torch[@]}" \
  --override requirements/cpu-overrides.txt -c requirements/cpu-constraints.txt -e '.[cpu,dev]'
say "ready after $((SECONDS - started)) s"
