-- The query type, its constructor and its equality, and the distance operators over text.

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
    probes bigint DEFAULT NULL,
    profile text DEFAULT NULL,
    feedback text DEFAULT NULL,
    feedback_depth bigint DEFAULT NULL,
    alpha real DEFAULT NULL,
    beta real DEFAULT NULL,
    gamma real DEFAULT NULL,
    bottom bigint DEFAULT NULL,
    rounds bigint DEFAULT NULL,
    feedback_mode text DEFAULT NULL,
    feedback_keep bigint DEFAULT NULL,
    feedback_list bigint DEFAULT NULL,
    bridge text DEFAULT NULL,
    feedback_model text DEFAULT NULL,
    bridges text[] DEFAULT NULL
) RETURNS situ.query
    LANGUAGE c IMMUTABLE PARALLEL SAFE AS 'MODULE_PATHNAME', 'make_query_wrapper';
COMMENT ON FUNCTION situ.query(text, @extschema:vector@.vector, text, bigint, text, text, bigint, real, real, real, bigint, bigint, text, bigint, bigint, text, text, text[]) IS
    'a question for <=> and situ.search: its text or its vector, the model where no index names one, the lists to read first, the profile that situ.tune stored; options without a question are a template for situ.evaluate; feedback (none, average, rocchio, gated, text) and what follows: how the nearest passages move the question before a second round (text: feedback_model, a bridge or a model, reads the question with their texts); bridge: the trained bridge of situ.bridges that changes the question''s vector; bridges: several, one after another';

CREATE FUNCTION situ.query_eq(situ.query, situ.query) RETURNS boolean
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'query_eq_wrapper';
COMMENT ON FUNCTION situ.query_eq(situ.query, situ.query) IS 'whether two questions print alike';
CREATE FUNCTION situ.query_ne(situ.query, situ.query) RETURNS boolean
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'query_ne_wrapper';
COMMENT ON FUNCTION situ.query_ne(situ.query, situ.query) IS 'whether two questions print differently';
CREATE FUNCTION situ.query_lt(situ.query, situ.query) RETURNS boolean
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'query_lt_wrapper';
COMMENT ON FUNCTION situ.query_lt(situ.query, situ.query) IS 'order of questions, for sorting alone';
CREATE FUNCTION situ.query_le(situ.query, situ.query) RETURNS boolean
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'query_le_wrapper';
COMMENT ON FUNCTION situ.query_le(situ.query, situ.query) IS 'order of questions, for sorting alone';
CREATE FUNCTION situ.query_gt(situ.query, situ.query) RETURNS boolean
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'query_gt_wrapper';
COMMENT ON FUNCTION situ.query_gt(situ.query, situ.query) IS 'order of questions, for sorting alone';
CREATE FUNCTION situ.query_ge(situ.query, situ.query) RETURNS boolean
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'query_ge_wrapper';
COMMENT ON FUNCTION situ.query_ge(situ.query, situ.query) IS 'order of questions, for sorting alone';
CREATE FUNCTION situ.query_cmp(situ.query, situ.query) RETURNS integer
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'query_cmp_wrapper';
COMMENT ON FUNCTION situ.query_cmp(situ.query, situ.query) IS 'order of questions, for sorting alone';
CREATE FUNCTION situ.query_hash(situ.query) RETURNS integer
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'query_hash_wrapper';
COMMENT ON FUNCTION situ.query_hash(situ.query) IS 'hash of a question';

CREATE OPERATOR = (LEFTARG = situ.query, RIGHTARG = situ.query, FUNCTION = situ.query_eq, COMMUTATOR = =, NEGATOR = <>,
    RESTRICT = eqsel, JOIN = eqjoinsel, HASHES, MERGES);
COMMENT ON OPERATOR = (situ.query, situ.query) IS 'equal: for DISTINCT and GROUP BY';
CREATE OPERATOR <> (LEFTARG = situ.query, RIGHTARG = situ.query, FUNCTION = situ.query_ne, COMMUTATOR = <>, NEGATOR = =,
    RESTRICT = neqsel, JOIN = neqjoinsel);
COMMENT ON OPERATOR <> (situ.query, situ.query) IS 'not equal';
CREATE OPERATOR < (LEFTARG = situ.query, RIGHTARG = situ.query, FUNCTION = situ.query_lt, COMMUTATOR = >, NEGATOR = >=,
    RESTRICT = scalarltsel, JOIN = scalarltjoinsel);
COMMENT ON OPERATOR < (situ.query, situ.query) IS 'order, for sorting alone';
CREATE OPERATOR <= (LEFTARG = situ.query, RIGHTARG = situ.query, FUNCTION = situ.query_le, COMMUTATOR = >=, NEGATOR = >,
    RESTRICT = scalarlesel, JOIN = scalarlejoinsel);
COMMENT ON OPERATOR <= (situ.query, situ.query) IS 'order, for sorting alone';
CREATE OPERATOR > (LEFTARG = situ.query, RIGHTARG = situ.query, FUNCTION = situ.query_gt, COMMUTATOR = <, NEGATOR = <=,
    RESTRICT = scalargtsel, JOIN = scalargtjoinsel);
COMMENT ON OPERATOR > (situ.query, situ.query) IS 'order, for sorting alone';
CREATE OPERATOR >= (LEFTARG = situ.query, RIGHTARG = situ.query, FUNCTION = situ.query_ge, COMMUTATOR = <=, NEGATOR = <,
    RESTRICT = scalargesel, JOIN = scalargejoinsel);
