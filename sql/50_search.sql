-- Search with evidence, and what the indexes hold.

CREATE FUNCTION situ.search(
    index regclass,
    query text,
    k bigint DEFAULT 10,
    column_name text DEFAULT NULL,
    OUT relation regclass,
    OUT ctid tid,
    OUT key text,
    OUT ordinal integer,
    OUT start_byte integer,
    OUT end_byte integer,
    OUT start_char integer,
    OUT end_char integer,
    OUT passage text,
    OUT distance double precision,
    OUT score double precision
) RETURNS SETOF record
    LANGUAGE c STABLE PARALLEL RESTRICTED COST 10000 ROWS 10 AS 'MODULE_PATHNAME', 'search_text_wrapper';
COMMENT ON FUNCTION situ.search(regclass, text, bigint, text) IS
    'the k rows nearest to a question in words, each with its nearest passage, as the caller may see them';

CREATE FUNCTION situ.search(
    index regclass,
    query situ.query,
    k bigint DEFAULT 10,
    column_name text DEFAULT NULL,
    OUT relation regclass,
    OUT ctid tid,
    OUT key text,
    OUT ordinal integer,
    OUT start_byte integer,
    OUT end_byte integer,
    OUT start_char integer,
    OUT end_char integer,
    OUT passage text,
    OUT distance double precision,
    OUT score double precision
) RETURNS SETOF record
    LANGUAGE c STABLE PARALLEL RESTRICTED COST 10000 ROWS 10 AS 'MODULE_PATHNAME', 'search_query_wrapper';
COMMENT ON FUNCTION situ.search(regclass, situ.query, bigint, text) IS
    'the k rows nearest to a question with options, over text each with its nearest passage';

CREATE FUNCTION situ.search(
    index regclass,
    query @extschema:vector@.vector,
    k bigint DEFAULT 10,
    column_name text DEFAULT NULL,
    OUT relation regclass,
    OUT ctid tid,
    OUT key text,
    OUT ordinal integer,
    OUT start_byte integer,
    OUT end_byte integer,
    OUT start_char integer,
    OUT end_char integer,
    OUT passage text,
    OUT distance double precision,
    OUT score double precision
) RETURNS SETOF record
    LANGUAGE c STABLE PARALLEL RESTRICTED COST 10000 ROWS 10 AS 'MODULE_PATHNAME', 'search_vector_wrapper';
COMMENT ON FUNCTION situ.search(regclass, @extschema:vector@.vector, bigint, text) IS
    'the k rows nearest to a vector, over text each with its nearest passage';

CREATE FUNCTION situ_internal.index_statistics(
    index regclass,
    OUT documents bigint,
    OUT chunks bigint,
    OUT tokens bigint,
    OUT dimensions integer,
    OUT lists integer,
    OUT probes integer,
    OUT bytes bigint,
    OUT metric text,
    OUT model text,
    OUT fingerprint text,
    OUT situate text,
    OUT chunk_tokens integer,
    OUT encode_seconds double precision
) RETURNS SETOF record
    LANGUAGE c STABLE STRICT PARALLEL SAFE ROWS 1 AS 'MODULE_PATHNAME', 'index_statistics_wrapper';
COMMENT ON FUNCTION situ_internal.index_statistics(regclass) IS 'what one situ index holds; no row where it cannot be read now';

CREATE VIEW situ.stat_index AS
    SELECT class.oid::regclass AS indexrelid, index.indrelid::regclass AS relid, index.indisvalid AS valid, statistics.*
      FROM pg_catalog.pg_class class
      JOIN pg_catalog.pg_am am ON am.oid = class.relam AND am.amname = 'situ'
      JOIN pg_catalog.pg_index index ON index.indexrelid = class.oid
      LEFT JOIN LATERAL situ_internal.index_statistics(class.oid) statistics ON true
     WHERE class.relkind = 'i' AND NOT pg_catalog.pg_is_other_temp_schema(class.relnamespace);
COMMENT ON VIEW situ.stat_index IS
    'the situ indexes of this database: documents and chunks in them, tokens and seconds of the build, lists, first-round probes, size, model (probes as the recall target of this session takes); NULL in an index that cannot be read now (being rebuilt, half built, or unlogged on a standby)';
GRANT SELECT ON situ.stat_index TO PUBLIC;
