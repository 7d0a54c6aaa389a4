-- A document as a token of an LLM, and answers from retrieved passages.

CREATE FUNCTION situ.xrag_token(embedding @extschema:vector@.vector, bridge text) RETURNS @extschema:vector@.vector
    LANGUAGE c STABLE STRICT PARALLEL SAFE COST 1000 AS 'MODULE_PATHNAME', 'xrag_token_wrapper';
COMMENT ON FUNCTION situ.xrag_token(@extschema:vector@.vector, text) IS
    'the vector that stands for a passage in a prompt of the bridge''s LLM, from the passage''s vector by the bridge''s encoder; where the bridge makes several tokens of a passage, their vectors one after the other';

CREATE FUNCTION situ.import_xrag(
    name text,
    weights bytea,
    model text DEFAULT NULL,
    llm text DEFAULT NULL,
    normalized boolean DEFAULT false,
    "replace" boolean DEFAULT false
) RETURNS text
    LANGUAGE c VOLATILE PARALLEL UNSAFE
    AS 'MODULE_PATHNAME', 'import_xrag_wrapper';
COMMENT ON FUNCTION situ.import_xrag(text, bytea, text, text, boolean, boolean) IS
    'stores a projector as a bridge of kind xrag from the bytes of a safetensors file with the published names (projector.projector.0 and .2, weight and bias), which leads from vectors of model to llm; normalized: it was trained on vectors of length 1, and not, as the published ones, on vectors as they are; warns where the model''s vectors are others; for superusers and the owner of the database unless granted';
REVOKE ALL ON FUNCTION situ.import_xrag(text, bytea, text, text, boolean, boolean) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION situ.import_xrag(text, bytea, text, text, boolean, boolean) TO pg_database_owner;

CREATE FUNCTION situ.xrag_prompt(
    query text,
    tokens @extschema:vector@.vector[] DEFAULT NULL,
    template text DEFAULT NULL,
    bridge text DEFAULT NULL
) RETURNS situ.prompt
    LANGUAGE c STABLE PARALLEL SAFE COST 100 AS 'MODULE_PATHNAME', 'xrag_prompt_wrapper';
COMMENT ON FUNCTION situ.xrag_prompt(text, @extschema:vector@.vector[], text, text) IS
    'a prompt of text and of vectors from situ.xrag_token: the template has {question}, and {documents} for all vectors or <xRAG> for each; bridge: notes which LLM the vectors are for, so that others refuse them';

CREATE FUNCTION situ.xrag_prompt_embeds(
    prompt situ.prompt,
    llm text DEFAULT NULL,
    system text DEFAULT NULL,
    chat boolean DEFAULT true
) RETURNS bytea
    LANGUAGE c VOLATILE PARALLEL RESTRICTED COST 100000 AS 'MODULE_PATHNAME', 'xrag_prompt_embeds_wrapper';
COMMENT ON FUNCTION situ.xrag_prompt_embeds(situ.prompt, text, text, boolean) IS
    'the input vectors of a prompt, one row a token, as the bytes of a file of torch.save (float32): what vLLM takes as prompt_embeds';

CREATE FUNCTION situ.rag(
    index regclass,
    query text,
    k bigint DEFAULT 3,
    mode text DEFAULT NULL,
    model text DEFAULT NULL,
    bridge text DEFAULT NULL,
    max_tokens bigint DEFAULT 256,
    temperature real DEFAULT 0,
    sample_top_k bigint DEFAULT 0,
    sample_top_p real DEFAULT 1,
    seed bigint DEFAULT 0,
    stop text[] DEFAULT NULL,
    system text DEFAULT NULL,
    template text DEFAULT NULL,
    body text DEFAULT NULL,
    search situ.query DEFAULT NULL,
    OUT answer text,
    OUT sources jsonb,
    OUT prompt_tokens integer,
    OUT answer_tokens integer,
    OUT retrieval_ms double precision,
    OUT encoding_ms double precision,
    OUT prefill_ms double precision,
    OUT decode_ms double precision
) RETURNS SETOF record
    LANGUAGE c VOLATILE PARALLEL RESTRICTED COST 1000000 ROWS 1 AS 'MODULE_PATHNAME', 'rag_wrapper';
COMMENT ON FUNCTION situ.rag(regclass, text, bigint, text, text, text, bigint, real, bigint, real, bigint, text[], text, text, text, situ.query) IS
    'an LLM''s answer to a question from the k nearest rows of an index: their passages as text (mode text, the default), as vectors in the places of tokens (mode xrag, with a bridge), or without any (mode none); body: the column that is put into the prompt instead of the passage; search: options of the retrieval; sources: the rows used; the caller''s privileges and row security apply';
