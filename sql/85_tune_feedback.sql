-- The calibration of feedback's gate.

CREATE FUNCTION situ.tune_feedback(
    index regclass,
    queries regclass DEFAULT NULL,
    qrels regclass DEFAULT NULL,
    kind text DEFAULT 'span8',
    n bigint DEFAULT 400,
    key text DEFAULT NULL,
    seed bigint DEFAULT 0,
    OUT strength real,
    OUT sharp integer,
    OUT blunt integer,
    OUT threshold double precision,
    OUT ndcg double precision,
    OUT map double precision,
    OUT mrr double precision,
    OUT recall double precision,
    OUT ndcg_low double precision,
    OUT mrr_low double precision,
    OUT safe boolean,
    OUT chosen boolean
) RETURNS SETOF record
    LANGUAGE c VOLATILE PARALLEL UNSAFE COST 1000000 ROWS 21 AS 'MODULE_PATHNAME', 'tune_feedback_wrapper';
COMMENT ON FUNCTION situ.tune_feedback(regclass, regclass, regclass, text, bigint, text, bigint) IS
    'calibrates feedback => ''gated'' for an index, on judged queries or on spans of its own documents';
