//! Who decides over a row of the registries: the role whose rights the statement runs with, never the one that happens to
//! have called the outermost function.

use crate::bridges::{FILE, LITTLE};
use crate::support::{Sql, shared};
use postgres::Client;

/// A database with the bridge `secret` of the superuser's, and the functions that make files of bridges.
fn secret(name: &str) -> Client {
    let mut admin = shared().text_database(name);
    admin.run(LITTLE);
    admin.run(FILE);
    admin.run("SELECT situ.import_bridge('secret', adapter_file(), model => 'minilm')");
    admin
}

#[test]
fn code_of_others_decides_over_bridges_with_its_owners_rights_only() {
    let mut admin = secret("ownership_code");
    admin.run(
        "DROP ROLE IF EXISTS ownership_thief; CREATE ROLE ownership_thief LOGIN;
         GRANT CREATE ON SCHEMA public TO ownership_thief;
         GRANT EXECUTE ON FUNCTION situ.import_bridge TO ownership_thief",
    );
    let mut thief = shared().connect_as("ownership_thief", "ownership_code");
    thief.run(
        "CREATE FUNCTION key_of(id int) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT id';
         CREATE TABLE bait (id int);
         INSERT INTO bait VALUES (1);
         CREATE INDEX bait_key ON bait (key_of(id))",
    );
    for taken in [
        "situ.drop_bridge('secret')",
        "situ.export_bridge('secret')",
        "situ.import_bridge('secret', public.adapter_file(), model => 'minilm', replace => true)",
    ] {
        thief.run(&format!(
            "CREATE OR REPLACE FUNCTION key_of(id int) RETURNS int LANGUAGE plpgsql IMMUTABLE AS $$
             BEGIN PERFORM {taken}; RETURN id; END $$;
             CREATE OR REPLACE FUNCTION helpful() RETURNS void LANGUAGE plpgsql SECURITY DEFINER AS $$
             BEGIN PERFORM {taken}; END $$"
        ));
        // The server runs the index's function as the owner of the table, the other one as its owner.
        for innocent in ["REINDEX TABLE bait", "ANALYZE bait", "SELECT helpful()"] {
            let failure = admin.failure(innocent);
            failure.is("42501", "must be owner of bridge \"secret\"");
        }
    }
    assert_eq!(
        admin.one::<String>("SELECT owner::text FROM situ.bridges WHERE name = 'secret'"),
        "postgres"
    );
    // With rights that a definer has, they are there.
    admin.run(
        "CREATE FUNCTION lent() RETURNS integer LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
             AS 'SELECT length(situ.export_bridge(''secret''))'",
    );
    assert!(thief.one::<i32>("SELECT public.lent()") > 384 * 384 * 4);
}

#[test]
fn the_functions_of_the_registries_run_as_their_caller() {
    let mut client = shared().database("ownership_definer");
    let definers: Vec<String> = client
        .column("SELECT proname::text FROM pg_proc WHERE prosecdef AND pronamespace = 'situ'::regnamespace ORDER BY 1");
    assert!(definers.is_empty(), "{definers:?}");
}

#[test]
fn a_model_is_its_owners_also_among_those_who_may_register() {
    let mut admin = shared().text_database("ownership_models");
    shared().copy_model("minilm", "ownership_copy");
    admin.run(
        "DROP ROLE IF EXISTS ownership_registrar; CREATE ROLE ownership_registrar LOGIN;
         GRANT EXECUTE ON FUNCTION situ.register_model(text, text, boolean), situ.drop_model(text),
                                   situ.calibrate_model(text) TO ownership_registrar",
    );
    let mut registrar = shared().connect_as("ownership_registrar", "ownership_models");
    for statement in [
        "SELECT situ.drop_model('minilm')",
        "SELECT situ.calibrate_model('minilm')",
        "SELECT situ.register_model('minilm', 'ownership_copy')",
        "SELECT situ.register_model('minilm', 'ownership_copy', true)",
    ] {
        registrar
            .failure(statement)
            .is("42501", "must be owner of model \"minilm\"");
    }
    assert_eq!(
        admin.one::<String>("SELECT owner::text || ' ' || path FROM situ.models"),
        "postgres minilm"
    );
    registrar.run("SELECT situ.register_model('own', 'ownership_copy')");
    assert_eq!(
        admin.one::<String>("SELECT owner::text FROM situ.models WHERE name = 'own'"),
        "ownership_registrar"
    );
    registrar.run("SELECT situ.drop_model('own')");
}

#[test]
fn operators_of_the_caller_never_run_as_the_owner_of_the_registries() {
    let mut admin = secret("ownership_operators");
    shared().copy_model("minilm", "ownership_trap");
    admin.run(
        "DROP ROLE IF EXISTS ownership_trapper; CREATE ROLE ownership_trapper LOGIN;
         CREATE SCHEMA trap AUTHORIZATION ownership_trapper;
         GRANT EXECUTE ON FUNCTION situ.register_model(text, text, boolean), situ.drop_model(text), situ.calibrate_model(text),
                                   situ.import_bridge TO ownership_trapper",
    );
    let mut caller = shared().connect_as("ownership_trapper", "ownership_operators");
    caller.run("CREATE TABLE trap.seen (role text)");
    for (kind, operators) in [
        ("text", "= <>"),
        ("jsonb", "="),
        ("oid", "= <>"),
        ("bigint", "= <= > +"),
        ("integer", "= <= > +"),
        ("boolean", "="),
    ] {
        for (at, operator) in operators.split(' ').enumerate() {
            let result = if operator == "+" { kind } else { "boolean" };
            caller.run(&format!(
                "CREATE FUNCTION trap.act{at}({kind}, {kind}) RETURNS {result} LANGUAGE plpgsql AS $$ BEGIN
                     INSERT INTO trap.seen VALUES (current_user);
                     RETURN $1 OPERATOR(pg_catalog.{operator}) $2;
                 END $$;
                 CREATE OPERATOR trap.{operator} (LEFTARG = {kind}, RIGHTARG = {kind}, FUNCTION = trap.act{at})"
            ));
        }
    }
    caller.run("SET search_path = trap, pg_catalog, public; SELECT 'a'::text = 'b'::text");
    assert_eq!(
        caller.one::<i64>("SELECT count(*) FROM trap.seen"),
        1,
        "the trap closes"
    );
    caller.run(
        "SELECT situ.import_bridge('mine', public.adapter_file(), model => 'minilm');
         SELECT situ.import_bridge('mine', public.adapter_file(), model => 'minilm', replace => true);
         SELECT length(situ.export_bridge('mine'));
         SELECT situ.apply_bridge('mine', situ.embed('tides', 'minilm', 'query'));
         SELECT situ.drop_bridge('mine');
         SELECT situ.register_model('trapped', 'minilm');
         SELECT situ.register_model('trapped', 'ownership_trap', true);
         SELECT situ.calibrate_model('trapped');
         SELECT situ.drop_model('trapped')",
    );
    caller.run("SET search_path = pg_catalog");
    assert_eq!(
        caller.one::<i64>("SELECT count(*) FROM trap.seen WHERE role <> 'ownership_trapper'"),
        0
    );
}
