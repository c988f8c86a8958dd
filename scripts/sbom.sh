#!/usr/bin/env bash
# A CycloneDX SBOM of what is installed beside PYTHON: scripts/sbom.sh PYTHON OUT.json
# The same environment gives the same file, byte for byte. In an image, run it with the image's Python.
set -euo pipefail
cd "$(dirname "$0")/.."
mkdir -p "$(dirname "$2")"
exec "$1" -m cyclonedx_py environment --pyproject pyproject.toml --output-reproducible \
  --no-validate --output-format JSON --output-file "$2" "$1"
