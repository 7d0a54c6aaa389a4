-- The query type, its constructor and its equality, and the distance operators over text.

CREATE TYPE situ.query;

CREATE FUNCTION situ_internal.query_in(cstring) RETURNS situ.query
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'query_in_wrapper';
COMMENT ON FUNCTION situ_internal.query_in(cstring) IS 'input of situ.query: a JSON object';

CREATE FUNCTION situ_internal.query_out(situ.query) RETURNS cstring
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'query_out_wrapper';
COMMENT ON FUNCTION situ_internal.query_out(situ.query) IS 'output of situ.query: a JSON object';

CREATE FUNCTION situ_internal.query_recv(internal) RETURNS situ.query
    LANGUAGE c STABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'query_recv_wrapper';
COMMENT ON FUNCTION situ_internal.query_recv(internal) IS 'binary input of situ.query: a version, and its JSON';

CREATE FUNCTION situ_internal.query_send(situ.query) RETURNS bytea
    LANGUAGE c STABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'query_send_wrapper';
COMMENT ON FUNCTION situ_internal.query_send(situ.query) IS 'binary output of situ.query: a version, and its JSON';

CREATE TYPE situ.query (
    INTERNALLENGTH = variable,
    INPUT = situ_internal.query_in,
    OUTPUT = situ_internal.query_out,
    RECEIVE = situ_internal.query_recv,
    SEND = situ_internal.query_send,
    STORAGE = extended
);
COMMENT ON TYPE situ.query IS 'a question with its options; made by situ.query()';

CREATE FUNCTION situ.query(
    text text DEFAULT NULL,
    embedding @extschema:vector@.vector DEFAULT NULL,
    model text DEFAULT NULL,
    probes bigint DEFAULT NULL,
    recall real DEFAULT NULL,
    profile text DEFAULT NULL,
    bridge text DEFAULT NULL,
    bridges text[] DEFAULT NULL,
    feedback text DEFAULT NULL,
    feedback_depth bigint DEFAULT NULL,
    feedback_alpha real DEFAULT NULL,
    feedback_beta real DEFAULT NULL,
    feedback_gamma real DEFAULT NULL,
    feedback_bottom bigint DEFAULT NULL,
    feedback_rounds bigint DEFAULT NULL,
    feedback_mode text DEFAULT NULL,
    feedback_keep bigint DEFAULT NULL,
    feedback_list bigint DEFAULT NULL,
    feedback_model text DEFAULT NULL
) RETURNS situ.query
    LANGUAGE c IMMUTABLE PARALLEL SAFE AS 'MODULE_PATHNAME', 'make_query_wrapper';
COMMENT ON FUNCTION situ.query(text, @extschema:vector@.vector, text, bigint, real, text, text, text[], text, bigint, real, real, real, bigint, bigint, text, bigint, bigint, text) IS
    'a question with its options, for <=> and situ.search; options alone are a template for situ.evaluate';

CREATE FUNCTION situ_internal.query_eq(situ.query, situ.query) RETURNS boolean
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'query_eq_wrapper';
COMMENT ON FUNCTION situ_internal.query_eq(situ.query, situ.query) IS 'whether two questions print alike';
CREATE FUNCTION situ_internal.query_ne(situ.query, situ.query) RETURNS boolean
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'query_ne_wrapper';
COMMENT ON FUNCTION situ_internal.query_ne(situ.query, situ.query) IS 'whether two questions print differently';
CREATE FUNCTION situ_internal.query_lt(situ.query, situ.query) RETURNS boolean
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'query_lt_wrapper';
COMMENT ON FUNCTION situ_internal.query_lt(situ.query, situ.query) IS 'order of questions, for sorting alone';
CREATE FUNCTION situ_internal.query_le(situ.query, situ.query) RETURNS boolean
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'query_le_wrapper';
COMMENT ON FUNCTION situ_internal.query_le(situ.query, situ.query) IS 'order of questions, for sorting alone';
CREATE FUNCTION situ_internal.query_gt(situ.query, situ.query) RETURNS boolean
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'query_gt_wrapper';
COMMENT ON FUNCTION situ_internal.query_gt(situ.query, situ.query) IS 'order of questions, for sorting alone';
CREATE FUNCTION situ_internal.query_ge(situ.query, situ.query) RETURNS boolean
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'query_ge_wrapper';
COMMENT ON FUNCTION situ_internal.query_ge(situ.query, situ.query) IS 'order of questions, for sorting alone';
CREATE FUNCTION situ_internal.query_cmp(situ.query, situ.query) RETURNS integer
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'query_cmp_wrapper';
COMMENT ON FUNCTION situ_internal.query_cmp(situ.query, situ.query) IS 'order of questions, for sorting alone';
CREATE FUNCTION situ_internal.query_hash(situ.query) RETURNS integer
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'query_hash_wrapper';
COMMENT ON FUNCTION situ_internal.query_hash(situ.query) IS 'hash of a question';

