//! Data that the tests are made of: vectors with clusters, documents with known evidence, and recall.

use crate::support::Sql;
use postgres::Client;
use std::io::Write;

/// A small generator of repeatable pseudo-random numbers (splitmix64).
pub struct Random(u64);

impl Random {
    /// A sequence of its own for each seed.
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Roughly normal, mean 0 and deviation 1: the sum of uniform numbers.
    pub fn normal(&mut self) -> f32 {
        let sum: f32 = (0..12).map(|_| (self.bits() >> 40) as f32 / (1u64 << 24) as f32).sum();
        sum - 6.0
    }
}

/// Vectors around a few dozen centres, as embeddings lie.
pub fn clustered(count: usize, dimensions: usize, seed: u64) -> Vec<Vec<f32>> {
    let mut random = Random::new(7);
    let centres: Vec<Vec<f32>> = (0..40)
        .map(|_| (0..dimensions).map(|_| random.normal()).collect())
        .collect();
    let mut random = Random::new(seed);
    (0..count)
        .map(|_| {
            let centre = &centres[(random.bits() % 40) as usize];
            centre.iter().map(|value| value + 0.6 * random.normal()).collect()
        })
        .collect()
}

/// A vector as pgvector writes it.
pub fn literal(vector: &[f32]) -> String {
    let values: Vec<String> = vector.iter().map(|value| value.to_string()).collect();
    format!("[{}]", values.join(","))
}

/// Makes table `name` with columns `id bigint` (from `first` on) and `v` of the type, and fills it.
pub fn vector_table(client: &mut Client, name: &str, kind: &str, vectors: &[Vec<f32>]) {
    let dimensions = vectors[0].len();
    client.run(&format!("CREATE TABLE {name} (id bigint, v {kind}({dimensions}))"));
    append_vectors(client, name, 0, vectors);
}

/// Copies vectors into a table made by [`vector_table`], with ids from `first` on.
pub fn append_vectors(client: &mut Client, name: &str, first: usize, vectors: &[Vec<f32>]) {
    let mut writer = client
        .copy_in(&format!("COPY {name} (id, v) FROM STDIN"))
        .expect("COPY starts");
    for (at, vector) in vectors.iter().enumerate() {
        writeln!(writer, "{}\t{}", first + at, literal(vector)).expect("a row is sent");
    }
    writer.finish().expect("COPY ends");
}

/// Runs `statements` so that an index must be used where one can be.
pub fn by_index(client: &mut Client) {
    client.run("SET enable_seqscan = off; SET enable_sort = on; SET enable_indexscan = on");
}

/// Runs what follows without indexes: the exact answer.
pub fn exactly(client: &mut Client) {
    client.run("SET enable_seqscan = on; SET enable_indexscan = off; SET enable_bitmapscan = off");
}

/// The mean share of the exact `k` nearest rows that the index finds, over `queries`. It is asked for all of them: what is
/// looked for is whether rows are lost.
/// `order` is the ORDER BY expression with `$q` for the query's literal.
pub fn recall(client: &mut Client, table: &str, order: &str, queries: &[Vec<f32>], k: usize) -> f64 {
    client.run("SET situ.recall_target = 1");
    let mut found = 0;
    for query in queries {
        let statement = format!(
            "SELECT id FROM {table} ORDER BY {} LIMIT {k}",
            order.replace("$q", &format!("'{}'", literal(query)))
        );
        exactly(client);
        let truth: Vec<i64> = client.column(&statement);
        by_index(client);
        let answer: Vec<i64> = client.column(&statement);
        assert_eq!(
            answer.len(),
            truth.len(),
            "an index scan returns as many rows as there are"
        );
        found += answer.iter().filter(|id| truth.contains(id)).count();
    }
    found as f64 / (k * queries.len()) as f64
}

/// Subjects, each with a sentence that only it can answer and the question that asks for it.
pub const SUBJECTS: [(&str, &str, &str); 12] = [
    (
        "Volcanoes",
        "Magma rises through the crust and erupts as lava when its gas pressure is released.",
        "Why does a volcano erupt?",
    ),
    (
        "Bread",
        "Yeast eats the sugar in the dough and gives off carbon dioxide, which makes the loaf rise.",
        "What makes bread dough rise?",
    ),
    (
        "Chess",
        "A pawn that reaches the last rank is promoted, nearly always to a queen.",
        "What happens when a pawn reaches the end of the board?",
    ),
    (
        "Tides",
        "The gravity of the Moon pulls the oceans into two bulges, which we see as high tide.",
        "Why does the sea level go up and down twice a day?",
    ),
    (
        "Vaccines",
        "A vaccine shows the immune system a harmless piece of the virus, so that it remembers it.",
        "How does vaccination protect against a virus?",
    ),
    (
        "Sailing",
        "To sail against the wind a boat tacks, zigzagging with its sails pulled in tight.",
        "How can a sailing boat travel upwind?",
    ),
    (
        "Photosynthesis",
        "Leaves turn sunlight, water and carbon dioxide into sugar and release oxygen.",
        "How do plants make their food from light?",
    ),
    (
        "Printing",
        "Gutenberg cast single metal letters that could be set, inked and used again.",
        "Who invented movable metal type?",
    ),
    (
        "Bees",
        "A bee that has found nectar dances to show the hive the direction and the distance.",
        "How do bees tell each other where flowers are?",
    ),
    (
        "Glaciers",
        "Snow that does not melt is pressed to ice, which flows slowly downhill under its own weight.",
        "How does ice in the mountains move?",
    ),
    (
        "Pianos",
        "Pressing a key throws a felt hammer against the strings, and a damper stops the note.",
        "How does a piano produce a tone?",
    ),
    (
        "Money",
        "When a central bank raises its interest rate, loans get dearer and inflation slows down.",
        "How can inflation be brought down?",
    ),
];

/// A long document about a subject: the evidence sentence stands far from the start, behind filler about other things.
pub fn document(subject: usize, filler: usize) -> String {
    let (_, evidence, _) = SUBJECTS[subject % SUBJECTS.len()];
    let mut text = String::from("# Notes\n\nThis page was put together from several records.\n\n## Circumstances\n\n");
    for at in 0..filler {
        text.push_str(&format!(
            "Item {at} was filed on shelf {} by the clerk on duty. ",
            (at * 7 + subject) % 31
        ));
    }
    text.push_str(&format!("\n\n## Explanation\n\n{evidence}\n\n## Archive\n\n"));
    for at in 0..filler {
        text.push_str(&format!(
            "Box {at} is kept in room {} and may be ordered in advance. ",
            (at * 5 + subject) % 23
        ));
    }
    text
}

/// Makes table `docs (id, title, body)` with one document a subject, ids from 0.
pub fn document_table(client: &mut Client) {
    client.run("CREATE TABLE docs (id bigint PRIMARY KEY, title text, body text)");
    for subject in 0..SUBJECTS.len() {
        add_document(client, subject as i64, subject, 20);
    }
}

/// Adds one document to `docs`.
pub fn add_document(client: &mut Client, id: i64, subject: usize, filler: usize) {
    let title = SUBJECTS[subject % SUBJECTS.len()].0;
    client
        .execute(
            "INSERT INTO docs VALUES ($1, $2, $3)",
            &[&id, &title, &document(subject, filler)],
        )
        .unwrap_or_else(|error| panic!("insert: {:#?}", crate::support::sql::failure_of(&error)));
}
