#!/usr/bin/env bash
# Trains projectors of xRAG and judges them on passages and questions that they never saw, through SQL, in the demo's server.
#
#   XRAG=quick          a sample, in some minutes
#   XRAG_SETS=...       the names of the sets to take, instead of all (fairytaleqa, hotpotqa_small)
#   XRAG_PASSAGES=n     passages to train on (default 16000; beyond those of the sets, of novels)
#   XRAG_TOKENS='1 4'   vectors a passage, a training for each (default 1)
#   XRAG_EPOCHS=n       times that each passage is trained on (default 1)
#   XRAG_QUESTIONS=n    questions of each set (default 300)
#   XRAG_STAGE=paraphrase   without the second stage, on questions and answers
#   XRAG_SITUATE=mode   a mode of situ.situate: vectors of passages among the others of their document
#   XRAG_OPTIONS=JSON   more options of situ.train
#   XRAG_SESSIONS=n     sessions that ask at once (default 4)
#   EVAL_DATA=...       the folder of the sets (default ../shared/data beside the checkout)
#   EVAL_PROFILE=dev    the development build instead of the release build
. "$(dirname "$0")/common.sh"
cd "$ROOT"
data=${EVAL_DATA:-$ROOT/../shared/data}
"$ROOT/scripts/deps.sh" check
library=$("$ROOT/scripts/build.sh" "${EVAL_PROFILE:-release}")
pg_config=$("$ROOT/scripts/server.sh" demo)
"$ROOT/scripts/models.sh" llm >/dev/null
if [ "$("$ROOT/scripts/install.sh" "$library" "$pg_config")" = changed ]; then
    "$ROOT/scripts/cluster.sh" restart
else
    "$ROOT/scripts/cluster.sh" start
fi
python3 "$ROOT/eval/xrag/main.py" "$(dirname "$pg_config")/psql" "$("$ROOT/scripts/cluster.sh" socket)" "$data" \
    ${XRAG:+"$XRAG"} ${XRAG_SETS:-}
