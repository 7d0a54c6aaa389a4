-- Texts to vectors, documents to passages.

CREATE FUNCTION situ.embed(text text, model text DEFAULT NULL, role text DEFAULT NULL)
    RETURNS @extschema:vector@.vector
    LANGUAGE c STABLE PARALLEL SAFE COST 10000 AS 'MODULE_PATHNAME', 'situ_embed';
COMMENT ON FUNCTION situ.embed(text, text, text) IS
    'vector of a text; role (query, passage, plain) must be named where the model has different forms';

CREATE FUNCTION situ.embed_batch(texts text[], model text DEFAULT NULL, role text DEFAULT NULL)
    RETURNS @extschema:vector@.vector[]
    LANGUAGE c STABLE PARALLEL SAFE COST 100000 AS 'MODULE_PATHNAME', 'embed_texts_wrapper';
COMMENT ON FUNCTION situ.embed_batch(text[], text, text) IS
    'vectors of many texts in one request, in their order; NULL for NULL';

CREATE FUNCTION situ.chunks(
    body text,
    model text DEFAULT NULL,
    chunk_tokens bigint DEFAULT 128,
    OUT ordinal integer,
    OUT start_byte integer,
    OUT end_byte integer,
    OUT start_char integer,
    OUT end_char integer,
    OUT passage text,
    OUT tokens integer
) RETURNS SETOF record
    LANGUAGE c STABLE PARALLEL SAFE COST 10000 ROWS 20 AS 'MODULE_PATHNAME', 'chunks_wrapper';
COMMENT ON FUNCTION situ.chunks(text, text, bigint) IS
    'the passages of a document as an index would cut it, with their places in bytes and characters';

CREATE FUNCTION situ.situate(
    body text,
    model text DEFAULT NULL,
    title text DEFAULT NULL,
    mode text DEFAULT NULL,
    chunk_tokens bigint DEFAULT 128,
    window_tokens bigint DEFAULT 0,
    weight real DEFAULT NULL,
    bridge text DEFAULT NULL,
    OUT ordinal integer,
    OUT start_byte integer,
    OUT end_byte integer,
    OUT start_char integer,
    OUT end_char integer,
    OUT passage text,
    OUT tokens integer,
    OUT embedding @extschema:vector@.vector
) RETURNS SETOF record
    LANGUAGE c STABLE PARALLEL SAFE COST 100000 ROWS 20 AS 'MODULE_PATHNAME', 'situate_wrapper';
COMMENT ON FUNCTION situ.situate(text, text, text, text, bigint, bigint, real, text) IS
    'the passages of a document with their vectors, each embedded in its context by the mode';
