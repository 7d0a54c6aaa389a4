-- Situated vectors of chunks that the user has cut.

CREATE FUNCTION situ.situate_chunks(
    chunks text[],
    model text DEFAULT NULL,
    title text DEFAULT NULL,
    mode text DEFAULT NULL,
    bridge text DEFAULT NULL,
    weight real DEFAULT NULL
) RETURNS @extschema:vector@.vector[]
    LANGUAGE c STABLE PARALLEL SAFE COST 100000 AS 'MODULE_PATHNAME', 'situate_chunks_wrapper';
COMMENT ON FUNCTION situ.situate_chunks(text[], text, text, text, text, real) IS
    'one vector for each of the chunks of one document, given in their order: mode, weight and bridge as for a body; NULL for chunks that are NULL or empty';
