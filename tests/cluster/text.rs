//! The main path: documents in, an index, a question, rows with their evidence.

use crate::data::{SUBJECTS, by_index, document_table, exactly};
use crate::support::{Sql, shared};
use postgres::Client;

const INDEX: &str = "CREATE INDEX docs_body ON docs USING situ (body) WITH (model = 'minilm', chunk_tokens = 48)";
const TITLED: &str =
    "CREATE INDEX docs_body ON docs USING situ (body, title situ_title_ops) WITH (model = 'minilm', chunk_tokens = 48)";

fn documents(name: &str, index: &str) -> Client {
    let mut client = shared().text_database(name);
    document_table(&mut client);
    client.run(index);
    client
}

#[test]
fn a_question_finds_the_document_and_its_evidence() {
    for (name, index) in [("text_evidence", INDEX), ("text_evidence_titled", TITLED)] {
        let mut client = documents(name, index);
        let mut with_evidence = 0;
        for (id, (_, evidence, question)) in SUBJECTS.iter().enumerate() {
            let row = client
                .query_one(
                    "SELECT d.id, h.passage, h.start_byte, h.end_byte, d.body, h.distance, h.score, h.relation::text
                       FROM situ.search('docs_body', $1::text, k => 1) h JOIN docs d ON d.ctid = h.ctid",
                    &[question],
                )
                .expect("an answer");
            assert_eq!(row.get::<_, i64>(0), id as i64, "{index}: {question}");
            let (passage, body): (String, String) = (row.get(1), row.get(4));
            with_evidence += usize::from(passage.contains(evidence));
            let (start, end): (i32, i32) = (row.get(2), row.get(3));
            assert_eq!(
                &body[start as usize..end as usize],
                passage,
                "the span is the passage's"
            );
            assert!((row.get::<_, f64>(5) + row.get::<_, f64>(6) - 1.0).abs() < 1e-9);
            assert_eq!(row.get::<_, String>(7), "docs");
        }
        // A title before every chunk lets the model prefer another chunk of the right document now and then.
        let least = if index == INDEX {
            SUBJECTS.len()
        } else {
            SUBJECTS.len() - 2
        };
        assert!(
            with_evidence >= least,
            "{index}: {with_evidence} of {} passages hold the evidence",
            SUBJECTS.len()
        );
    }
}

#[test]
fn the_order_of_rows_is_that_of_the_vectors_by_brute_force() {
    for (name, index, arguments) in [
        ("text_order_none", INDEX, "mode => 'none'"),
        ("text_order_header", TITLED, "mode => 'header', title => d.title"),
    ] {
        let mut client = documents(name, index);
        client.run(&format!(
            "CREATE TABLE chunks AS SELECT d.id, s.* FROM docs d,
               LATERAL situ.situate(d.body, 'minilm', chunk_tokens => 48, {arguments}) s"
        ));
        for (_, _, question) in SUBJECTS.iter().take(6) {
            let truth = client
                .query(
                    "SELECT id, min(embedding <=> situ.embed($1, 'minilm')) FROM chunks GROUP BY id ORDER BY 2, 1",
                    &[question],
                )
                .expect("brute force");
            by_index(&mut client);
            let rows = client
                .query("SELECT id, body <=> $1 FROM docs ORDER BY body <=> $1", &[question])
                .expect("by the index");
            let searched = client
                .query(
                    "SELECT d.id, h.distance FROM situ.search('docs_body', $1::text, k => 100) h
                       JOIN docs d ON d.ctid = h.ctid ORDER BY h.distance, d.id",
                    &[question],
                )
                .expect("search");
            assert_eq!(truth.len(), SUBJECTS.len(), "each document comes out once");
            assert_eq!(searched.len(), truth.len());
            for at in 0..truth.len() {
                let (id, distance): (i64, f64) = (truth[at].get(0), truth[at].get(1));
                assert_eq!(searched[at].get::<_, i64>(0), id, "{name}: {question} place {at}");
                assert!(
                    (searched[at].get::<_, f64>(1) - distance).abs() < 1e-4,
                    "{name}: {question} place {at}"
                );
                assert_eq!(
                    (rows[at].get::<_, i64>(0), (rows[at].get::<_, f64>(1) * 1e4).round()),
                    (id, (distance * 1e4).round()),
                    "{name}: {question} place {at} by ORDER BY"
                );
            }
        }
    }
}

#[test]
fn the_index_is_used_and_gives_the_same_first_row_as_a_sequential_scan() {
    let mut client = documents("text_plan", INDEX);
    for (id, (_, _, question)) in SUBJECTS.iter().enumerate().take(4) {
        let statement = format!("SELECT id FROM docs ORDER BY body <=> '{question}' LIMIT 3");
        by_index(&mut client);
        assert!(
            client.plan(&statement).contains("Index Scan using docs_body"),
            "{}",
            client.plan(&statement)
        );
        assert_eq!(client.column::<i64>(&statement)[0], id as i64);
        exactly(&mut client);
        assert!(!client.plan(&statement).contains("Index Scan"));
        assert_eq!(client.column::<i64>(&statement)[0], id as i64, "without the index");
    }
}

