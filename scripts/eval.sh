#!/usr/bin/env bash
# Trains and judges every method on the judged sets, through SQL, in the demo's server.
#
#   EVAL=quick       a sample of each set, in minutes
#   EVAL_SETS=...    the names of the sets to take, instead of all (fairytaleqa, scifact, manual)
#   EVAL_DATA=...    the folder of the judged sets (default ../shared/data beside the checkout)
#   EVAL_PROFILE=dev the development build instead of the release build
. "$(dirname "$0")/common.sh"
cd "$ROOT"
data=${EVAL_DATA:-$ROOT/../shared/data}
"$ROOT/scripts/deps.sh" eval
library=$("$ROOT/scripts/build.sh" "${EVAL_PROFILE:-release}")
pg_config=$("$ROOT/scripts/server.sh" demo)
"$ROOT/scripts/models.sh" >/dev/null
if [ "$("$ROOT/scripts/install.sh" "$library" "$pg_config")" = changed ]; then
    "$ROOT/scripts/cluster.sh" restart
else
    "$ROOT/scripts/cluster.sh" start
fi
python3 "$ROOT/eval/methods/main.py" "$(dirname "$pg_config")/psql" "$("$ROOT/scripts/cluster.sh" socket)" "$data" \
    "$ROOT/target/eval" ${EVAL:+"$EVAL"} ${EVAL_SETS:-}