CREATE OPERATOR = (LEFTARG = situ.query, RIGHTARG = situ.query, FUNCTION = situ_internal.query_eq, COMMUTATOR = =, NEGATOR = <>,
    RESTRICT = eqsel, JOIN = eqjoinsel, HASHES, MERGES);
COMMENT ON OPERATOR = (situ.query, situ.query) IS 'equal: for DISTINCT and GROUP BY';
CREATE OPERATOR <> (LEFTARG = situ.query, RIGHTARG = situ.query, FUNCTION = situ_internal.query_ne, COMMUTATOR = <>, NEGATOR = =,
    RESTRICT = neqsel, JOIN = neqjoinsel);
COMMENT ON OPERATOR <> (situ.query, situ.query) IS 'not equal';
CREATE OPERATOR < (LEFTARG = situ.query, RIGHTARG = situ.query, FUNCTION = situ_internal.query_lt, COMMUTATOR = >, NEGATOR = >=,
    RESTRICT = scalarltsel, JOIN = scalarltjoinsel);
COMMENT ON OPERATOR < (situ.query, situ.query) IS 'order, for sorting alone';
CREATE OPERATOR <= (LEFTARG = situ.query, RIGHTARG = situ.query, FUNCTION = situ_internal.query_le, COMMUTATOR = >=, NEGATOR = >,
    RESTRICT = scalarlesel, JOIN = scalarlejoinsel);
COMMENT ON OPERATOR <= (situ.query, situ.query) IS 'order, for sorting alone';
CREATE OPERATOR > (LEFTARG = situ.query, RIGHTARG = situ.query, FUNCTION = situ_internal.query_gt, COMMUTATOR = <, NEGATOR = <=,
    RESTRICT = scalargtsel, JOIN = scalargtjoinsel);
COMMENT ON OPERATOR > (situ.query, situ.query) IS 'order, for sorting alone';
CREATE OPERATOR >= (LEFTARG = situ.query, RIGHTARG = situ.query, FUNCTION = situ_internal.query_ge, COMMUTATOR = <=, NEGATOR = <,
    RESTRICT = scalargesel, JOIN = scalargejoinsel);
COMMENT ON OPERATOR >= (situ.query, situ.query) IS 'order, for sorting alone';

CREATE OPERATOR CLASS situ_query_btree_ops DEFAULT FOR TYPE situ.query USING btree AS
    OPERATOR 1 <, OPERATOR 2 <=, OPERATOR 3 =, OPERATOR 4 >=, OPERATOR 5 >,
    FUNCTION 1 situ_internal.query_cmp(situ.query, situ.query);
CREATE OPERATOR CLASS situ_query_hash_ops DEFAULT FOR TYPE situ.query USING hash AS
    OPERATOR 1 =,
    FUNCTION 1 situ_internal.query_hash(situ.query);

-- The distance of a document to a question. Where one text index is on the column, the support function puts it into
-- the question, and the distance is that index's under any plan (src/pg/am/planner.rs). Encoding a document costs
-- some 60 ms: COST 10000000. What an index orders by is at hand.

CREATE FUNCTION situ_internal.distance_support(internal) RETURNS internal
    LANGUAGE c STRICT AS 'MODULE_PATHNAME', 'situ_distance_support';
