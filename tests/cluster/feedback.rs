//! Feedback through SQL: formulas by hand, the second round against brute force, what stays in front, gates.

use crate::data::{SUBJECTS, by_index, clustered, document_table, exactly, literal, vector_table};
use crate::support::{Sql, shared};
use postgres::Client;
use std::collections::HashSet;

#[test]
fn formulas_by_hand_as_functions_and_aggregates() {
    let mut client = shared().database("feedback_formulas");
    let near = |client: &mut Client, sql: &str, expected: [f32; 2]| {
        let found: Vec<f32> = client.one(&format!("SELECT ({sql})::real[]"));
        assert!(
            found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6),
            "{sql}: {found:?}"
        );
    };
    let passages = "ARRAY['[0,1]', '[0,3]']::vector[]";
    near(
        &mut client,
        &format!("situ.feedback_average('[1,0]', {passages})"),
        [1.0 / 3.0, 4.0 / 3.0],
    );
    near(
        &mut client,
        &format!("situ.feedback_rocchio('[1,0]', {passages})"),
        [0.4, 1.2],
    );
    near(
        &mut client,
        &format!("situ.feedback_rocchio('[1,0]', {passages}, ARRAY['[4,0]', '[0,2]']::vector[], 0.4, 0.6, 0.1)"),
        [0.2, 1.1],
    );
    near(&mut client, "situ.feedback_average('[1,0]', NULL)", [1.0, 0.0]);
    client.run(
        "CREATE TABLE passages (v vector(2), good boolean);
         INSERT INTO passages VALUES ('[0,1]', true), ('[0,3]', true), ('[4,0]', false), ('[0,2]', false), (NULL, true)",
    );
    near(
        &mut client,
        "SELECT situ.feedback_average_agg('[1,0]'::vector, v) FROM passages WHERE good",
        [1.0 / 3.0, 4.0 / 3.0],
    );
    near(
        &mut client,
        "SELECT situ.feedback_rocchio_agg('[1,0]'::vector, v, good, 0.4::real, 0.6::real, 0.1::real) FROM passages",
        [0.2, 1.1],
    );
    let failure = client.failure("SELECT situ.feedback_average('[1,0]', ARRAY['[1,2,3]']::vector[])");
    assert_eq!(failure.code, "22023", "{failure:#?}");
}

/// The ids that `situ.search` finds in the table of [`vector_table`].
fn search(client: &mut Client, query: &str, options: &str, k: usize) -> Vec<(i64, f64)> {
    let rows = client
        .query(
            &format!(
                "SELECT t.id, h.distance FROM situ.search('nearest', situ.query(embedding => '{query}'{options}), k => {k})
                   WITH ORDINALITY h(relation, ctid, key, ordinal, start_byte, end_byte, start_char, end_char, passage, distance, score, place)
                   JOIN t ON t.ctid = h.ctid ORDER BY h.place"
            ),
            &[],
        )
        .unwrap_or_else(|error| panic!("{options}: {error:#?}"));
    rows.iter().map(|row| (row.get(0), row.get(1))).collect()
}

#[test]
fn the_second_round_is_exact_search_by_the_moved_query() {
    let mut client = shared().database("feedback_vectors");
    vector_table(&mut client, "t", "vector", &clustered(4000, 32, 61));
    for (class, operator) in [
        ("vector_l2_ops", "<->"),
        ("vector_cosine_ops", "<=>"),
        ("vector_ip_ops", "<#>"),
    ] {
        client.run(&format!("CREATE INDEX nearest ON t USING situ (v {class})"));
        let unit = if operator == "<=>" { "l2_normalize" } else { "" };
        let (mut found, mut asked) = (0, 0);
        for query in clustered(8, 32, 62) {
            let query = literal(&query);
            for (options, depth, formula) in [
                (", feedback => 'average'", 3, "situ.feedback_average"),
                (
                    ", feedback => 'rocchio', feedback_depth => 5",
                    5,
                    "situ.feedback_rocchio",
                ),
            ] {
                exactly(&mut client);
                let moved: String = client.one(&format!(
                    "SELECT {formula}({unit}('{query}'::vector), array_agg({unit}(v)))::text
                       FROM (SELECT v FROM t ORDER BY v {operator} '{query}' LIMIT {depth}) p"
                ));
                let truth = client
                    .query(
                        &format!("SELECT id, v {operator} '{moved}' FROM t ORDER BY 2 LIMIT 20"),
                        &[],
                    )
                    .expect("brute force");
                let truth: Vec<(i64, f64)> = truth.iter().map(|row| (row.get(0), row.get(1))).collect();
                let hits = search(&mut client, &query, options, 20);
                let ids: HashSet<i64> = truth.iter().map(|(id, _)| *id).collect();
                found += hits.iter().filter(|(id, _)| ids.contains(id)).count();
                asked += 20;
                assert!(hits.windows(2).all(|pair| pair[0].1 <= pair[1].1), "distances ascend");
                assert!(
                    (hits[0].1 - truth[0].1).abs() < 1e-3 * truth[0].1.abs().max(1.0),
                    "{hits:?} {truth:?}"
                );
            }
        }
        assert!(found as f64 >= 0.95 * f64::from(asked), "{class}: {found} of {asked}");
        client.run("DROP INDEX nearest");
    }
}

