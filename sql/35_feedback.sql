-- Feedback: the formulas over vectors, as functions and aggregates, and the calibrated gates.

CREATE FUNCTION situ.feedback_average(query @extschema:vector@.vector, feedback @extschema:vector@.vector[])
    RETURNS @extschema:vector@.vector
    LANGUAGE c IMMUTABLE PARALLEL SAFE AS 'MODULE_PATHNAME', 'feedback_average_wrapper';
COMMENT ON FUNCTION situ.feedback_average(@extschema:vector@.vector, @extschema:vector@.vector[]) IS
    'the mean of a query and passages: (q + p1 + ... + pk) / (k + 1)';

CREATE FUNCTION situ.feedback_rocchio(
    query @extschema:vector@.vector,
    positive @extschema:vector@.vector[],
    negative @extschema:vector@.vector[] DEFAULT NULL,
    alpha real DEFAULT 0.4,
    beta real DEFAULT 0.6,
    gamma real DEFAULT 0.1
) RETURNS @extschema:vector@.vector
    LANGUAGE c IMMUTABLE PARALLEL SAFE AS 'MODULE_PATHNAME', 'feedback_rocchio_wrapper';
COMMENT ON FUNCTION situ.feedback_rocchio(@extschema:vector@.vector, @extschema:vector@.vector[], @extschema:vector@.vector[], real, real, real) IS
    'alpha q + beta mean(positive) - gamma mean(negative)';

CREATE TYPE situ_internal.feedback_state AS (
    query @extschema:vector@.vector,
    positive @extschema:vector@.vector[],
    negative @extschema:vector@.vector[],
    alpha real,
    beta real,
    gamma real
);
COMMENT ON TYPE situ_internal.feedback_state IS 'what the aggregates of feedback have collected';

CREATE FUNCTION situ_internal.feedback_collect(
    state situ_internal.feedback_state,
    query @extschema:vector@.vector,
    passage @extschema:vector@.vector,
    relevant boolean,
    alpha real,
    beta real,
    gamma real
) RETURNS situ_internal.feedback_state
    LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT ROW(
        coalesce((state).query, query),
        CASE WHEN passage IS NOT NULL AND coalesce(relevant, true)
             THEN pg_catalog.array_append((state).positive, passage) ELSE (state).positive END,
        CASE WHEN passage IS NOT NULL AND NOT coalesce(relevant, true)
             THEN pg_catalog.array_append((state).negative, passage) ELSE (state).negative END,
        coalesce((state).alpha, alpha), coalesce((state).beta, beta), coalesce((state).gamma, gamma)
    )::situ_internal.feedback_state
$$;
COMMENT ON FUNCTION situ_internal.feedback_collect(situ_internal.feedback_state, @extschema:vector@.vector, @extschema:vector@.vector, boolean, real, real, real) IS
    'step of situ.feedback_rocchio_agg';

CREATE FUNCTION situ_internal.feedback_collect(
    state situ_internal.feedback_state,
    query @extschema:vector@.vector,
    passage @extschema:vector@.vector
) RETURNS situ_internal.feedback_state
    LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT situ_internal.feedback_collect(state, query, passage, true, NULL, NULL, NULL)
$$;
COMMENT ON FUNCTION situ_internal.feedback_collect(situ_internal.feedback_state, @extschema:vector@.vector, @extschema:vector@.vector) IS
    'step of situ.feedback_average_agg';

CREATE FUNCTION situ_internal.feedback_average_final(state situ_internal.feedback_state) RETURNS @extschema:vector@.vector
    LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$ SELECT situ.feedback_average((state).query, (state).positive) $$;
COMMENT ON FUNCTION situ_internal.feedback_average_final(situ_internal.feedback_state) IS 'end of situ.feedback_average_agg';

CREATE FUNCTION situ_internal.feedback_rocchio_final(state situ_internal.feedback_state) RETURNS @extschema:vector@.vector
    LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT situ.feedback_rocchio((state).query, (state).positive, (state).negative, (state).alpha, (state).beta, (state).gamma)
$$;
COMMENT ON FUNCTION situ_internal.feedback_rocchio_final(situ_internal.feedback_state) IS 'end of situ.feedback_rocchio_agg';

CREATE AGGREGATE situ.feedback_average_agg(query @extschema:vector@.vector, passage @extschema:vector@.vector) (
    SFUNC = situ_internal.feedback_collect,
    STYPE = situ_internal.feedback_state,
    FINALFUNC = situ_internal.feedback_average_final,
    PARALLEL = SAFE
);
COMMENT ON AGGREGATE situ.feedback_average_agg(@extschema:vector@.vector, @extschema:vector@.vector) IS
    'situ.feedback_average over rows';

CREATE AGGREGATE situ.feedback_rocchio_agg(
    query @extschema:vector@.vector,
    passage @extschema:vector@.vector,
    relevant boolean,
    alpha real,
    beta real,
    gamma real
) (
    SFUNC = situ_internal.feedback_collect,
    STYPE = situ_internal.feedback_state,
    FINALFUNC = situ_internal.feedback_rocchio_final,
    PARALLEL = SAFE
);
COMMENT ON AGGREGATE situ.feedback_rocchio_agg(@extschema:vector@.vector, @extschema:vector@.vector, boolean, real, real, real) IS
    'situ.feedback_rocchio over rows: relevant says on which side a passage counts';

CREATE TABLE situ.feedback_gates (
    index text PRIMARY KEY,
    gate jsonb NOT NULL,
    figures jsonb NOT NULL,
    tuned_by situ.role NOT NULL,
    tuned_at timestamptz NOT NULL DEFAULT pg_catalog.now()
);
COMMENT ON TABLE situ.feedback_gates IS
    'gates of feedback => ''gated'' by index (schema-qualified); written by situ.tune_feedback and situ.drop_feedback_gate, dumped with the database';
GRANT SELECT ON situ.feedback_gates TO PUBLIC;
GRANT INSERT ON situ.feedback_gates TO pg_database_owner;
SELECT pg_catalog.pg_extension_config_dump('situ.feedback_gates', '');

CREATE FUNCTION situ_internal.feedback_gates_changed() RETURNS trigger
    LANGUAGE c AS 'MODULE_PATHNAME', 'situ_feedback_gates_changed';
COMMENT ON FUNCTION situ_internal.feedback_gates_changed() IS 'makes every backend read the gates again';
CREATE TRIGGER changed AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON situ.feedback_gates
    FOR EACH STATEMENT EXECUTE FUNCTION situ_internal.feedback_gates_changed();
ALTER TABLE situ.feedback_gates ENABLE ALWAYS TRIGGER changed;

CREATE FUNCTION situ.drop_feedback_gate(index regclass) RETURNS void
    LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'drop_feedback_gate_wrapper';
COMMENT ON FUNCTION situ.drop_feedback_gate(regclass) IS 'removes the gate of an index; for the owner of the index';

CREATE FUNCTION situ.feedback_text(query text, passages text[], model text) RETURNS @extschema:vector@.vector
    LANGUAGE c STABLE PARALLEL SAFE COST 10000 AS 'MODULE_PATHNAME', 'feedback_text_wrapper';
COMMENT ON FUNCTION situ.feedback_text(text, text[], text) IS
    'vector of a query read together with the texts of passages, nearest first (ANCE-PRF)';
