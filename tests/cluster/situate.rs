//! Situated vectors in a server: a bridge over a document's chunks, in functions and in indexes, and chunks that users cut.

use crate::data::{SUBJECTS, document_table};
use crate::support::{Sql, shared};
use postgres::Client;

/// The bytes of a bridge of kind situate for 384 dimensions and rank 1, as base64 of a file made here: `map` is
/// `factor` times the identity and `values` the mean's share.
fn bridge(values: f32) -> Vec<u8> {
    let d = 384usize;
    let identity = |factor: f32| -> Vec<f32> {
        (0..d * d)
            .map(|at| if at / d == at % d { factor } else { 0.0 })
            .collect()
    };
    let tensors: [(&str, Vec<usize>, Vec<f32>); 6] = [
        ("bias", vec![7], vec![0.0; 7]),
        ("key", vec![1, d], vec![0.0; d]),
        ("map", vec![d, d], identity(0.0)),
        ("query", vec![1, d], vec![0.0; d]),
        ("share", vec![1], vec![0.0]),
        ("values", vec![d, d], identity(values)),
    ];
    let mut header = serde_json::json!({"__metadata__": {"situ": "{\"kind\": \"situate\", \"dimensions\": 384}"}});
    let mut data = Vec::new();
    for (name, shape, numbers) in tensors {
        let start = data.len();
        data.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
        header[name] = serde_json::json!({"dtype": "F32", "shape": shape, "data_offsets": [start, data.len()]});
    }
    let mut header = header.to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    [(header.len() as u64).to_le_bytes().to_vec(), header, data].concat()
}

/// Stores a bridge as the registry's owner would.
fn store(client: &mut Client, name: &str, weights: &[u8], state: &str) {
    client.run(&format!("DELETE FROM situ.bridges WHERE name = '{name}'"));
    client
        .execute(
            "INSERT INTO situ.bridges (name, kind, model, fingerprint, dimensions, owner, state, recipe, figures, hash, weights)
             SELECT $1, 'situate', 'minilm', fingerprint, 384, current_user::regrole, $2, '{}', '{}',
                    encode(sha256($3::bytea), 'hex'), $3
               FROM situ_internal.model_registry WHERE name = 'minilm'",
            &[&name, &state, &weights],
        )
        .expect("a stored bridge");
}

fn database(name: &str) -> Client {
    let mut client = shared().text_database(name);
    document_table(&mut client);
    client
}

const BODY: &str = "(SELECT body FROM docs WHERE id = 0), 'minilm', chunk_tokens => 48";

#[test]
fn a_bridge_changes_the_vectors_of_a_document_as_its_formula_says() {
    let mut client = database("situate_function");
    store(&mut client, "none", &bridge(0.0), "accepted");
    store(&mut client, "some", &bridge(0.5), "accepted");
    store(&mut client, "bad", &bridge(0.0), "rejected");
    let worst: f64 = client.one(&format!(
        "SELECT max(a.embedding <=> b.embedding) FROM situ.situate({BODY}, mode => 'none') a
           JOIN situ.situate({BODY}, mode => 'bridge', bridge => 'none') b USING (ordinal)"
    ));
    assert!(worst < 1e-6, "{worst}");
    // All scores are 0: each of a chunk's sources and the empty one have the same share.
    let worst: f64 = client.one(&format!(
        "WITH chunk AS MATERIALIZED (SELECT * FROM situ.situate({BODY}, mode => 'none')),
              mean AS (SELECT l2_normalize(avg(embedding)) AS mean FROM chunk),
              near AS (SELECT a.ordinal, count(*) + 2 AS sources, sum(b.embedding) AS total
                         FROM chunk a JOIN chunk b ON abs(a.ordinal - b.ordinal) BETWEEN 1 AND 3 GROUP BY 1),
              expected AS (SELECT ordinal, l2_normalize(embedding
                                  + (SELECT array_agg(x * 0.5 / sources)::vector
                                       FROM unnest((total + mean)::real[]) x)) AS vector
                             FROM chunk JOIN near USING (ordinal) CROSS JOIN mean)
         SELECT max(vector <=> embedding) FROM expected
           JOIN situ.situate({BODY}, bridge => 'some') USING (ordinal)"
    ));
    assert!(worst < 1e-5, "{worst}");
    for (call, code, part) in [
        ("mode => 'bridge'", "22023", "belong together"),
        ("mode => 'late', bridge => 'some'", "22023", "belong together"),
        ("bridge => 'missing'", "42704", "does not exist"),
        ("bridge => 'bad'", "55000", "rejected"),
        ("mode => 'residual'", "22023", "residual"),
    ] {
        let failure = client.failure(&format!("SELECT * FROM situ.situate({BODY}, {call})"));
        assert_eq!(failure.code, code, "{call}: {failure:#?}");
        assert!(failure.message.contains(part), "{call}: {failure:#?}");
    }
}