#[test]
fn what_is_kept_stays_in_front_and_every_row_comes_once() {
    let mut client = shared().database("feedback_kept");
    vector_table(&mut client, "t", "vector", &clustered(3000, 24, 63));
    client.run("CREATE INDEX nearest ON t USING situ (v vector_cosine_ops)");
    let query = literal(&clustered(1, 24, 64)[0]);
    let ids = |rows: &[(i64, f64)]| rows.iter().map(|(id, _)| *id).collect::<Vec<_>>();
    let plain = ids(&search(&mut client, &query, "", 3000));
    for (options, keep) in [
        (", feedback => 'gated'", 10),
        (", feedback => 'gated', feedback_keep => 3, feedback_rounds => 3", 3),
        (
            ", feedback => 'gated', feedback_keep => 0, feedback_mode => 'rerank', feedback_rounds => 2",
            0,
        ),
        (
            ", feedback => 'rocchio', feedback_keep => 1, feedback_mode => 'rerank'",
            1,
        ),
        (
            ", feedback => 'rocchio', feedback_bottom => 10, feedback_list => 50, feedback_keep => 7",
            7,
        ),
        (", feedback => 'average', probes => 1", 0),
    ] {
        let rows = search(&mut client, &query, options, 3000);
        let found = ids(&rows);
        assert_eq!(found[..keep], plain[..keep], "{options}");
        assert_eq!(found.iter().collect::<HashSet<_>>().len(), 3000, "{options}");
        assert!(
            rows.windows(2).all(|pair| pair[0].1 <= pair[1].1 + 1e-12),
            "{options}: distances ascend"
        );
        assert_ne!(found[..200], plain[..200], "{options}: feedback changes something");
        if options.contains("rerank") {
            let set = |ids: &[i64]| ids.iter().copied().collect::<HashSet<_>>();
            assert_eq!(
                set(&found[..100]),
                set(&plain[..100]),
                "the same hundred rows, ranked anew"
            );
            assert_eq!(found[100..], plain[100..], "{options}: the rows after them as before");
        }
    }
    assert_eq!(
        ids(&search(&mut client, &query, ", feedback => 'none'", 50)),
        plain[..50]
    );
    // A search for no more rows than stay in front is plain search, distances included; behind them distances go on.
    let few = search(&mut client, &query, "", 10);
    assert_eq!(search(&mut client, &query, ", feedback => 'gated'", 10), few);
    let more = search(&mut client, &query, ", feedback => 'gated'", 60);
    assert_eq!(more[..10], few);
    assert!(more[10].1 > few[9].1 && more[10].1 < few[9].1 + 0.05, "{more:?}");
    // A gate that has to see the round first decides before the first row comes out.
    client.run(
        "INSERT INTO situ.feedback_gates (index, gate, figures, tuned_by) SELECT 'public.nearest',
           '{\"strength\":0.3,\"threshold\":1000,\"sharp\":1,\"blunt\":4,\"off\":false}', '{}', 'postgres'",
    );
    let blunt = search(&mut client, &query, ", feedback => 'gated'", 3000);
    let fixed = ", feedback => 'gated', feedback_beta => 0.3, feedback_gamma => 0.3, feedback_keep => $";
    assert_eq!(ids(&blunt)[..4], plain[..4]);
    assert_eq!(
        ids(&blunt)[..50],
        ids(&search(&mut client, &query, &fixed.replace('$', "4"), 3000))[..50]
    );
    client.run("UPDATE situ.feedback_gates SET gate = jsonb_set(gate, '{threshold}', '-1000')");
    let sharp = search(&mut client, &query, ", feedback => 'gated'", 3000);
    assert_eq!(
        ids(&sharp)[..50],
        ids(&search(&mut client, &query, &fixed.replace('$', "1"), 3000))[..50]
    );
    assert_eq!(sharp.iter().map(|(id, _)| id).collect::<HashSet<_>>().len(), 3000);
}

