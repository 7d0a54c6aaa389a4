-- Judging an index on one's own queries, questions made from a corpus, runs in TREC's format, and profiles.

CREATE TYPE situ.evaluation AS (
    measure text,
    value double precision,
    low double precision,
    high double precision,
    queries bigint,
    compared double precision,
    compared_low double precision,
    compared_high double precision,
    difference double precision,
    difference_low double precision,
    difference_high double precision,
    gain double precision,
    gain_low double precision,
    gain_high double precision,
    p double precision,
    p_t double precision
);
COMMENT ON TYPE situ.evaluation IS
    'one measure: mean and 95 % bootstrap interval, the same of a second run, their paired difference, relative gain and p-values';

CREATE FUNCTION situ.evaluate(
    index regclass,
    queries regclass,
    qrels regclass,
    options situ.query DEFAULT NULL,
    compare situ.query DEFAULT NULL,
    k bigint DEFAULT 10,
    depth bigint DEFAULT 100,
    key text DEFAULT NULL,
    seed bigint DEFAULT 0
) RETURNS SETOF situ.evaluation
    LANGUAGE c STABLE PARALLEL RESTRICTED COST 1000000 ROWS 6 AS 'MODULE_PATHNAME', 'evaluate_wrapper';
COMMENT ON FUNCTION situ.evaluate(regclass, regclass, regclass, situ.query, situ.query, bigint, bigint, text, bigint) IS
    'nDCG@k, MAP, MRR and recall of an index for judged queries, beside a second set of options';

CREATE FUNCTION situ.evaluate_queries(
    index regclass,
    queries regclass,
    qrels regclass,
    options situ.query DEFAULT NULL,
    compare situ.query DEFAULT NULL,
    k bigint DEFAULT 10,
    depth bigint DEFAULT 100,
    key text DEFAULT NULL,
    OUT query_id text,
    OUT measure text,
    OUT value double precision,
    OUT compared double precision
) RETURNS SETOF record
    LANGUAGE c STABLE PARALLEL RESTRICTED COST 1000000 ROWS 1000 AS 'MODULE_PATHNAME', 'evaluate_queries_wrapper';
COMMENT ON FUNCTION situ.evaluate_queries(regclass, regclass, regclass, situ.query, situ.query, bigint, bigint, text) IS
    'the measures of situ.evaluate query by query, with the milliseconds of each search';

CREATE FUNCTION situ.evaluate_run(
    run regclass,
    qrels regclass,
    compare regclass DEFAULT NULL,
    k bigint DEFAULT 10,
    depth bigint DEFAULT 100,
    seed bigint DEFAULT 0
) RETURNS SETOF situ.evaluation
    LANGUAGE c STABLE PARALLEL RESTRICTED COST 100000 ROWS 6 AS 'MODULE_PATHNAME', 'evaluate_run_wrapper';
COMMENT ON FUNCTION situ.evaluate_run(regclass, regclass, regclass, bigint, bigint, bigint) IS
    'the measures of a run (query_id, document_id, score), whoever made it, and of a second one';

CREATE FUNCTION situ.compare(base double precision[], other double precision[], seed bigint DEFAULT 0)
    RETURNS SETOF situ.evaluation
    LANGUAGE c IMMUTABLE PARALLEL SAFE COST 10000 ROWS 1 AS 'MODULE_PATHNAME', 'compare_wrapper';
COMMENT ON FUNCTION situ.compare(double precision[], double precision[], bigint) IS
    'two runs beside each other by the values of the same queries in the same order';

CREATE FUNCTION situ.search_batch(
    index regclass,
    queries regclass,
    options situ.query DEFAULT NULL,
    k bigint DEFAULT 100,
    key text DEFAULT NULL,
    OUT query_id text,
    OUT document_id text,
    OUT rank bigint,
    OUT score double precision
) RETURNS SETOF record
    LANGUAGE c STABLE PARALLEL RESTRICTED COST 1000000 ROWS 10000 AS 'MODULE_PATHNAME', 'search_batch_wrapper';
COMMENT ON FUNCTION situ.search_batch(regclass, regclass, situ.query, bigint, text) IS
    'the k nearest documents of every query';

