//! Lexsem bridges from SQL: trained over an index, stored, and applied to queries by their stored rows.

use crate::data::Random;
use crate::support::{Sql, shared};
use safetensors::SafeTensors;

const QUERY: &str = "copper kettle";

fn numbers(file: &SafeTensors, name: &str) -> Vec<f32> {
    let tensor = file.tensor(name).expect(name);
    let four = tensor.data().as_chunks::<4>().0;
    four.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

/// `normalize(e * exp(s * sum of the tokens' rows + b))`, the published code's SLR near the identity, from the file; of a bridge
/// that synthetic queries alone have judged, half of that and half of the question itself.
fn expected(file: &[u8], tokens: &[i32], vector: &[f32]) -> Vec<f32> {
    let file = SafeTensors::deserialize(file).expect("a safetensors file");
    let ids = file.tensor("tokens").expect("tokens");
    let ids: Vec<u32> = ids
        .data()
        .as_chunks::<4>()
        .0
        .iter()
        .map(|bytes| u32::from_le_bytes(*bytes))
        .collect();
    let (rows, scale) = (numbers(&file, "rows"), numbers(&file, "scale")[0]);
    let mut z = numbers(&file, "bias");
    let mut present = tokens.to_vec();
    present.sort();
    present.dedup();
    let mut found = 0;
    for token in present {
        if let Ok(place) = ids.binary_search(&(token as u32)) {
            found += 1;
            let row = &rows[place * vector.len()..(place + 1) * vector.len()];
            z.iter_mut().zip(row).for_each(|(z, row)| *z += scale * row);
        }
    }
    assert!(found > 1, "the query has no trained token");
    let moved: Vec<f32> = vector.iter().zip(&z).map(|(e, z)| e * z.exp()).collect();
    let whole = unit(&moved);
    let mixed: Vec<f32> = whole.iter().zip(unit(vector)).map(|(x, own)| 0.5 * (x + own)).collect();
    unit(&mixed)
}

fn unit(vector: &[f32]) -> Vec<f32> {
    let length = vector.iter().map(|value| value * value).sum::<f32>().sqrt();
    vector.iter().map(|value| value / length).collect()
}

/// The file with other numbers as its rows, accepted.
fn moving(file: &[u8]) -> Vec<u8> {
    let (_, metadata) = SafeTensors::read_metadata(file).expect("a safetensors file");
    let begin = file.len() - metadata.data_len();
    let (start, end) = metadata.info("rows").expect("rows").data_offsets;
    let mut file = file.to_vec();
    let mut random = Random::new(5);
    for four in file[begin + start..begin + end].as_chunks_mut::<4>().0 {
        *four = (random.normal() * 0.2).to_le_bytes();
    }
    let refused = br#"\"accepted\":false"#;
    if let Some(place) = file.windows(refused.len()).position(|window| window == refused) {
        file[place + refused.len() - 5..place + refused.len()].copy_from_slice(b"true ");
    }
    file
}

#[test]
fn a_query_is_corrected_by_the_stored_rows_of_its_tokens() {
    let mut client = shared().text_database("lexsem_sql");
    client.run(
        "CREATE TABLE goods (id int PRIMARY KEY, body text);
         INSERT INTO goods SELECT n, string_agg('A ' || (ARRAY['copper','silver','wooden','glass','iron'])[1 + (n * 3 + k) % 5] || ' '
                || (ARRAY['kettle','spoon','table','lamp','anchor','violin','ladder'])[1 + (n + k * 2) % 7] || ' number ' || n * k
                || ' stood in the ' || (ARRAY['harbour','kitchen','attic','garden'])[1 + (n + k) % 4] || ' of ' || (ARRAY['Anna','Boris','Clara'])[1 + n % 3] || '.', ' ')
           FROM generate_series(1, 120) n, generate_series(1, 8) k GROUP BY n;
         CREATE INDEX goods_body ON goods USING situ (body) WITH (model = 'minilm');
         CALL situ.train('lexsem', 'learned', index => 'goods_body', scheme => 'slr', options => '{\"epochs\": 2}')",
    );
    let trained = "SELECT kind || ' ' || (recipe->'options'->>'scheme') FROM situ.bridges WHERE name = 'learned'";
    assert_eq!(client.one::<String>(trained), "lexsem slr");
    // Nobody's questions have judged it.
    let state = "SELECT state IN ('accepted (synthetic queries)', 'rejected') AND (figures->>'strength')::float8 = 0.5 FROM situ.bridges";
    assert!(client.one::<bool>(state));
    // What made-up goods teach is not the matter here: rows that certainly move a query take its place.
    let learned = client.one::<Vec<u8>>("SELECT situ.export_bridge('learned')");
    client
        .execute(
            "SELECT situ.import_bridge('words', $1::bytea, model => 'minilm')",
            &[&moving(&learned)],
        )
        .expect("an import");
    let apply =
        format!("SELECT situ.apply_bridge('words', situ.embed('{QUERY}', 'minilm', 'query'), '{QUERY}')::real[]");
    let file = client.one::<Vec<u8>>("SELECT situ.export_bridge('words')");
    let tokens = client.one::<Vec<i32>>(&format!("SELECT situ.tokens('{QUERY}', 'minilm')"));
    let plain = client.one::<Vec<f32>>(&format!("SELECT situ.embed('{QUERY}', 'minilm', 'query')::real[]"));
    let moved = client.one::<Vec<f32>>(&apply);
    let truth = expected(&file, &tokens, &plain);
    let largest = moved.iter().zip(&truth).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(largest < 1e-5, "{largest}");
    assert!(
        moved.iter().zip(&plain).any(|(a, b)| (a - b).abs() > 1e-4),
        "nothing moved"
    );

    // The index scan ranks by the corrected vector, as brute force does.
    client.run("SET enable_seqscan = off");
    let found = client.column::<i32>(&format!(
        "SELECT g.id FROM situ.search('goods_body', situ.query('{QUERY}', bridge => 'words'), k => 10) h JOIN goods g ON g.ctid = h.ctid ORDER BY h.distance"
    ));
    client.run(&format!(
        "CREATE TABLE asked AS SELECT situ.apply_bridge('words', situ.embed('{QUERY}', 'minilm', 'query'), '{QUERY}') AS v"
    ));
    let truth = client.column::<i32>(
        "SELECT g.id FROM goods g, asked a, LATERAL situ.situate(g.body, 'minilm', mode => 'none') s
          GROUP BY g.id, a.v ORDER BY min(s.embedding <=> a.v) LIMIT 10",
    );
    assert_eq!(found, truth);

    let failure = client.failure("SELECT situ.apply_bridge('words', situ.embed('copper', 'minilm'))");
    assert!(failure.code.starts_with("22"), "{failure:#?}");
}
