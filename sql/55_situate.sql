-- Situated vectors of chunks that the user has cut.

CREATE FUNCTION situ.situate_chunks(
    chunks text[],
    model text DEFAULT NULL,
    title text DEFAULT NULL,
    mode text DEFAULT NULL,
    weight real DEFAULT NULL,
    bridge text DEFAULT NULL
) RETURNS @extschema:vector@.vector[]
    LANGUAGE c STABLE PARALLEL SAFE COST 100000 AS 'MODULE_PATHNAME', 'situate_chunks_wrapper';
COMMENT ON FUNCTION situ.situate_chunks(text[], text, text, text, real, text) IS
    'one vector for each chunk of a document, embedded in its context; NULL for chunks that are NULL or empty';
