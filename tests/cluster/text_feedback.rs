//! Feedback of texts on a server: a trained copy of the encoder reads question and passages, the second round follows.

use crate::support::{Cluster, Sql, shared};
use postgres::Client;

/// 150 houses of five rooms, a text index over them, and a question about each room.
pub fn houses(client: &mut Client) {
    client.run(
        "CREATE TABLE rooms AS SELECT n AS id, n / 5 AS document, n % 5 AS ordinal,
                'In house ' || n / 5 || ' the ' || (ARRAY['kitchen', 'cellar', 'attic', 'hall', 'study'])[n % 5 + 1] || ' has '
                || (n * 7) % 31 + 2 || ' green windows and a door of ' || (ARRAY['oak', 'iron', 'glass'])[n % 3 + 1] || '.' AS body
           FROM generate_series(0, 749) n;
         CREATE TABLE pairs AS SELECT 'How many windows are in the ' || (ARRAY['kitchen', 'cellar', 'attic', 'hall', 'study'])[n % 5 + 1]
                || ' of house ' || n / 5 || '?' AS query, n AS passage FROM generate_series(0, 749) n;
         CREATE INDEX rooms_index ON rooms USING situ (body)",
    );
}

pub const TRAIN: &str = "CALL situ.train('feedback', 'reader', model => 'minilm', passages => 'rooms', pairs => 'pairs', seed => 2,
    options => '{\"layers\": 1, \"round_steps\": 2, \"batch\": 8, \"rate\": 1e-4, \"measured\": 20, \"passage_tokens\": 16}')";

#[test]
fn a_trained_copy_reads_the_passages_of_the_first_round() {
    let mut client = shared().text_database("text_feedback");
    houses(&mut client);
    client.run(TRAIN);
    let state: String = client.one("SELECT kind || ' ' || state FROM situ.bridges WHERE name = 'reader'");
    if state == "feedback rejected" {
        // Whether a few steps help is not what is tested: the copy is used as if they had.
        let query = "situ.query('How many windows?', feedback_model => 'reader')";
        assert_eq!(
            client
                .failure(&format!("SELECT * FROM situ.search('rooms_index', {query}, 3)"))
                .code,
            "55000"
        );
        client.run("UPDATE situ.bridges SET state = 'accepted' WHERE name = 'reader'");
    }
    assert!(client.one::<bool>("SELECT (figures -> 'ndcg@10' ->> 'plain')::float8 > 0 FROM situ.bridges"));

    // The second round searches for the vector of the question read with the first round's passages.
    let question = "How many windows are in the cellar of house 9?";
    client.run(&format!(
        "CREATE TABLE by_hand AS SELECT situ.feedback_text('{question}', (SELECT array_agg(passage ORDER BY distance)
           FROM situ.search('rooms_index', '{question}', 3)), 'reader') AS v"
    ));
    let search = |options: &str| {
        format!(
            "SELECT r.id || ' ' || s.distance FROM situ.search('rooms_index', situ.query('{question}'{options}), 10) s
               JOIN rooms r ON r.ctid = s.ctid ORDER BY s.distance, r.id"
        )
    };
    let found: Vec<String> = client.column(&search(", feedback => 'text', feedback_model => 'reader'"));
    let expected: Vec<String> = client.column(&format!(
        "SELECT r.id || ' ' || s.distance FROM by_hand, situ.search('rooms_index', situ.query('{question}', embedding => v), 10) s
           JOIN rooms r ON r.ctid = s.ctid ORDER BY s.distance, r.id"
    ));
    let plain: Vec<String> = client.column(&search(""));
    assert_eq!(found, expected);
    assert_eq!(found.len(), 10);
    assert_ne!(found, plain);
    // The same through a scan.
    client.run("SET enable_seqscan = off");
    let scanned: Vec<i32> = client.column(&format!(
        "SELECT id FROM rooms ORDER BY body <=> situ.query('{question}', feedback_model => 'reader') LIMIT 10"
    ));
    let ids: Vec<i32> = found
        .iter()
        .map(|row| row.split(' ').next().expect("an id").parse().expect("a number"))
        .collect();
    assert_eq!(
        scanned.iter().collect::<std::collections::HashSet<_>>(),
        ids.iter().collect()
    );

    // The copy is among the temporary files, under the hash of the weights, and written again where it is gone.
    let folder = "SELECT 'base/pgsql_tmp/pgsql_tmp_situ_' || hash FROM situ.bridges WHERE name = 'reader'";
    let folder: String = client.one(folder);
    let listed = format!("SELECT count(*) FROM pg_ls_dir('{folder}', true, false)");
    assert!(client.one::<i64>(&listed) >= 3);
    let directory: String = client.one("SELECT current_setting('data_directory')");
    std::fs::remove_dir_all(format!("{directory}/{folder}")).expect("removed");
    client.run("SELECT situ.unload_model('reader') FROM situ_internal.model_registry WHERE name = 'reader'");
    let again: Vec<String> = client.column(&search(", feedback => 'text', feedback_model => 'reader'"));
    assert_eq!(again, found);
    assert!(client.one::<i64>(&listed) >= 3);
}

