-- Texts from prompts by LLMs, and what their worker does.

CREATE TYPE situ.prompt;

CREATE FUNCTION situ_internal.prompt_in(cstring) RETURNS situ.prompt
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'prompt_in_wrapper';
COMMENT ON FUNCTION situ_internal.prompt_in(cstring) IS 'input of situ.prompt: a JSON object with pieces, or plain text';

CREATE FUNCTION situ_internal.prompt_out(situ.prompt) RETURNS cstring
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'prompt_out_wrapper';
COMMENT ON FUNCTION situ_internal.prompt_out(situ.prompt) IS 'output of situ.prompt: a JSON object';

CREATE FUNCTION situ_internal.prompt_recv(internal) RETURNS situ.prompt
    LANGUAGE c STABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'prompt_recv_wrapper';
COMMENT ON FUNCTION situ_internal.prompt_recv(internal) IS 'binary input of situ.prompt: a version, and its JSON';

CREATE FUNCTION situ_internal.prompt_send(situ.prompt) RETURNS bytea
    LANGUAGE c STABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'prompt_send_wrapper';
COMMENT ON FUNCTION situ_internal.prompt_send(situ.prompt) IS 'binary output of situ.prompt: a version, and its JSON';

CREATE TYPE situ.prompt (
    INTERNALLENGTH = variable,
    INPUT = situ_internal.prompt_in,
    OUTPUT = situ_internal.prompt_out,
    RECEIVE = situ_internal.prompt_recv,
    SEND = situ_internal.prompt_send,
    STORAGE = extended
);
COMMENT ON TYPE situ.prompt IS 'text with vectors in the places of tokens; made by situ.xrag_prompt()';

CREATE FUNCTION situ.generate(
    prompt text,
    model text DEFAULT NULL,
    max_tokens bigint DEFAULT 256,
    temperature real DEFAULT 0,
    top_k bigint DEFAULT 0,
    top_p real DEFAULT 1,
    seed bigint DEFAULT 0,
    stop text[] DEFAULT NULL,
    system text DEFAULT NULL,
    chat boolean DEFAULT true
) RETURNS text
    LANGUAGE c VOLATILE PARALLEL RESTRICTED COST 1000000 AS 'MODULE_PATHNAME', 'generate_text_wrapper';
COMMENT ON FUNCTION situ.generate(text, text, bigint, real, bigint, real, bigint, text[], text, boolean) IS
    'an LLM''s answer to a prompt';

CREATE FUNCTION situ.xrag_generate(
    prompt situ.prompt,
    model text DEFAULT NULL,
    max_tokens bigint DEFAULT 256,
    temperature real DEFAULT 0,
    top_k bigint DEFAULT 0,
    top_p real DEFAULT 1,
    seed bigint DEFAULT 0,
    stop text[] DEFAULT NULL,
    system text DEFAULT NULL,
    chat boolean DEFAULT true
) RETURNS text
    LANGUAGE c VOLATILE PARALLEL RESTRICTED COST 1000000 AS 'MODULE_PATHNAME', 'generate_prompt_wrapper';
COMMENT ON FUNCTION situ.xrag_generate(situ.prompt, text, bigint, real, bigint, real, bigint, text[], text, boolean) IS
    'an LLM''s answer to a prompt with vectors';

CREATE FUNCTION situ.generate_stream(
    prompt text,
    model text DEFAULT NULL,
    max_tokens bigint DEFAULT 256,
    temperature real DEFAULT 0,
    top_k bigint DEFAULT 0,
    top_p real DEFAULT 1,
    seed bigint DEFAULT 0,
    stop text[] DEFAULT NULL,
    system text DEFAULT NULL,
    chat boolean DEFAULT true
) RETURNS SETOF text
    LANGUAGE c VOLATILE PARALLEL RESTRICTED COST 1000000 ROWS 100 AS 'MODULE_PATHNAME', 'generate_stream_text_wrapper';
COMMENT ON FUNCTION situ.generate_stream(text, text, bigint, real, bigint, real, bigint, text[], text, boolean) IS
    'an LLM''s answer to a prompt, one row a token as it comes';

CREATE FUNCTION situ.xrag_generate_stream(
    prompt situ.prompt,
    model text DEFAULT NULL,
    max_tokens bigint DEFAULT 256,
    temperature real DEFAULT 0,
    top_k bigint DEFAULT 0,
    top_p real DEFAULT 1,
    seed bigint DEFAULT 0,
    stop text[] DEFAULT NULL,
    system text DEFAULT NULL,
    chat boolean DEFAULT true
) RETURNS SETOF text
    LANGUAGE c VOLATILE PARALLEL RESTRICTED COST 1000000 ROWS 100 AS 'MODULE_PATHNAME', 'generate_stream_prompt_wrapper';
COMMENT ON FUNCTION situ.xrag_generate_stream(situ.prompt, text, bigint, real, bigint, real, bigint, text[], text, boolean) IS
    'an LLM''s answer to a prompt with vectors, one row a token as it comes';

CREATE FUNCTION situ_internal.llm_statistics(
    OUT state text,
    OUT pid integer,
    OUT started_at timestamptz,
    OUT restarts bigint,
    OUT models integer,
    OUT model_bytes bigint,
    OUT resident_bytes bigint,
    OUT slots integer,
    OUT slots_used integer,
    OUT answering bigint,
    OUT requests bigint,
    OUT cancelled bigint,
    OUT errors bigint,
    OUT prompt_tokens bigint,
    OUT tokens bigint,
    OUT tokens_per_second bigint,
    OUT loaded jsonb,
    OUT last_error text,
    OUT last_error_at timestamptz
) RETURNS SETOF record
    LANGUAGE c VOLATILE STRICT PARALLEL SAFE ROWS 1 AS 'MODULE_PATHNAME', 'llm_statistics_wrapper';
COMMENT ON FUNCTION situ_internal.llm_statistics() IS 'what the LLM worker does: behind the view situ.stat_llm';

CREATE VIEW situ.stat_llm AS
    SELECT state, pid, started_at, restarts, models, model_bytes, resident_bytes, slots, slots_used, answering, requests,
           cancelled, errors, prompt_tokens, tokens, tokens_per_second, loaded, last_error, last_error_at
      FROM situ_internal.llm_statistics();
COMMENT ON VIEW situ.stat_llm IS
    'the LLM worker: LLMs in memory (loaded says which, as of the last second), answers in progress, and counts since the server started; state is standby (nobody has asked yet), starting, running or not preloaded; models of other databases and the last error are for members of pg_read_all_stats';
GRANT SELECT ON situ.stat_llm TO PUBLIC;

CREATE FUNCTION situ.llm_endpoint() RETURNS text
    LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT nullif(pg_catalog.current_setting('situ.llm_endpoint', true), '')
$$;
COMMENT ON FUNCTION situ.llm_endpoint() IS
    'address of the LLM endpoint; who may execute this may send prompts to it';
REVOKE ALL ON FUNCTION situ.llm_endpoint() FROM PUBLIC;
