-- The registry of bridges: parts that were trained beside a frozen encoder.

CREATE TABLE situ.bridges (
    name text PRIMARY KEY CHECK (name <> ''),
    kind text NOT NULL,
    model text NOT NULL,
    fingerprint text NOT NULL,
    dimensions integer NOT NULL,
    owner situ.role NOT NULL,
    state text NOT NULL CHECK (state IN ('accepted', 'accepted (synthetic queries)', 'rejected')),
    recipe jsonb NOT NULL,
    figures jsonb NOT NULL,
    hash text NOT NULL,
    origin text NOT NULL DEFAULT 'trained' CHECK (origin IN ('trained', 'imported')),
    trained_at timestamptz NOT NULL DEFAULT pg_catalog.now(),
    weights bytea NOT NULL
);
-- Uncompressed, so that a query reads the few slices it needs.
ALTER TABLE situ.bridges ALTER COLUMN weights SET STORAGE EXTERNAL;
COMMENT ON TABLE situ.bridges IS
    'trained bridges: kind, the model and the fingerprint of the encoder they were trained over, recipe, held-out figures and weights (safetensors), and whether it was trained here or imported, so that its figures are its importer''s; dumped with the database';
GRANT SELECT (name, kind, model, fingerprint, dimensions, owner, state, recipe, figures, hash, origin, trained_at)
    ON situ.bridges TO PUBLIC;
-- What dumps the database reads all columns, what restores it writes rows.
GRANT SELECT, INSERT ON situ.bridges TO pg_database_owner;
SELECT pg_catalog.pg_extension_config_dump('situ.bridges', '');

CREATE FUNCTION situ_internal.bridges_changed() RETURNS trigger
    LANGUAGE c AS 'MODULE_PATHNAME', 'situ_bridges_changed';
COMMENT ON FUNCTION situ_internal.bridges_changed() IS 'makes every backend read the registry of bridges again';
CREATE TRIGGER changed AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON situ.bridges
    FOR EACH STATEMENT EXECUTE FUNCTION situ_internal.bridges_changed();
ALTER TABLE situ.bridges ENABLE ALWAYS TRIGGER changed;

CREATE FUNCTION situ.import_bridge(
    name text,
    weights bytea,
    kind text DEFAULT NULL,
    model text DEFAULT NULL,
    llm text DEFAULT NULL,
    normalized boolean DEFAULT false,
    replace boolean DEFAULT false
) RETURNS text
    LANGUAGE c VOLATILE PARALLEL UNSAFE
    AS 'MODULE_PATHNAME', 'import_bridge_wrapper';
COMMENT ON FUNCTION situ.import_bridge(text, bytea, text, text, text, boolean, boolean) IS
    'stores a bridge from the bytes of a file of situ.export_bridge, or of a published xRAG projector, and returns its kind';
REVOKE ALL ON FUNCTION situ.import_bridge(text, bytea, text, text, text, boolean, boolean) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION situ.import_bridge(text, bytea, text, text, text, boolean, boolean) TO pg_database_owner;

CREATE FUNCTION situ.import_bridge_file(
    path text,
    name text DEFAULT NULL,
    kind text DEFAULT NULL,
    model text DEFAULT NULL,
    llm text DEFAULT NULL,
    normalized boolean DEFAULT false,
    replace boolean DEFAULT false
) RETURNS text
    LANGUAGE c VOLATILE PARALLEL UNSAFE
    AS 'MODULE_PATHNAME', 'import_bridge_file_wrapper';
COMMENT ON FUNCTION situ.import_bridge_file(text, text, text, text, text, boolean, boolean) IS
    'stores a bridge from a file below situ.model_dir, under the file''s name if none is given, and returns its kind';
REVOKE ALL ON FUNCTION situ.import_bridge_file(text, text, text, text, text, boolean, boolean) FROM PUBLIC;

CREATE FUNCTION situ.export_bridge(name text) RETURNS bytea
    LANGUAGE c STABLE STRICT PARALLEL SAFE
    AS 'MODULE_PATHNAME', 'export_bridge_wrapper';
COMMENT ON FUNCTION situ.export_bridge(text) IS
    'the bytes of a bridge''s safetensors file; for its owner and superusers';

CREATE FUNCTION situ.drop_bridge(name text) RETURNS void
    LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE
    AS 'MODULE_PATHNAME', 'drop_bridge_wrapper';
COMMENT ON FUNCTION situ.drop_bridge(text) IS 'removes a bridge; for its owner and superusers';

CREATE FUNCTION situ.apply_bridge(
    name text,
    embedding @extschema:vector@.vector,
    text text DEFAULT NULL
) RETURNS @extschema:vector@.vector
    LANGUAGE c STABLE PARALLEL SAFE COST 1000 AS 'MODULE_PATHNAME', 'apply_bridge_wrapper';
COMMENT ON FUNCTION situ.apply_bridge(text, @extschema:vector@.vector, text) IS
    'what a bridge makes of a vector of its model; text: the query in words, where the bridge reads it';