COMMENT ON FUNCTION situ_internal.distance_support(internal) IS 'tells the planner by which index a distance is evaluated';

CREATE FUNCTION situ_internal.text_by_index(query text, index regclass) RETURNS situ.query
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'text_by_index_wrapper';
COMMENT ON FUNCTION situ_internal.text_by_index(text, regclass) IS
    'a question that is compared by an index; the planner writes it around the question of <=>';

CREATE FUNCTION situ_internal.query_by_index(query situ.query, index regclass) RETURNS situ.query
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'query_by_index_wrapper';
COMMENT ON FUNCTION situ_internal.query_by_index(situ.query, regclass) IS
    'a question that is compared by an index; the planner writes it around the question of <=>';

CREATE FUNCTION situ.distance(body text, query text) RETURNS double precision
    LANGUAGE c STABLE STRICT PARALLEL RESTRICTED COST 10000000 SUPPORT situ_internal.distance_support
    AS 'MODULE_PATHNAME', 'situ_text_distance';
COMMENT ON FUNCTION situ.distance(text, text) IS
    'distance of a document''s nearest passage to a question; behind <=>, NULL for a document without words';

CREATE FUNCTION situ_internal.query_distance(body text, query situ.query) RETURNS double precision
    LANGUAGE c STABLE STRICT PARALLEL RESTRICTED COST 10000 SUPPORT situ_internal.distance_support
    AS 'MODULE_PATHNAME', 'situ_query_distance';
COMMENT ON FUNCTION situ_internal.query_distance(text, situ.query) IS
    'distance of a document''s nearest passage to a question; behind <=>';

CREATE FUNCTION situ_internal.document_distance(body text, title text, query situ.query) RETURNS double precision
    LANGUAGE c STABLE PARALLEL RESTRICTED COST 10000000 AS 'MODULE_PATHNAME', 'situ_document_distance';
COMMENT ON FUNCTION situ_internal.document_distance(text, text, situ.query) IS
    'distance of a document with its title by the question''s index; the planner writes it for <=>';

CREATE FUNCTION situ_internal.character_distance(body character, query text) RETURNS double precision
    LANGUAGE c STABLE STRICT PARALLEL RESTRICTED COST 10000000 SUPPORT situ_internal.distance_support
    AS 'MODULE_PATHNAME', 'situ_text_distance';
COMMENT ON FUNCTION situ_internal.character_distance(character, text) IS
    'distance of a document''s nearest passage to a question; behind <=>';

CREATE FUNCTION situ_internal.character_query_distance(body character, query situ.query) RETURNS double precision
    LANGUAGE c STABLE STRICT PARALLEL RESTRICTED COST 10000 SUPPORT situ_internal.distance_support
    AS 'MODULE_PATHNAME', 'situ_query_distance';
COMMENT ON FUNCTION situ_internal.character_query_distance(character, situ.query) IS
    'distance of a document''s nearest passage to a question; behind <=>';

CREATE OPERATOR <=> (LEFTARG = text, RIGHTARG = text, FUNCTION = situ.distance);
COMMENT ON OPERATOR <=> (text, text) IS 'distance of a document to a question: 1 - cosine, or the negative inner product where the model''s vectors are compared by it';

CREATE OPERATOR <=> (LEFTARG = text, RIGHTARG = situ.query, FUNCTION = situ_internal.query_distance);
COMMENT ON OPERATOR <=> (text, situ.query) IS 'distance of a document to a question: 1 - cosine, or the negative inner product where the model''s vectors are compared by it';

CREATE OPERATOR <=> (LEFTARG = character, RIGHTARG = text, FUNCTION = situ_internal.character_distance);
COMMENT ON OPERATOR <=> (character, text) IS 'distance of a document to a question: 1 - cosine, or the negative inner product where the model''s vectors are compared by it';

CREATE OPERATOR <=> (LEFTARG = character, RIGHTARG = situ.query, FUNCTION = situ_internal.character_query_distance);
COMMENT ON OPERATOR <=> (character, situ.query) IS 'distance of a document to a question: 1 - cosine, or the negative inner product where the model''s vectors are compared by it';
