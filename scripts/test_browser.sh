#!/usr/bin/env bash
# Chromium for the tests of the page: the one on PATH, else Debian's, which needs root because of the
# libraries that it brings. Never fails: without a browser those tests skip and say so.
# JOULESERVE_NO_BROWSER=1: install nothing.
set -uo pipefail
say() { printf '\033[1mjouleserve tools\033[0m  %s\n' "$*" >&2; }
for name in chromium chromium-browser google-chrome; do
  command -v "$name" >/dev/null && exit 0
done
why() { say "no Chromium: $1. The tests of the page in a browser are skipped."; exit 0; }
[ -z "${JOULESERVE_NO_BROWSER:-}" ] || why "JOULESERVE_NO_BROWSER is set"
command -v apt-get >/dev/null || why "this is no Debian or Ubuntu"
[ "$(id -u)" = 0 ] || why "installing it needs root (apt-get install chromium)"
log=$(mktemp) && trap 'rm -f "$log"' EXIT
export DEBIAN_FRONTEND=noninteractive
get=(timeout 300 apt-get -qq -o Acquire::Retries=0 -o Acquire::http::Timeout=10)
install() { "${get[@]}" install -y --no-install-recommends chromium >"$log" 2>&1; }
say "installing Chromium for the tests of the page"
install || { "${get[@]}" update >"$log" 2>&1 && install; } || why "apt-get failed: $(tail -1 "$log")"
