-- The access method and its operator classes. Support function 1 of a class gives the kind of its key
-- (src/pg/am/kind.rs has the numbers).

CREATE FUNCTION situ_internal.handler(internal) RETURNS index_am_handler
    LANGUAGE c AS 'MODULE_PATHNAME', 'situ_handler';
COMMENT ON FUNCTION situ_internal.handler(internal) IS 'handler of the access method situ';

CREATE ACCESS METHOD situ TYPE INDEX HANDLER situ_internal.handler;
COMMENT ON ACCESS METHOD situ IS 'inverted lists over RaBitQ codes, for documents and for vectors';

CREATE FUNCTION situ_internal.kind_text() RETURNS integer
    LANGUAGE c IMMUTABLE PARALLEL SAFE AS 'MODULE_PATHNAME', 'kind_text_wrapper';
COMMENT ON FUNCTION situ_internal.kind_text() IS 'kind of an operator class: documents';
CREATE FUNCTION situ_internal.kind_title() RETURNS integer
    LANGUAGE c IMMUTABLE PARALLEL SAFE AS 'MODULE_PATHNAME', 'kind_title_wrapper';
COMMENT ON FUNCTION situ_internal.kind_title() IS 'kind of an operator class: the title beside a document';
CREATE FUNCTION situ_internal.kind_vector_l2() RETURNS integer
    LANGUAGE c IMMUTABLE PARALLEL SAFE AS 'MODULE_PATHNAME', 'kind_vector_l2_wrapper';
COMMENT ON FUNCTION situ_internal.kind_vector_l2() IS 'kind of an operator class: vector by <->';
CREATE FUNCTION situ_internal.kind_vector_ip() RETURNS integer
    LANGUAGE c IMMUTABLE PARALLEL SAFE AS 'MODULE_PATHNAME', 'kind_vector_ip_wrapper';
COMMENT ON FUNCTION situ_internal.kind_vector_ip() IS 'kind of an operator class: vector by <#>';
CREATE FUNCTION situ_internal.kind_vector_cosine() RETURNS integer
    LANGUAGE c IMMUTABLE PARALLEL SAFE AS 'MODULE_PATHNAME', 'kind_vector_cosine_wrapper';
COMMENT ON FUNCTION situ_internal.kind_vector_cosine() IS 'kind of an operator class: vector by <=>';
CREATE FUNCTION situ_internal.kind_halfvec_l2() RETURNS integer
    LANGUAGE c IMMUTABLE PARALLEL SAFE AS 'MODULE_PATHNAME', 'kind_halfvec_l2_wrapper';
COMMENT ON FUNCTION situ_internal.kind_halfvec_l2() IS 'kind of an operator class: halfvec by <->';
CREATE FUNCTION situ_internal.kind_halfvec_ip() RETURNS integer
    LANGUAGE c IMMUTABLE PARALLEL SAFE AS 'MODULE_PATHNAME', 'kind_halfvec_ip_wrapper';
COMMENT ON FUNCTION situ_internal.kind_halfvec_ip() IS 'kind of an operator class: halfvec by <#>';
CREATE FUNCTION situ_internal.kind_halfvec_cosine() RETURNS integer
    LANGUAGE c IMMUTABLE PARALLEL SAFE AS 'MODULE_PATHNAME', 'kind_halfvec_cosine_wrapper';
COMMENT ON FUNCTION situ_internal.kind_halfvec_cosine() IS 'kind of an operator class: halfvec by <=>';

CREATE OPERATOR CLASS situ_text_ops DEFAULT FOR TYPE text USING situ AS
    OPERATOR 1 <=> (text, text) FOR ORDER BY float_ops,
    OPERATOR 2 <=> (text, situ.query) FOR ORDER BY float_ops,
    FUNCTION 1 situ_internal.kind_text();

CREATE OPERATOR CLASS situ_character_ops DEFAULT FOR TYPE character USING situ AS
    OPERATOR 1 <=> (character, text) FOR ORDER BY float_ops,
    OPERATOR 2 <=> (character, situ.query) FOR ORDER BY float_ops,
    FUNCTION 1 situ_internal.kind_text();

CREATE OPERATOR CLASS situ_character_title_ops FOR TYPE character USING situ AS
    FUNCTION 1 situ_internal.kind_title();

CREATE OPERATOR CLASS situ_title_ops FOR TYPE text USING situ AS
    FUNCTION 1 situ_internal.kind_title();

CREATE OPERATOR CLASS vector_l2_ops DEFAULT FOR TYPE @extschema:vector@.vector USING situ AS
    OPERATOR 1 @extschema:vector@.<-> (@extschema:vector@.vector, @extschema:vector@.vector) FOR ORDER BY float_ops,
    FUNCTION 1 situ_internal.kind_vector_l2();

CREATE OPERATOR CLASS vector_ip_ops FOR TYPE @extschema:vector@.vector USING situ AS
    OPERATOR 1 @extschema:vector@.<#> (@extschema:vector@.vector, @extschema:vector@.vector) FOR ORDER BY float_ops,
    FUNCTION 1 situ_internal.kind_vector_ip();

CREATE OPERATOR CLASS vector_cosine_ops FOR TYPE @extschema:vector@.vector USING situ AS
    OPERATOR 1 @extschema:vector@.<=> (@extschema:vector@.vector, @extschema:vector@.vector) FOR ORDER BY float_ops,
    FUNCTION 1 situ_internal.kind_vector_cosine();

CREATE OPERATOR CLASS halfvec_l2_ops DEFAULT FOR TYPE @extschema:vector@.halfvec USING situ AS
    OPERATOR 1 @extschema:vector@.<-> (@extschema:vector@.halfvec, @extschema:vector@.halfvec) FOR ORDER BY float_ops,
    FUNCTION 1 situ_internal.kind_halfvec_l2();

CREATE OPERATOR CLASS halfvec_ip_ops FOR TYPE @extschema:vector@.halfvec USING situ AS
    OPERATOR 1 @extschema:vector@.<#> (@extschema:vector@.halfvec, @extschema:vector@.halfvec) FOR ORDER BY float_ops,
    FUNCTION 1 situ_internal.kind_halfvec_ip();

CREATE OPERATOR CLASS halfvec_cosine_ops FOR TYPE @extschema:vector@.halfvec USING situ AS
    OPERATOR 1 @extschema:vector@.<=> (@extschema:vector@.halfvec, @extschema:vector@.halfvec) FOR ORDER BY float_ops,
    FUNCTION 1 situ_internal.kind_halfvec_cosine();