#[test]
fn chunks_that_the_user_has_cut_are_those_that_the_server_cuts() {
    let mut client = database("situate_chunks");
    store(&mut client, "some", &bridge(0.5), "accepted");
    for options in [
        "mode => 'none'",
        "bridge => 'some'",
        "mode => 'header', title => 'Title'",
    ] {
        let worst: f64 = client.one(&format!(
            "WITH cut AS MATERIALIZED (SELECT * FROM situ.situate({BODY}, {options})),
                  own AS (SELECT situ.situate_chunks(array_agg(passage ORDER BY ordinal), 'minilm', {options}) AS v FROM cut)
             SELECT max(cut.embedding <=> v[ordinal + 1]) FROM cut CROSS JOIN own"
        ));
        // Headings that the body has are not in the chunks.
        assert!(
            worst < if options.contains("header") { 0.5 } else { 1e-5 },
            "{options}: {worst}"
        );
    }
    let nulls: i64 = client.one(
        "SELECT count(*) FROM unnest(situ.situate_chunks(ARRAY['a text', NULL, '  ', 'another'], 'minilm', bridge => 'some')) v
          WHERE v IS NULL",
    );
    assert_eq!(nulls, 2);
}

#[test]
fn an_index_keeps_its_bridge_and_says_when_it_has_changed() {
    let mut client = database("situate_index");
    store(&mut client, "some", &bridge(0.5), "accepted");
    client.run(
        "CREATE INDEX docs_body ON docs USING situ (body)
           WITH (model = 'minilm', chunk_tokens = 48, situate = 'bridge', bridge = 'some')",
    );
    let question = SUBJECTS[1].2;
    let search = format!("SELECT distance FROM situ.search('docs_body', '{question}', k => 1)");
    let by_hand = format!(
        "SELECT min(embedding <=> situ.embed('{question}', 'minilm', 'query'))
           FROM docs, situ.situate(body, 'minilm', chunk_tokens => 48, bridge => 'some')"
    );
    let distance = |client: &mut Client| -> (f64, f64) { (client.one(&search), client.one(&by_hand)) };
    let (found, expected) = distance(&mut client);
    assert!((found - expected).abs() < 1e-4, "{found} {expected}");
    // A row that changes is encoded again, as a whole.
    client.run("UPDATE docs SET body = body || ' And one more sentence about something else entirely.'");
    let (found, expected) = distance(&mut client);
    assert!((found - expected).abs() < 1e-4, "{found} {expected}");
    store(&mut client, "some", &bridge(0.25), "accepted");
    let failure = client.failure(&search);
    failure.is("55000", "bridge");
    assert!(failure.hint.contains("REINDEX"), "{failure:#?}");
    client
        .failure("INSERT INTO docs (id, body) VALUES (1000000, 'A text.')")
        .is("55000", "bridge");
    client.run("REINDEX INDEX docs_body");
    let (found, expected) = distance(&mut client);
    assert!((found - expected).abs() < 1e-4, "{found} {expected}");
    client.run("DELETE FROM situ.bridges");
    client.failure(&search).is("42704", "some");
    let options = "model = 'minilm', situate = 'bridge'";
    let failure = client.failure(&format!("CREATE INDEX ON docs USING situ (body) WITH ({options})"));
    failure.is("22023", "belong together");
}