#[test]
fn what_does_not_fit_is_an_error() {
    let mut client = shared().text_database("text_feedback_errors");
    houses(&mut client);
    let code = |client: &mut Client, options: &str| {
        client
            .failure(&format!(
                "SELECT * FROM situ.search('rooms_index', situ.query('Which?', {options}), 3)"
            ))
            .code
    };
    assert_eq!(code(&mut client, "feedback => 'text'"), "22004");
    assert_eq!(
        code(&mut client, "feedback => 'text', feedback_model => 'nobody'"),
        "42704"
    );
    assert_eq!(
        code(&mut client, "feedback => 'rocchio', feedback_model => 'minilm'"),
        "22023"
    );
    assert_eq!(
        code(
            &mut client,
            "feedback => 'text', feedback_model => 'minilm', feedback_alpha => 0.5"
        ),
        "22023"
    );
    assert_eq!(
        code(
            &mut client,
            "feedback => 'text', feedback_model => 'minilm', feedback_depth => 21"
        ),
        "22023"
    );
    client.run(
        "CALL situ.train('adapter', 'other', model => 'minilm', passages => 'rooms', pairs => 'pairs', seed => 2);
         UPDATE situ.bridges SET state = 'accepted'",
    );
    assert_eq!(code(&mut client, "feedback_model => 'other'"), "42809");
    // A registered model reads as it is: what it makes of question and passages is searched for.
    let rows: i64 = client.one(
        "SELECT count(*) FROM situ.search('rooms_index', situ.query('Which house has an iron door?', feedback_model => 'minilm'), 5)",
    );
    assert_eq!(rows, 5);
    client.run("CREATE TABLE v AS SELECT id, situ.embed(body, 'minilm') AS v FROM rooms LIMIT 50");
    client.run("CREATE INDEX v_index ON v USING situ (v vector_cosine_ops)");
    let failure = client.failure(
        "SELECT * FROM situ.search('v_index', situ.query('Which?', model => 'minilm', feedback_model => 'minilm'), 3)",
    );
    assert_eq!(failure.code, "0A000", "{failure:#?}");
    // Without an index there is no first round.
    let failure = client.failure("SELECT body <=> situ.query('Which?', feedback_model => 'minilm') FROM rooms LIMIT 1");
    assert_eq!(failure.code, "0A000", "{failure:#?}");
}

#[test]
fn a_training_of_a_copy_is_cancelled_between_questions() {
    let mut client = shared().text_database("text_feedback_cancel");
    houses(&mut client);
    client.run("SET statement_timeout = '6s'");
    let long = TRAIN.replace("\"layers\": 1", "\"layers\": 6, \"epochs\": 1000");
    let failure = client.failure(&long);
    assert_eq!(failure.code, "57014", "{failure:#?}");
    client.run("RESET statement_timeout");
    crate::support::eventually("the training ends", 5, || {
        client.one::<bool>("SELECT state = 'cancelled' FROM situ.training")
    });
    assert_eq!(client.one::<i64>("SELECT count(*) FROM situ.bridges"), 0);
}