#[test]
fn situ_query_asks_like_text() {
    let mut client = documents("text_query", INDEX);
    by_index(&mut client);
    let question = SUBJECTS[3].2;
    let as_text: Vec<i64> = client.column(&format!("SELECT id FROM docs ORDER BY body <=> '{question}' LIMIT 5"));
    let as_query: Vec<i64> = client.column(&format!(
        "SELECT id FROM docs ORDER BY body <=> situ.query('{question}') LIMIT 5"
    ));
    let as_vector: Vec<i64> = client.column(&format!(
        "SELECT id FROM docs ORDER BY body <=> situ.query(embedding => situ.embed('{question}', 'minilm')) LIMIT 5"
    ));
    assert_eq!(as_text, as_query);
    assert_eq!(as_text, as_vector);
    let searched: Vec<i64> = client.column(&format!(
        "SELECT d.id FROM situ.search('docs_body', situ.query('{question}'), k => 5) h JOIN docs d ON d.ctid = h.ctid"
    ));
    assert_eq!(as_text, searched);
}

#[test]
fn late_mixes_the_chunk_with_its_place() {
    let index = "CREATE INDEX docs_body ON docs USING situ (body)
        WITH (model = 'minilm', chunk_tokens = 48, situate = 'late', situate_weight = 0.25)";
    let mut client = documents("text_late", index);
    let mut hits = 0;
    for (id, (_, _, question)) in SUBJECTS.iter().enumerate() {
        let found: i64 = client.one(&format!(
            "SELECT d.id FROM situ.search('docs_body', '{question}', k => 1) h JOIN docs d ON d.ctid = h.ctid"
        ));
        hits += usize::from(found == id as i64);
    }
    assert!(
        hits >= 10,
        "{hits} of {} documents found with situate = late",
        SUBJECTS.len()
    );
    let body = "situ.situate((SELECT body FROM docs WHERE id = 0), 'minilm', chunk_tokens => 48";
    let differing: i64 = client.one(&format!(
        "SELECT count(*) FROM {body}, mode => 'late', weight => 0.25) a JOIN {body}, mode => 'none') b USING (ordinal)
          WHERE a.embedding <=> b.embedding > 1e-4"
    ));
    assert!(differing > 2, "the place has no effect");
    let worst: f64 = client.one(&format!(
        "SELECT max(a.embedding <=> b.embedding) FROM {body}, mode => 'late', weight => 0) a JOIN {body}, mode => 'none') b USING (ordinal)"
    ));
    assert!(worst.abs() < 1e-6, "weight 0 is the chunk alone, not {worst} away");
}

#[test]
fn the_model_card_similarities_hold() {
    let mut client = shared().text_database("text_card");
    for (other, expected) in [
        ("That is a happy dog", 0.6946),
        ("That is a very happy person", 0.9429),
        ("Today is a sunny day", 0.2569),
    ] {
        let distance: f64 = client.one(&format!(
            "SELECT situ.embed('That is a happy person', 'minilm') <=> situ.embed('{other}', 'minilm')"
        ));
        assert!(
            // The precision that `auto` chose: each vector is within cosine 0.999 of f32. The tests of the model room
            // hold f32 to the card's four digits.
            (1.0 - distance - expected).abs() < 0.02,
            "{other}: {} instead of {expected}",
            1.0 - distance
        );
    }
}

#[test]
fn embedding_many_texts_equals_embedding_each() {
    let mut client = shared().text_database("text_batch");
    let texts = "ARRAY['one', NULL, 'a rather longer text about ships and harbours', 'one']";
    let whole: i64 = client.one(&format!(
        "SELECT count(*) FROM unnest(situ.embed_batch({texts}, 'minilm')) WITH ORDINALITY e(v, n)
           JOIN unnest({texts}) WITH ORDINALITY t(text, n) USING (n)
          WHERE v IS NOT DISTINCT FROM situ.embed(text, 'minilm')"
    ));
    assert_eq!(
        whole, 4,
        "a text's vector is the same alone and in any batch, and NULL stays NULL"
    );
}

#[test]
fn chunks_cover_the_text_and_stay_within_the_limit() {
    let mut client = documents("text_chunks", INDEX);
    let rows = client
        .query(
            "SELECT c.ordinal, c.start_byte, c.end_byte, c.passage, d.body
               FROM docs d, LATERAL situ.chunks(d.body, chunk_tokens => 48) c WHERE d.id = 0 ORDER BY c.ordinal",
            &[],
        )
        .expect("chunks");
    assert!(rows.len() > 5);
    let mut before = 0;
    for (at, row) in rows.iter().enumerate() {
        assert_eq!(row.get::<_, i32>(0), at as i32);
        let (start, end, passage, body) = (
            row.get::<_, i32>(1) as usize,
            row.get::<_, i32>(2) as usize,
            row.get::<_, String>(3),
            row.get::<_, String>(4),
        );
        assert!(start >= before && end > start);
        assert_eq!(&body[start..end], passage);
        assert!(
            body[before..start].chars().all(|c| c.is_whitespace() || c == '#'),
            "text between chunks is lost"
        );
        before = end;
    }
}

#[test]
fn rows_without_words_are_left_out_and_do_no_harm() {
    let mut client = shared().text_database("text_empty");
    document_table(&mut client);
    client.run("INSERT INTO docs VALUES (100, 'null', NULL), (101, 'empty', ''), (102, 'blank', E' \\n\\t ')");
    client.run(INDEX);
    client.run("INSERT INTO docs VALUES (103, 'null', NULL), (104, 'empty', ''), (105, NULL, E'\\n')");
    let found: i64 = client.one("SELECT count(*) FROM situ.search('docs_body', 'bread', k => 100)");
    assert_eq!(found, SUBJECTS.len() as i64);
    client.run("UPDATE docs SET body = 'Sourdough bread needs no yeast from a packet.' WHERE id = 104");
    let ids: Vec<i64> = client.column(
        "SELECT d.id FROM situ.search('docs_body', 'sourdough bread', k => 1) h JOIN docs d ON d.ctid = h.ctid",
    );
    assert_eq!(ids, [104]);
}
