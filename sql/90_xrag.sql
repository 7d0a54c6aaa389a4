-- A document as a token of an LLM, and answers from retrieved passages.

CREATE FUNCTION situ.xrag_token(embedding @extschema:vector@.vector, bridge text) RETURNS @extschema:vector@.vector
    LANGUAGE c STABLE STRICT PARALLEL SAFE COST 1000 AS 'MODULE_PATHNAME', 'xrag_token_wrapper';
COMMENT ON FUNCTION situ.xrag_token(@extschema:vector@.vector, text) IS
    'the vector that stands for a passage in a prompt of the bridge''s LLM';

CREATE FUNCTION situ.xrag_prompt(
    query text,
    tokens @extschema:vector@.vector[] DEFAULT NULL,
    template text DEFAULT NULL,
    bridge text DEFAULT NULL
) RETURNS situ.prompt
    LANGUAGE c STABLE PARALLEL SAFE COST 100 AS 'MODULE_PATHNAME', 'xrag_prompt_wrapper';
COMMENT ON FUNCTION situ.xrag_prompt(text, @extschema:vector@.vector[], text, text) IS
    'a prompt of text and of vectors from situ.xrag_token';

CREATE FUNCTION situ.xrag_prompt_embeds(
    prompt situ.prompt,
    llm text DEFAULT NULL,
    system text DEFAULT NULL,
    chat boolean DEFAULT true
) RETURNS bytea
    LANGUAGE c VOLATILE PARALLEL RESTRICTED COST 100000 AS 'MODULE_PATHNAME', 'xrag_prompt_embeds_wrapper';
COMMENT ON FUNCTION situ.xrag_prompt_embeds(situ.prompt, text, text, boolean) IS
    'the input vectors of a prompt as the bytes of a torch.save file, for vLLM''s prompt_embeds';

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
    'an LLM''s answer to a question from the k nearest rows of an index, with its sources and times';