#[test]
fn a_published_checkpoint_is_converted_and_reads_lower_cased_text() {
    let cluster = Cluster::new();
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let (checkpoint, model) = (
        cluster.folder().join("checkpoint"),
        cluster.folder().join("models/ance"),
    );
    let python = |script: &str, arguments: &[&std::ffi::OsStr]| {
        let output = std::process::Command::new("python3")
            .arg(root.join(script))
            .args(arguments)
            .output();
        let output = output.expect("python3 starts");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    python("tests/cluster/make_ance.py", &[checkpoint.as_ref()]);
    python("scripts/convert_ance.py", &[checkpoint.as_ref(), model.as_ref()]);
    let mut client = cluster.database("ance");
    client.run("SELECT situ.register_model('ance', 'ance')");
    assert!(client.one::<bool>(
        "SELECT pooling = 'cls' AND NOT normalize AND dimensions = 24 AND similarity = 'dot' FROM situ.models"
    ));
    // Lower-casing is part of the model.
    assert!(
        client.one::<bool>("SELECT situ.embed('Red RED red', 'ance')::text = situ.embed('red red red', 'ance')::text")
    );
    assert!(client.one::<bool>(
        "SELECT situ.feedback_text('Red', ARRAY['a RED fox', 'x'], 'ance')::text = situ.feedback_text('red', ARRAY['a red fox', 'x'], 'ance')::text"
    ));
    // The passages are read, in their order; the first token is what is read out.
    let distinct = "SELECT count(DISTINCT situ.feedback_text('red', p, 'ance')::text) FROM (VALUES (ARRAY['a', 'b']), (ARRAY['b', 'a']), ('{}')) v(p)";
    assert_eq!(client.one::<i64>(distinct), 3);
    assert!(client.one::<bool>(
        "SELECT situ.feedback_text('red', '{}', 'ance')::text = situ.embed('red', 'ance', 'query')::text"
    ));
    client.run(
        "CREATE TABLE t AS SELECT n AS id, 'the fox number ' || n || ' is red' AS body FROM generate_series(1, 60) n;
         CREATE INDEX t_index ON t USING situ (body) WITH (model = 'ance')",
    );
    assert_eq!(
        client.one::<String>("SELECT metric FROM situ.stat_index"),
        "innerproduct"
    );
    let search =
        |options: &str| format!("SELECT count(*) FROM situ.search('t_index', situ.query('fox 7', {options}), 10)");
    assert_eq!(client.one::<i64>(&search("feedback_model => 'ance'")), 10);

    // A reader is bound to its encoder and to its k.
    let (other, reader, stranger) = (
        cluster.folder().join("other"),
        cluster.folder().join("models/prf"),
        cluster.folder().join("models/stranger"),
    );
    python("tests/cluster/make_ance.py", &[other.as_ref(), "6".as_ref()]);
    let reads = |out: &std::path::Path, of: &std::path::Path| {
        let bound = ["--reads".as_ref(), "3".as_ref(), "--of".as_ref(), of.as_ref()];
        python(
            "scripts/convert_ance.py",
            &[&[other.as_ref(), out.as_ref()], &bound[..]].concat(),
        );
    };
    reads(&reader, &model);
    python("scripts/convert_ance.py", &[other.as_ref(), stranger.as_ref()]);
    client.run("SELECT situ.register_model('prf', 'prf'), situ.register_model('stranger', 'stranger')");
    assert_eq!(client.one::<i64>(&search("feedback_model => 'prf'")), 10);
    assert_eq!(
        client.one::<i64>(&search("feedback_model => 'prf', feedback_depth => 3")),
        10
    );
    let failure = client.failure(&search("feedback_model => 'prf', feedback_depth => 2"));
    assert_eq!(failure.code, "22023", "{failure:#?}");
    // Vectors of as many numbers, of another encoder.
    let failure = client.failure(&search("feedback_model => 'stranger'"));
    assert_eq!(failure.code, "55000", "{failure:#?}");
    client.run("CREATE INDEX s_index ON t USING situ (body) WITH (model = 'stranger')");
    let failure = client.failure(&search("feedback_model => 'prf'").replace("t_index", "s_index"));
    assert_eq!(failure.code, "55000", "{failure:#?}");
    client.run("SET enable_seqscan = off; DROP INDEX t_index");
    let failure =
        client.failure("SELECT id FROM t ORDER BY body <=> situ.query('fox', feedback_model => 'prf') LIMIT 3");
    assert_eq!(failure.code, "55000", "{failure:#?}");
    // Of more passages than it was made for, the first ones are read.
    assert!(client.one::<bool>(
        "SELECT situ.feedback_text('red', '{a,b,c,d}', 'prf')::text = situ.feedback_text('red', '{a,b,c}', 'prf')::text"
    ));
    for bad in ["{\"encoder\": \"x\", \"passages\": 0}", "{\"passages\": 3}", "{"] {
        std::fs::write(reader.join("feedback.json"), bad).expect("written");
        let failure = client.failure("SELECT situ.register_model('bad', 'prf')");
        assert_eq!(failure.code, "22000", "{bad}: {failure:#?}");
    }
}