COMMENT ON OPERATOR >= (situ.query, situ.query) IS 'order, for sorting alone';

CREATE OPERATOR CLASS situ_query_btree_ops DEFAULT FOR TYPE situ.query USING btree AS
    OPERATOR 1 <, OPERATOR 2 <=, OPERATOR 3 =, OPERATOR 4 >=, OPERATOR 5 >,
    FUNCTION 1 situ.query_cmp(situ.query, situ.query);
CREATE OPERATOR CLASS situ_query_hash_ops DEFAULT FOR TYPE situ.query USING hash AS
    OPERATOR 1 =,
    FUNCTION 1 situ.query_hash(situ.query);

-- The distance of a document to a question. Where one text index is on the column, the support function puts it into
-- the question, and the distance is that index's under any plan (src/pg/am/planner.rs). Encoding a document costs
-- some 60 ms: COST 10000000. What an index orders by is at hand.

CREATE FUNCTION situ.distance_support(internal) RETURNS internal
    LANGUAGE c STRICT AS 'MODULE_PATHNAME', 'situ_distance_support';
COMMENT ON FUNCTION situ.distance_support(internal) IS 'tells the planner by which index a distance is evaluated';

CREATE FUNCTION situ.text_by_index(query text, index regclass) RETURNS situ.query
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'text_by_index_wrapper';
COMMENT ON FUNCTION situ.text_by_index(text, regclass) IS
    'a question whose distance outside of a scan is the one of that index; the planner writes it around the question of <=>';

CREATE FUNCTION situ.query_by_index(query situ.query, index regclass) RETURNS situ.query
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'query_by_index_wrapper';
COMMENT ON FUNCTION situ.query_by_index(situ.query, regclass) IS
    'a question whose distance outside of a scan is the one of that index; the planner writes it around the question of <=>';

CREATE FUNCTION situ.distance(body text, query text) RETURNS double precision
    LANGUAGE c STABLE STRICT PARALLEL RESTRICTED COST 10000000 SUPPORT situ.distance_support
    AS 'MODULE_PATHNAME', 'situ_text_distance';
COMMENT ON FUNCTION situ.distance(text, text) IS
    'distance of a document''s nearest chunk to a question, as the model''s vectors are compared: 1 - cosine, or the negative inner product; NULL for a document without words';

CREATE FUNCTION situ.query_distance(body text, query situ.query) RETURNS double precision
    LANGUAGE c STABLE STRICT PARALLEL RESTRICTED COST 10000 SUPPORT situ.distance_support
    AS 'MODULE_PATHNAME', 'situ_query_distance';
COMMENT ON FUNCTION situ.query_distance(text, situ.query) IS
    'distance of a document''s nearest chunk to a question, as the model''s vectors are compared: 1 - cosine, or the negative inner product; NULL for a document without words';

CREATE FUNCTION situ.document_distance(body text, title text, query situ.query) RETURNS double precision
    LANGUAGE c STABLE PARALLEL RESTRICTED COST 10000000 AS 'MODULE_PATHNAME', 'situ_document_distance';
COMMENT ON FUNCTION situ.document_distance(text, text, situ.query) IS
    'the distance of a document with the title beside it, by the index in the question; the planner writes it for <=> where no index orders by it';

CREATE FUNCTION situ.character_distance(body character, query text) RETURNS double precision
    LANGUAGE c STABLE STRICT PARALLEL RESTRICTED COST 10000000 SUPPORT situ.distance_support
    AS 'MODULE_PATHNAME', 'situ_text_distance';
COMMENT ON FUNCTION situ.character_distance(character, text) IS
    'distance of a document''s nearest chunk to a question, as the model''s vectors are compared: 1 - cosine, or the negative inner product; NULL for a document without words';

CREATE FUNCTION situ.character_query_distance(body character, query situ.query) RETURNS double precision
    LANGUAGE c STABLE STRICT PARALLEL RESTRICTED COST 10000 SUPPORT situ.distance_support
    AS 'MODULE_PATHNAME', 'situ_query_distance';
COMMENT ON FUNCTION situ.character_query_distance(character, situ.query) IS
    'distance of a document''s nearest chunk to a question, as the model''s vectors are compared: 1 - cosine, or the negative inner product; NULL for a document without words';

CREATE OPERATOR <=> (LEFTARG = text, RIGHTARG = text, FUNCTION = situ.distance);
COMMENT ON OPERATOR <=> (text, text) IS 'distance of a document to a question: 1 - cosine, or the negative inner product where the model''s vectors are compared by it';

CREATE OPERATOR <=> (LEFTARG = text, RIGHTARG = situ.query, FUNCTION = situ.query_distance);
COMMENT ON OPERATOR <=> (text, situ.query) IS 'distance of a document to a question: 1 - cosine, or the negative inner product where the model''s vectors are compared by it';

CREATE OPERATOR <=> (LEFTARG = character, RIGHTARG = text, FUNCTION = situ.character_distance);
COMMENT ON OPERATOR <=> (character, text) IS 'distance of a document to a question: 1 - cosine, or the negative inner product where the model''s vectors are compared by it';

CREATE OPERATOR <=> (LEFTARG = character, RIGHTARG = situ.query, FUNCTION = situ.character_query_distance);
COMMENT ON OPERATOR <=> (character, situ.query) IS 'distance of a document to a question: 1 - cosine, or the negative inner product where the model''s vectors are compared by it';