#[test]
fn documents_come_by_feedback_through_order_by_and_search_alike() {
    let mut client = shared().text_database("feedback_text");
    document_table(&mut client);
    client.run("CREATE INDEX docs_body ON docs USING situ (body) WITH (model = 'minilm', chunk_tokens = 48)");
    let question = SUBJECTS[4].2;
    let asked =
        format!("situ.query('{question}'::text, feedback => 'rocchio', feedback_depth => 2, feedback_keep => 1)");
    by_index(&mut client);
    let ordered: Vec<i64> = client.column(&format!("SELECT id FROM docs ORDER BY body <=> {asked}"));
    let distances: Vec<f64> = client.column(&format!("SELECT body <=> {asked} FROM docs ORDER BY body <=> {asked}"));
    let searched: Vec<i64> = client.column(&format!(
        "SELECT d.id FROM situ.search('docs_body', {asked}, k => 100) h JOIN docs d ON d.ctid = h.ctid ORDER BY h.distance"
    ));
    assert_eq!(ordered, searched);
    assert_eq!(ordered.iter().collect::<HashSet<_>>().len(), SUBJECTS.len());
    assert_eq!(ordered[0], 4);
    assert!(
        distances.windows(2).all(|pair| pair[0] < pair[1]),
        "what is printed is what rows are ordered by"
    );
    client.run(&format!(
        "BEGIN; DECLARE c CURSOR FOR SELECT id FROM docs ORDER BY body <=> {asked}"
    ));
    let mut fetched: Vec<i64> = client.column("FETCH 1 FROM c");
    fetched.extend(client.column::<i64>("FETCH 100 FROM c"));
    client.run("COMMIT");
    assert_eq!(fetched, ordered, "further rows come on demand");
    exactly(&mut client);
    client
        .failure(&format!("SELECT id FROM docs ORDER BY body <=> {asked}"))
        .is("0A000", "scan of an index");
}

#[test]
fn options_that_make_no_sense_are_refused() {
    let mut client = shared().database("feedback_options");
    for (options, part) in [
        ("feedback => 'magic'", "magic"),
        ("feedback => 'average', feedback_mode => 'later'", "later"),
        ("feedback => 'average', feedback_depth => 0", "feedback_depth"),
        ("feedback => 'rocchio', feedback_beta => -1", "beta"),
        ("feedback => 'gated', feedback_keep => 1000", "feedback_keep"),
        (
            "feedback => 'gated', feedback_bottom => 40, feedback_list => 20",
            "bottom",
        ),
        ("feedback_rounds => 0", "rounds"),
    ] {
        let failure = client.failure(&format!("SELECT situ.query('a'::text, {options})"));
        assert!(
            failure.code == "22023" && failure.message.contains(part),
            "{options}: {failure:#?}"
        );
    }
    let printed: String =
        client.one("SELECT situ.query('a'::text, feedback => 'rocchio', feedback_beta => 0.5)::text::situ.query::text");
    assert_eq!(printed, r#"{"text":"a","feedback":{"method":"rocchio","beta":0.5}}"#);
}

#[test]
fn a_gate_is_calibrated_stored_used_and_dropped() {
    let mut client = shared().text_database("feedback_gate");
    client.run("CREATE TABLE docs (id bigint PRIMARY KEY, title text, body text)");
    for subject in 0..30 {
        crate::data::add_document(&mut client, subject, subject as usize, 6 + subject as usize % 5);
    }
    client.run("CREATE INDEX docs_body ON docs USING situ (body) WITH (model = 'minilm', chunk_tokens = 48)");
    let tried: i64 = client.one("SELECT count(*) FROM situ.tune_feedback('docs_body', kind => 'span8', n => 25)");
    assert_eq!(tried, 21);
    let stored: i64 = client.one(
        "SELECT count(*) FROM situ.feedback_gates WHERE index = 'public.docs_body' AND figures->>'source' = 'span8'
            AND (figures->>'queries')::int = 25 AND (gate->>'blunt')::int = 10",
    );
    assert_eq!(stored, 1);
    let query =
        "SELECT array_agg(d.id ORDER BY h.distance) FROM situ.search('docs_body', situ.query('item on a shelf'::text";
    let answer = |client: &mut Client, options: &str| -> Vec<i64> {
        client.one(&format!("{query}{options}), k => 30) h JOIN docs d ON d.ctid = h.ctid"))
    };
    let plain = answer(&mut client, "");
    let gate = |off: bool, keep: i32| {
        format!(
            "UPDATE situ.feedback_gates SET gate = '{{\"strength\":1.5,\"threshold\":0,\"sharp\":{keep},\"blunt\":{keep},\"off\":{off}}}'"
        )
    };
    client.run(&gate(true, 10));
    assert_eq!(
        answer(&mut client, ", feedback => 'gated'"),
        plain,
        "a gate that is off changes nothing"
    );
    client.run(&gate(false, 2));
    let gated = answer(&mut client, ", feedback => 'gated'");
    assert_eq!(gated[..2], plain[..2], "this backend hears of the change");
    assert_ne!(gated, plain);
    client.run("CREATE ROLE feedback_other; GRANT SELECT ON docs TO feedback_other; SET ROLE feedback_other");
    client
        .failure("SELECT * FROM situ.tune_feedback('docs_body')")
        .is("42501", "owner");
    client
        .failure("SELECT situ.drop_feedback_gate('docs_body')")
        .is("42501", "owner");
    assert_eq!(
        answer(&mut client, ", feedback => 'gated'"),
        gated,
        "everybody may use it"
    );
    client.run("RESET ROLE; SELECT situ.drop_feedback_gate('docs_body')");
    assert_eq!(client.one::<i64>("SELECT count(*) FROM situ.feedback_gates"), 0);
    assert_eq!(
        answer(&mut client, ", feedback => 'gated'")[..10],
        plain[..10],
        "without a gate ten rows stay"
    );
}
