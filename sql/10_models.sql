-- The registry of models.

CREATE TABLE situ_internal.model_registry (
    name text PRIMARY KEY CHECK (name <> ''),
    path text NOT NULL,
    fingerprint text NOT NULL,
    dimensions integer NOT NULL,
    owner situ.role NOT NULL,
    precision text,
    calibration jsonb,
    max_tokens integer NOT NULL,
    family text NOT NULL,
    pooling text NOT NULL,
    normalize boolean NOT NULL,
    query_prefix text NOT NULL DEFAULT '',
    passage_prefix text NOT NULL DEFAULT '',
    registered_at timestamptz NOT NULL DEFAULT pg_catalog.now(),
    kind text NOT NULL DEFAULT 'encoder' CHECK (kind IN ('encoder', 'llm')),
    similarity text CHECK (similarity IN ('cosine', 'dot'))
);
COMMENT ON TABLE situ_internal.model_registry IS 'registered models; written by situ.register_model and situ.drop_model, dumped with the database';
GRANT SELECT ON situ_internal.model_registry TO PUBLIC;
-- What restores a dump writes rows.
GRANT INSERT ON situ_internal.model_registry TO pg_database_owner;
SELECT pg_catalog.pg_extension_config_dump('situ_internal.model_registry', '');

CREATE FUNCTION situ_internal.model_registry_changed() RETURNS trigger
    LANGUAGE c AS 'MODULE_PATHNAME', 'situ_model_registry_changed';
COMMENT ON FUNCTION situ_internal.model_registry_changed() IS 'makes every backend read the registry of models again';
CREATE TRIGGER changed AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON situ_internal.model_registry
    FOR EACH STATEMENT EXECUTE FUNCTION situ_internal.model_registry_changed();
ALTER TABLE situ_internal.model_registry ENABLE ALWAYS TRIGGER changed;

CREATE VIEW situ.models AS
    SELECT r.name, r.path, r.fingerprint, r.dimensions, r.max_tokens, r.family, r.pooling, r.normalize, r.query_prefix,
           r.passage_prefix, r.registered_at, r.owner, CASE r.kind WHEN 'encoder' THEN p.precision END AS precision,
           m.cosine, m.tokens_per_second, r.calibration, r.kind, r.similarity
      FROM situ_internal.model_registry r
     CROSS JOIN LATERAL (
           SELECT coalesce(nullif(pg_catalog.current_setting('situ.cpu_precision', true), 'auto'), r.precision, 'f32')
           ) p(precision)
      LEFT JOIN LATERAL pg_catalog.jsonb_to_recordset(r.calibration->'measured')
           m(precision text, cosine real, tokens_per_second real) ON m.precision = p.precision;
COMMENT ON VIEW situ.models IS
    'registered models, kind encoder or llm; dimensions of an LLM are those of the vector that stands for a token, max_tokens its context; of encoders precision is what situ.cpu_precision makes of the calibration, cosine the least of its texts to f32, tokens_per_second its speed then, similarity how its vectors are compared: cosine, or dot for inner product';
GRANT SELECT ON situ.models TO PUBLIC;

CREATE FUNCTION situ.register_model(name text, path text, replace boolean DEFAULT false) RETURNS text
    LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE
    AS 'MODULE_PATHNAME', 'register_model_wrapper';
COMMENT ON FUNCTION situ.register_model(text, text, boolean) IS
    'registers a model below situ.model_dir under a name and returns the fingerprint of its files';
REVOKE ALL ON FUNCTION situ.register_model(text, text, boolean) FROM PUBLIC;

CREATE FUNCTION situ.drop_model(name text) RETURNS void
    LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE
    AS 'MODULE_PATHNAME', 'drop_model_wrapper';
COMMENT ON FUNCTION situ.drop_model(text) IS
    'removes a model from the registry; its files stay';
REVOKE ALL ON FUNCTION situ.drop_model(text) FROM PUBLIC;

CREATE FUNCTION situ.calibrate_model(name text) RETURNS text
    LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE
    AS 'MODULE_PATHNAME', 'calibrate_model_wrapper';
COMMENT ON FUNCTION situ.calibrate_model(text) IS
    'measures a model again in every precision of this processor and returns the one that auto takes';
