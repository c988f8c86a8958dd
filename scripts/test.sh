#!/usr/bin/env bash
# All tests, in three parts: those that start neither Ray nor vLLM in parallel; then those that do, one
# after the other, and beside them, at the lowest priority, those that only compute. Starts of engines
# leave a third of two cores idle.
set -uo pipefail
"$BIN/python" -m serve_app.simulator.compiled &
compiling=$!
bash scripts/test_tools.sh
bash scripts/test_browser.sh
engines="ray or vllm"
"$BIN/python" -m pytest -m "not ($engines) and not compute" $PARALLEL || exit
wait $compiling

said=$(mktemp)
nice -n 19 "$BIN/python" -m pytest -m "compute and not ($engines)" --timeout 1200 >"$said" 2>&1 &
computing=$!
trap 'kill $computing 2>/dev/null; rm -f "$said"' EXIT
"$BIN/python" -m pytest -m "$engines"
started=$?
echo "waiting for the tests that only compute"
wait $computing
computed=$?
cat "$said"
[ $started -eq 0 ] && [ $computed -eq 0 ]
