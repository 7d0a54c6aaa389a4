-- Texts to vectors, documents to passages.

CREATE FUNCTION situ.embed(text text, model text DEFAULT NULL, role text DEFAULT 'plain')
    RETURNS @extschema:vector@.vector
    LANGUAGE c STABLE PARALLEL SAFE COST 10000 AS 'MODULE_PATHNAME', 'situ_embed';
COMMENT ON FUNCTION situ.embed(text, text, text) IS
    'vector of a text, cut at the model''s limit; role is plain, query or passage and chooses the model''s prefix';

CREATE FUNCTION situ.embed_batch(texts text[], model text DEFAULT NULL, role text DEFAULT 'plain')
    RETURNS @extschema:vector@.vector[]
    LANGUAGE c STABLE PARALLEL SAFE COST 100000 AS 'MODULE_PATHNAME', 'embed_texts_wrapper';
COMMENT ON FUNCTION situ.embed_batch(text[], text, text) IS
    'vectors of many texts in one request, in their order; NULL for NULL';

CREATE FUNCTION situ.chunks(
    body text,
    model text DEFAULT NULL,
    chunk_tokens bigint DEFAULT 128,
    OUT ordinal integer,
    OUT start integer,
    OUT "end" integer,
    OUT passage text,
    OUT tokens integer
) RETURNS SETOF record
    LANGUAGE c STABLE PARALLEL SAFE COST 10000 ROWS 20 AS 'MODULE_PATHNAME', 'chunks_wrapper';
COMMENT ON FUNCTION situ.chunks(text, text, bigint) IS
    'a document cut on sentence borders in passages of at most chunk_tokens tokens of the model; start and end are bytes of the body';

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
    OUT start integer,
    OUT "end" integer,
    OUT passage text,
    OUT tokens integer,
    OUT embedding @extschema:vector@.vector
) RETURNS SETOF record
    LANGUAGE c STABLE PARALLEL SAFE COST 100000 ROWS 20 AS 'MODULE_PATHNAME', 'situate_wrapper';
COMMENT ON FUNCTION situ.situate(text, text, text, text, bigint, bigint, real, text) IS
    'the passages of a document, each embedded in its place: mode none (the passage alone; the default), header (title and headings read before it; the default with a title), late (mixed by weight, 0.25 by default, with what the model reads in a window of window_tokens, 0 for its limit), residual (by a model that was trained to read a chunk in its context), bridge (changed by the trained bridge of that name)';