CREATE FUNCTION situ.read_run(
    run text,
    OUT query_id text,
    OUT document_id text,
    OUT rank bigint,
    OUT score double precision,
    OUT tag text
) RETURNS SETOF record
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE ROWS 10000 AS 'MODULE_PATHNAME', 'read_run_wrapper';
COMMENT ON FUNCTION situ.read_run(text) IS 'the lines of a run in TREC''s format: query Q0 document rank score tag';

CREATE FUNCTION situ.read_qrels(
    qrels text,
    OUT query_id text,
    OUT document_id text,
    OUT grade double precision
) RETURNS SETOF record
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE ROWS 10000 AS 'MODULE_PATHNAME', 'read_qrels_wrapper';
COMMENT ON FUNCTION situ.read_qrels(text) IS 'the lines of judgements in TREC''s format: query 0 document grade';

CREATE FUNCTION situ.write_run(
    query_id text,
    document_id text,
    rank bigint,
    score double precision,
    tag text DEFAULT 'situ'
) RETURNS text
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'write_run_wrapper';
COMMENT ON FUNCTION situ.write_run(text, text, bigint, double precision, text) IS 'one line of a run in TREC''s format';

CREATE FUNCTION situ.write_qrels(query_id text, document_id text, grade double precision) RETURNS text
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'write_qrels_wrapper';
COMMENT ON FUNCTION situ.write_qrels(text, text, double precision) IS 'one line of judgements in TREC''s format';

CREATE FUNCTION situ.make_queries(
    index regclass,
    kind text DEFAULT 'span16',
    n bigint DEFAULT 200,
    seed bigint DEFAULT 0,
    key text DEFAULT NULL,
    part_from double precision DEFAULT 0,
    part_to double precision DEFAULT 1,
    OUT id text,
    OUT text text,
    OUT document_id text
) RETURNS SETOF record
    LANGUAGE c STABLE PARALLEL RESTRICTED COST 100000 ROWS 200 AS 'MODULE_PATHNAME', 'make_queries_wrapper';
COMMENT ON FUNCTION situ.make_queries(regclass, text, bigint, bigint, text, double precision, double precision) IS
    'n questions made from the documents of a text index: span16, span8, keyword or sentence';

-- Profiles.

CREATE TABLE situ.profiles (
    index text NOT NULL,
    name text NOT NULL CHECK (name <> ''),
    options jsonb NOT NULL,
    measure text NOT NULL,
    figures jsonb NOT NULL,
    tuned_by situ.role NOT NULL,
    tuned_at timestamptz NOT NULL DEFAULT pg_catalog.now(),
    PRIMARY KEY (index, name)
);
COMMENT ON TABLE situ.profiles IS
    'options for situ.query(..., profile => name) by index (schema-qualified); written by situ.tune and situ.drop_profile, dumped with the database';
GRANT SELECT ON situ.profiles TO PUBLIC;
GRANT INSERT ON situ.profiles TO pg_database_owner;
SELECT pg_catalog.pg_extension_config_dump('situ.profiles', '');

CREATE FUNCTION situ.tune(
    index regclass,
    queries regclass,
    qrels regclass,
    name text DEFAULT 'best',
    measure text DEFAULT 'ndcg@10',
    candidates situ.query[] DEFAULT NULL,
    depth bigint DEFAULT 100,
    key text DEFAULT NULL,
    seed bigint DEFAULT 0,
    OUT options jsonb,
    OUT value double precision,
    OUT chosen boolean,
    OUT confirmed boolean,
    OUT held_out double precision,
    OUT held_out_plain double precision,
    OUT difference double precision,
    OUT difference_low double precision,
    OUT difference_high double precision,
    OUT p double precision
) RETURNS SETOF record
    LANGUAGE c VOLATILE PARALLEL UNSAFE COST 1000000 ROWS 10 AS 'MODULE_PATHNAME', 'tune_wrapper';
COMMENT ON FUNCTION situ.tune(regclass, regclass, regclass, text, text, situ.query[], bigint, text, bigint) IS
    'chooses search options by judged queries, confirms them on held-out ones, stores them as a profile';

CREATE FUNCTION situ.drop_profile(index regclass, name text) RETURNS void
    LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'drop_profile_wrapper';
COMMENT ON FUNCTION situ.drop_profile(regclass, text) IS 'removes a profile of an index; for the owner of the index';
