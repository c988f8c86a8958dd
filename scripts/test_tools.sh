#!/usr/bin/env bash
# Prometheus, promtool and Alertmanager for the tests: those on PATH, else Debian's packages unpacked
# into the user's cache, without root and without a daemon. Never fails: where neither is to be had,
# the tests that need them skip and say so.
set -uo pipefail
case ${XDG_CACHE_HOME:-} in /*) cache=$XDG_CACHE_HOME ;; *) cache=~/.cache ;; esac
tools=${JOULESERVE_CACHE:-$cache/jouleserve}/tools
say() { printf '\033[1mjouleserve tools\033[0m  %s\n' "$*" >&2; }
have() { [ -x "$tools/usr/bin/$1" ] || command -v "$1" >/dev/null; }

missing=()
have prometheus && have promtool || missing+=(prometheus)
have prometheus-alertmanager || have alertmanager || missing+=(prometheus-alertmanager)
[ ${#missing[@]} -eq 0 ] && exit 0
why() { say "no ${missing[*]}: $1. The tests that need it are skipped."; exit 0; }
command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null || why "this is no Debian or Ubuntu"

mkdir -p "$tools" && work=$(mktemp -d "$tools/work.XXXXXX") || why "$tools cannot be written"
trap 'rm -rf "$work"' EXIT
mkdir -p "$work"/{lists,cache/archives}/partial "$work"/{debs,root}
# Lists and cache of its own: those of the system belong to root.
options=(-qq -o "Dir::State::lists=$work/lists" -o "Dir::Cache=$work/cache"
  -o Debug::NoLocking=true -o APT::Sandbox::User= -o Acquire::Languages=none
  -o Acquire::Retries=0 -o Acquire::http::Timeout=10 -o Acquire::https::Timeout=10)
timeout 120 apt-get "${options[@]}" update >"$work/log" 2>&1 || why "apt-get update failed: $(tail -1 "$work/log")"
(cd "$work/debs" && timeout 120 apt-get "${options[@]}" download "${missing[@]}") >"$work/log" 2>&1 ||
  why "apt-get download failed: $(tail -1 "$work/log")"
for package in "$work"/debs/*.deb; do
  dpkg-deb -x "$package" "$work/root" || why "$(basename "$package") cannot be unpacked"
done
# Debian's Alertmanager has the path of its templates built in: the same below the folder that it is
# started in, in as many bytes.
manager=$work/root/usr/bin/prometheus-alertmanager
[ ! -e "$manager" ] || LC_ALL=C sed -i \
  's|/usr/share/prometheus/alertmanager|usr/share/prometheus/alertmanager/|g' "$manager"
# Moved in one by one and whole: a second run beside this one sees a tool or none.
mkdir -p "$tools/usr/bin" "$tools/usr/share/prometheus/alertmanager" &&
  { [ ! -e "$manager" ] || mv -f "$work"/root/usr/share/prometheus/alertmanager/*.tmpl "$tools/usr/share/prometheus/alertmanager"; } &&
  mv -f "$work"/root/usr/bin/* "$tools/usr/bin/" || why "$tools cannot be written"
say "${missing[*]} ready in $tools"
