//! Documents that wait for the encoder inside a statement: none is lost where a flush fails, none stays of a row that died.

use crate::support::{Sql, shared};
use postgres::Client;

const INDEX: &str = "CREATE INDEX docs_body ON docs USING situ (body) WITH (model = 'minilm')";

fn table(name: &str) -> Client {
    let mut client = shared().text_database(name);
    client.run("CREATE TABLE docs (id bigint PRIMARY KEY, title text, body text)");
    client.run(INDEX);
    client
}

/// Ids in the order of the distance to nothing in particular: every row that the index holds.
fn indexed(client: &mut Client) -> Vec<i64> {
    client.column(
        "SELECT d.id FROM situ.search('docs_body', 'anything', k => 1000) h JOIN docs d ON d.ctid = h.ctid ORDER BY 1",
    )
}

#[test]
fn rows_that_wait_outlive_a_flush_that_fails_in_a_subtransaction() {
    let mut client = table("waiting_failed_flush");
    // A search in the middle of the insert flushes what waits, under a registry that names another model: it fails, the
    // block takes it back, and the insert goes on.
    client
        .batch_execute(
            "CREATE FUNCTION look() RETURNS trigger LANGUAGE plpgsql AS $$
             BEGIN
                 BEGIN
                     UPDATE situ_internal.model_registry SET fingerprint = 'another' WHERE name = 'minilm';
                     PERFORM count(*) FROM situ.search('docs_body', 'anything', k => 1);
                     RAISE 'the search must fail';
                 EXCEPTION WHEN object_not_in_prerequisite_state THEN
                     NULL;
                 END;
                 RETURN NULL;
             END $$;
             CREATE TRIGGER look AFTER INSERT ON docs FOR EACH ROW WHEN (NEW.id = 7) EXECUTE FUNCTION look()",
        )
        .expect("a trigger");
    client.run(
        "INSERT INTO docs SELECT n, '', 'Entry ' || n || ' of the register of ships' FROM generate_series(1, 20) n",
    );
    assert_eq!(indexed(&mut client), (1..=20).collect::<Vec<_>>());
    let (documents, chunks): (i64, i64) = (
        client.one("SELECT documents FROM situ.stat_index"),
        client.one("SELECT chunks FROM situ.stat_index"),
    );
    assert_eq!((documents, chunks), (20, 20), "nothing came in twice");
}

#[test]
fn rows_of_an_aborted_subtransaction_are_gone_and_those_around_it_stay() {
    let mut client = table("waiting_savepoints");
    client
        .batch_execute(
            "CREATE FUNCTION beside() RETURNS trigger LANGUAGE plpgsql AS $$
             BEGIN
                 BEGIN
                     INSERT INTO docs VALUES (NEW.id + 100, '', 'A row beside the others');
                     IF NEW.id % 2 = 0 THEN RAISE division_by_zero; END IF;
                 EXCEPTION WHEN division_by_zero THEN
                     NULL;
                 END;
                 RETURN NULL;
             END $$;
             CREATE TRIGGER beside AFTER INSERT ON docs FOR EACH ROW WHEN (NEW.id < 100) EXECUTE FUNCTION beside()",
        )
        .expect("a trigger");
    client.run("INSERT INTO docs SELECT n, '', 'Entry ' || n || ' of the register' FROM generate_series(1, 6) n");
    assert_eq!(indexed(&mut client), [1, 2, 3, 4, 5, 6, 101, 103, 105]);
}

#[test]
fn a_row_that_lost_to_another_session_is_not_in_the_index() {
    let mut client = table("waiting_speculative");
    // The second evaluation of the key, between the row's writing and its entry in the unique index, waits for a lock.
    client
        .batch_execute(
            "CREATE FUNCTION key_of(id bigint) RETURNS bigint LANGUAGE plpgsql IMMUTABLE AS $$
             DECLARE calls int := coalesce(nullif(current_setting('test.calls', true), ''), '-1')::int;
             BEGIN
                 IF calls >= 0 THEN
                     PERFORM set_config('test.calls', (calls + 1)::text, false);
                     IF calls = 1 THEN PERFORM pg_advisory_lock(77); PERFORM pg_advisory_unlock(77); END IF;
                 END IF;
                 RETURN id;
             END $$;
             ALTER TABLE docs DROP CONSTRAINT docs_pkey;
             CREATE UNIQUE INDEX docs_key ON docs (key_of(id))",
        )
        .expect("a unique index");
    client.run("SELECT pg_advisory_lock(77)");
    let waiter = std::thread::spawn(|| {
        let mut second = shared().connect("waiting_speculative");
        second.run("SET test.calls = 0");
        second
            .execute(
                "INSERT INTO docs VALUES (1, '', 'The slower row') ON CONFLICT (key_of(id)) DO NOTHING",
                &[],
            )
            .expect("an insert that loses")
    });
    crate::support::eventually("the second session waits", 60, || {
        client.one::<bool>("SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND NOT granted)")
    });
    client.run("INSERT INTO docs VALUES (1, '', 'The faster row')");
    client.run("SELECT pg_advisory_unlock(77)");
    assert_eq!(
        waiter.join().expect("the second session"),
        0,
        "its row was not inserted"
    );
    let chunks: i64 = client.one("SELECT chunks FROM situ.stat_index");
    assert_eq!(chunks, 1, "the row that died has no entry");
    assert_eq!(indexed(&mut client), [1]);
}
