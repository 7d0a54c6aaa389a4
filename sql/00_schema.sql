-- Everything of situ but its operators and operator classes lives in this schema.

CREATE SCHEMA situ;
COMMENT ON SCHEMA situ IS 'retrieval inside PostgreSQL: models, passages, search';
GRANT USAGE ON SCHEMA situ TO PUBLIC;

CREATE FUNCTION situ.version() RETURNS text
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'version_wrapper';
COMMENT ON FUNCTION situ.version() IS 'version of the library';
