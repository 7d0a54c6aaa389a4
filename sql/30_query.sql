-- The query type, its constructor, and the distance operators over text.

CREATE TYPE situ.query;

CREATE FUNCTION situ.query_in(cstring) RETURNS situ.query
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'query_in_wrapper';
COMMENT ON FUNCTION situ.query_in(cstring) IS 'input of situ.query: a JSON object';

CREATE FUNCTION situ.query_out(situ.query) RETURNS cstring
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'query_out_wrapper';
COMMENT ON FUNCTION situ.query_out(situ.query) IS 'output of situ.query: a JSON object';

CREATE TYPE situ.query (
    INTERNALLENGTH = variable,
    INPUT = situ.query_in,
    OUTPUT = situ.query_out,
    STORAGE = extended
);
COMMENT ON TYPE situ.query IS 'a question with its options; made by situ.query()';

CREATE FUNCTION situ.query(
    text text DEFAULT NULL,
    embedding @extschema:vector@.vector DEFAULT NULL,
    model text DEFAULT NULL,
    probes integer DEFAULT NULL,
    profile text DEFAULT NULL,
    feedback text DEFAULT NULL,
    feedback_depth integer DEFAULT NULL,
    alpha real DEFAULT NULL,
    beta real DEFAULT NULL,
    gamma real DEFAULT NULL,
    bottom integer DEFAULT NULL,
    rounds integer DEFAULT NULL,
    feedback_mode text DEFAULT NULL,
    feedback_keep integer DEFAULT NULL,
    feedback_list integer DEFAULT NULL,
    bridge text DEFAULT NULL,
    feedback_model text DEFAULT NULL,
    bridges text[] DEFAULT NULL
) RETURNS situ.query
    LANGUAGE c IMMUTABLE PARALLEL SAFE AS 'MODULE_PATHNAME', 'make_query_wrapper';
COMMENT ON FUNCTION situ.query(text, @extschema:vector@.vector, text, integer, text, text, integer, real, real, real, integer, integer, text, integer, integer, text, text, text[]) IS
    'a question for <=> and situ.search: its text or its vector, the model where no index names one, the lists to read first, the profile that situ.tune stored; options without a question are a template for situ.evaluate; feedback (none, average, rocchio, gated, text) and what follows: how the nearest passages move the question before a second round (text: feedback_model, a bridge or a model, reads the question with their texts); bridge: the trained bridge of situ.bridges that changes the question''s vector; bridges: several, one after another';

CREATE FUNCTION situ.distance(body text, question text) RETURNS double precision
    LANGUAGE c STABLE STRICT PARALLEL RESTRICTED COST 10000 AS 'MODULE_PATHNAME', 'text_distance_wrapper';
COMMENT ON FUNCTION situ.distance(text, text) IS
    'cosine distance of a document''s nearest chunk to a question; NULL for a document without words';

CREATE FUNCTION situ.distance(body text, question situ.query) RETURNS double precision
    LANGUAGE c STABLE STRICT PARALLEL RESTRICTED COST 10000 AS 'MODULE_PATHNAME', 'text_query_distance_wrapper';
COMMENT ON FUNCTION situ.distance(text, situ.query) IS
    'cosine distance of a document''s nearest chunk to a question; NULL for a document without words';

CREATE OPERATOR <=> (LEFTARG = text, RIGHTARG = text, FUNCTION = situ.distance);
COMMENT ON OPERATOR <=> (text, text) IS 'cosine distance of a document to a question';

CREATE OPERATOR <=> (LEFTARG = text, RIGHTARG = situ.query, FUNCTION = situ.distance);
COMMENT ON OPERATOR <=> (text, situ.query) IS 'cosine distance of a document to a question';
