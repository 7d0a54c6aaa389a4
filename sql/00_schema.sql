-- Everything of situ but its operators and operator classes lives in two schemas: situ for what users name, situ_internal
-- for what only the extension's own objects and its library name.

DO $$
DECLARE
    wanted text;
    home oid;
BEGIN
    IF pg_catalog.getdatabaseencoding() <> 'UTF8' THEN
        RAISE feature_not_supported USING
            MESSAGE = pg_catalog.format('situ needs a database in UTF8, this one is in %s', pg_catalog.getdatabaseencoding()),
            DETAIL = 'Models and passages are Unicode; the bytes of a body that spans name are those of UTF8.',
            HINT = 'CREATE DATABASE ... ENCODING ''UTF8'' TEMPLATE template0, and dump and restore into it.';
    END IF;
    FOREACH wanted IN ARRAY ARRAY['situ', 'situ_internal'] LOOP
        home := (SELECT n.oid FROM pg_catalog.pg_namespace n WHERE n.nspname = wanted);
        IF home IS NULL THEN
            EXECUTE pg_catalog.format('CREATE SCHEMA %I', wanted);
            CONTINUE;
        END IF;
        -- A schema that is there is taken over only where nobody but superusers can have put, or can put, anything into it.
        IF EXISTS (SELECT FROM pg_catalog.pg_namespace n JOIN pg_catalog.pg_roles r ON r.oid = n.nspowner
                    WHERE n.oid = home AND NOT r.rolsuper)
           OR EXISTS (SELECT FROM pg_catalog.pg_namespace n, pg_catalog.aclexplode(n.nspacl) a
                       WHERE n.oid = home AND a.privilege_type = 'CREATE' AND a.grantee <> n.nspowner)
           OR EXISTS (SELECT FROM pg_catalog.pg_depend d
                       WHERE d.refclassid = 'pg_catalog.pg_namespace'::pg_catalog.regclass AND d.refobjid = home
                         AND d.classid <> 'pg_catalog.pg_extension'::pg_catalog.regclass
                         AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend e
                                          WHERE e.classid = d.classid AND e.objid = d.objid AND e.deptype = 'e'))
        THEN
            RAISE duplicate_schema USING
                MESSAGE = pg_catalog.format('schema "%s" already exists', wanted),
                DETAIL = 'It is not empty, or roles other than superusers own it or may create in it.',
                HINT = pg_catalog.format('ALTER SCHEMA %I RENAME TO another name, or drop it; the extension makes its own.', wanted);
        END IF;
        -- The schema that the extension is installed in cannot be a part of it.
        IF '@extschema@' <> wanted THEN
            EXECUTE pg_catalog.format('ALTER EXTENSION situ ADD SCHEMA %I', wanted);
        END IF;
    END LOOP;
END $$;
COMMENT ON SCHEMA situ IS 'retrieval inside PostgreSQL: models, passages, search';
COMMENT ON SCHEMA situ_internal IS 'parts of the extension situ that only the extension itself names';
GRANT USAGE ON SCHEMA situ, situ_internal TO PUBLIC;

CREATE FUNCTION situ.version() RETURNS text
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'version_wrapper';
COMMENT ON FUNCTION situ.version() IS 'version of the library';

-- Whose things are.

CREATE TYPE situ.role;

CREATE FUNCTION situ_internal.role_in(cstring) RETURNS situ.role
    LANGUAGE c STABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'role_in_wrapper';
COMMENT ON FUNCTION situ_internal.role_in(cstring) IS
    'input of situ.role: the name of a role; what names none is the current user';

CREATE FUNCTION situ_internal.role_out(situ.role) RETURNS cstring
    LANGUAGE c STABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'role_out_wrapper';
COMMENT ON FUNCTION situ_internal.role_out(situ.role) IS 'output of situ.role: the name of the role, - for one that is gone';

CREATE FUNCTION situ_internal.role_send(situ.role) RETURNS bytea
    LANGUAGE c STABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'role_send_wrapper';
COMMENT ON FUNCTION situ_internal.role_send(situ.role) IS 'binary output of situ.role: as situ_internal.role_out';

CREATE TYPE situ.role (
    INPUT = situ_internal.role_in,
    OUTPUT = situ_internal.role_out,
    SEND = situ_internal.role_send,
    LIKE = pg_catalog.oid
);
COMMENT ON TYPE situ.role IS
    'a role as the registries keep it: written by its name, so that a dump can be restored where roles have other OIDs or are not there';

CREATE CAST (situ.role AS oid) WITHOUT FUNCTION AS IMPLICIT;
CREATE CAST (situ.role AS regrole) WITHOUT FUNCTION AS ASSIGNMENT;
CREATE CAST (oid AS situ.role) WITHOUT FUNCTION AS ASSIGNMENT;
CREATE CAST (regrole AS situ.role) WITHOUT FUNCTION AS ASSIGNMENT;
