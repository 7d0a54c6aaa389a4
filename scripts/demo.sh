#!/usr/bin/env bash
# The demo: from a fresh machine to questions answered from the PostgreSQL manual. What is there is reused.
#
#   DEMO=full   the whole manual instead of the parts on administration and on the SQL commands
. "$(dirname "$0")/common.sh"
scope=${DEMO:-parts}
cd "$ROOT"
begin=$SECONDS
step() { note "[$((SECONDS - begin)) s] $*"; }

step "1/6 packages, the server and the model"
"$ROOT/scripts/deps.sh" demo

step "2/6 the extension, release build (some minutes the first time)"
library=$("$ROOT/scripts/build.sh" release)

step "3/6 a private cluster"
pg_config=$("$ROOT/scripts/server.sh" demo)
"$ROOT/scripts/models.sh" >/dev/null
if [ "$("$ROOT/scripts/install.sh" "$library" "$pg_config")" = changed ]; then
    "$ROOT/scripts/cluster.sh" restart
else
    "$ROOT/scripts/cluster.sh" start
fi
bin=$(dirname "$pg_config")
socket=$("$ROOT/scripts/cluster.sh" socket)
ask() { (cd / && PGOPTIONS='-c client_min_messages=warning' as_server "$bin/psql" -X -q -v ON_ERROR_STOP=1 -h "$socket" -U postgres "$@"); }

# What the index was made from: another library, other SQL or another part of the manual make it anew.
made_from="$(cat "$library" "$("$pg_config" --sharedir)/extension/situ--"*.sql "$ROOT/demo/manual.py" | sha256sum | cut -c1-64) $scope"
database=$(ask -At -d postgres -c "SELECT coalesce((SELECT shobj_description(oid, 'pg_database') FROM pg_database WHERE datname = 'demo'), '')")

if [ "$database" = "$made_from" ]; then
    step "4/6 the manual is loaded"
    step "5/6 the index is there"
else
    step "4/6 loading the manual"
    ask -d postgres -c 'DROP DATABASE IF EXISTS demo WITH (FORCE)' -c 'CREATE DATABASE demo'
    ask -d demo -c 'CREATE TABLE docs (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, path text, part text, title text, body text)'
    python3 "$ROOT/demo/manual.py" /usr/share/doc/postgresql-doc-15/html "$scope" |
        ask -d demo -c 'COPY docs (path, part, title, body) FROM STDIN WITH (FORMAT csv)'
    ask -d demo -c 'VACUUM ANALYZE docs'
    ask -At -d demo -c "SELECT '    ' || count(*) || ' pages, ' || sum(length(body)) || ' characters' FROM docs"

    step "5/6 CREATE INDEX docs_body ON docs USING situ (body, title situ_title_ops) WITH (model = 'minilm')"
    ask -d demo -c 'CREATE EXTENSION situ CASCADE' -c "SELECT situ.register_model('minilm', 'minilm')" >/dev/null
    ask -d demo -c "CREATE INDEX docs_body ON docs USING situ (body, title situ_title_ops) WITH (model = 'minilm')" &
    build=$!
    shown=
    while kill -0 "$build" 2>/dev/null; do
        line=$(ask -At -F ' ' -d demo -c "SELECT '    ' || phase || coalesce(': ' || nullif(tuples_done, 0) || coalesce(' of ' || nullif(tuples_total, 0), '') || ' rows', ': ' || nullif(blocks_done, 0) || coalesce(' of ' || nullif(blocks_total, 0), '') || ' blocks', '') FROM pg_stat_progress_create_index" 2>/dev/null | head -1 || true)
        if [ -n "$line" ]; then
            line="$line, $((SECONDS - begin)) s"
            if [ -t 2 ]; then
                printf '\r\033[K%s' "$line" >&2
            elif [ -z "$shown" ] || [ $((SECONDS - shown)) -ge 10 ]; then
                printf '%s\n' "$line" >&2
                shown=$SECONDS
            fi
        fi
        sleep 1
    done
    if [ -t 2 ]; then printf '\r\033[K' >&2; fi
    wait "$build" || fail "CREATE INDEX failed; the server's log is $SITU_RUN/demo-$PG/log"
    ask -d demo -c "COMMENT ON DATABASE demo IS '$made_from'"
fi

step "6/6 questions"
width=$(( $(tput cols 2>/dev/null || echo 100) ))
if [ "$width" -lt 40 ] || [ "$width" -gt 120 ]; then width=100; fi
while IFS= read -r question; do
    printf '\n%s\n' "$question"
    ask -At -F $'\t' -d demo -v question="$question" <<'SQL' | while IFS=$'\t' read -r title distance passage; do
SELECT d.title, round(h.distance::numeric, 3), regexp_replace(h.passage, '\s+', ' ', 'g')
  FROM situ.search('docs_body', :'question', k => 3) h JOIN docs d ON d.tableoid = h.relation AND d.ctid = h.ctid ORDER BY h.distance;
SQL
        printf '  %s  %s\n' "$distance" "$title"
        printf '%s\n' "$passage" | fold -s -w $((width - 9)) | sed 's/^/         /'
    done
done <"$ROOT/demo/questions.txt"

echo
{
    echo "CREATE TEMP TABLE timing (ms float8);"
    while IFS= read -r question; do
        printf "DO \$do\$ DECLARE started timestamptz := clock_timestamp(); BEGIN PERFORM * FROM situ.search('docs_body', \$q\$%s\$q\$, k => 3); INSERT INTO timing VALUES (extract(epoch FROM clock_timestamp() - started) * 1000); END \$do\$;\n" "$question"
    done <"$ROOT/demo/questions.txt"
    cat <<'SQL'
SELECT rpad(what, 20) || value FROM (
    SELECT 1 AS n, 'documents' AS what, documents::text AS value FROM situ.stat_index WHERE indexrelid = 'docs_body'::regclass
    UNION ALL SELECT 2, 'chunks', chunks::text FROM situ.stat_index WHERE indexrelid = 'docs_body'::regclass
    UNION ALL SELECT 3, 'tokens', tokens::text FROM situ.stat_index WHERE indexrelid = 'docs_body'::regclass
    UNION ALL SELECT 4, 'seconds to encode', round(encode_seconds::numeric, 1)::text FROM situ.stat_index WHERE indexrelid = 'docs_body'::regclass
    UNION ALL SELECT 5, 'tokens per second', round((tokens / nullif(encode_seconds, 0))::numeric)::text FROM situ.stat_index WHERE indexrelid = 'docs_body'::regclass
    UNION ALL SELECT 6, 'index size', pg_size_pretty(pg_relation_size('docs_body'))
    UNION ALL SELECT 7, 'p50 of questions', round((percentile_cont(0.5) WITHIN GROUP (ORDER BY ms))::numeric, 1) || ' ms' FROM timing
) lines ORDER BY n;
SQL
} | ask -At -d demo
echo
step "done; the server stays up. Ask it yourself:"
cat <<TEXT

    $bin/psql -h $socket -U postgres demo
    demo=# SELECT d.title, h.distance, h.passage FROM situ.search('docs_body', 'how do I rename a table?', k => 3) h JOIN docs d ON d.tableoid = h.relation AND d.ctid = h.ctid ORDER BY h.distance;
    demo=# SELECT title FROM docs WHERE part = 'SQL Commands' ORDER BY body <=> 'how do I rename a table?' LIMIT 5;

    make stop            stops the server
    make clean-cluster   removes it
TEXT
