-- Everything of situ but its operators and operator classes lives in this schema.

CREATE SCHEMA situ;
COMMENT ON SCHEMA situ IS 'retrieval inside PostgreSQL: models, passages, search';
GRANT USAGE ON SCHEMA situ TO PUBLIC;

CREATE FUNCTION situ.version() RETURNS text
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'version_wrapper';
COMMENT ON FUNCTION situ.version() IS 'version of the library';

-- Whose things are.

CREATE TYPE situ.role;

CREATE FUNCTION situ.role_in(cstring) RETURNS situ.role
    LANGUAGE c STABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'role_in_wrapper';
COMMENT ON FUNCTION situ.role_in(cstring) IS 'input of situ.role: the name of a role; what names none is the current user';

CREATE FUNCTION situ.role_out(situ.role) RETURNS cstring
    LANGUAGE c STABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'role_out_wrapper';
COMMENT ON FUNCTION situ.role_out(situ.role) IS 'output of situ.role: the name of the role, - for one that is gone';

CREATE FUNCTION situ.role_send(situ.role) RETURNS bytea
    LANGUAGE c STABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'role_send_wrapper';
COMMENT ON FUNCTION situ.role_send(situ.role) IS 'binary output of situ.role: as situ.role_out';

CREATE TYPE situ.role (
    INPUT = situ.role_in,
    OUTPUT = situ.role_out,
    SEND = situ.role_send,
    LIKE = pg_catalog.oid
);
COMMENT ON TYPE situ.role IS
    'a role as the registries keep it: written by its name, so that a dump can be restored where roles have other OIDs or are not there';

CREATE CAST (situ.role AS oid) WITHOUT FUNCTION AS IMPLICIT;
CREATE CAST (situ.role AS regrole) WITHOUT FUNCTION AS ASSIGNMENT;
CREATE CAST (oid AS situ.role) WITHOUT FUNCTION AS ASSIGNMENT;
CREATE CAST (regrole AS situ.role) WITHOUT FUNCTION AS ASSIGNMENT;
