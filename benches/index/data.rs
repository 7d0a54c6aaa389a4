//! The sets of vectors that are searched, each with questions that are not among its rows.

use postgres::Client;
use std::path::Path;

/// A set of vectors with questions.
pub struct Data {
    pub name: String,
    pub operator: &'static str,
    pub class: &'static str,
    pub base: Vec<Vec<f32>>,
    pub queries: Vec<Vec<f32>>,
    /// Rounds over all questions, for each peer and setting.
    pub rounds: usize,
}

/// Questions of a large set.
const QUESTIONS: usize = 300;

impl Data {
    /// The set that comes with its questions.
    pub fn glove_20k(folder: &Path) -> Result<Data, Box<dyn std::error::Error>> {
        Ok(Data {
            name: "ann_glove50_20k".into(),
            operator: "<->",
            class: "vector_l2_ops",
            base: read_npy(&folder.join("base.npy"))?,
            queries: read_npy(&folder.join("query.npy"))?,
            rounds: 7,
        })
    }

    /// All 400,000 words of GloVe in 50 dimensions; every so many-th is a question and is left out of the table.
    pub fn glove(file: &Path) -> Result<Data, Box<dyn std::error::Error>> {
        let (base, queries) = held_out(read_npy(file)?, QUESTIONS);
        Ok(Data {
            name: "glove50_400k".into(),
            operator: "<->",
            class: "vector_l2_ops",
            base,
            queries,
            rounds: 3,
        })
    }

    /// Vectors around centres that a seeded generator draws, as of passages about so many subjects.
    pub fn clustered(rows: usize, dimensions: usize, centres: usize) -> Data {
        let mut random = Random(7);
        let centres: Vec<Vec<f32>> = (0..centres).map(|_| random.vector(dimensions)).collect();
        let all = (0..rows + QUESTIONS).map(|_| {
            let centre = &centres[(random.next() % centres.len() as u64) as usize];
            let noise = random.vector(dimensions);
            centre.iter().zip(noise).map(|(c, n)| c + 0.7 * n).collect()
        });
        let (base, queries) = held_out(all.collect(), QUESTIONS);
        Data {
            name: format!("clustered_{dimensions}"),
            operator: "<=>",
            class: "vector_cosine_ops",
            base,
            queries,
            rounds: 3,
        }
    }
}

/// A small generator (splitmix64), so that every run has the same vectors.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Components of about the normal distribution: sums of twelve uniform numbers.
    fn vector(&mut self, dimensions: usize) -> Vec<f32> {
        let uniform = |bits: u64| (bits >> 40) as f32 / (1 << 24) as f32;
        let mut number = || (0..12).map(|_| uniform(self.next())).sum::<f32>() - 6.0;
        (0..dimensions).map(|_| number()).collect()
    }
}

/// Rows without every so many-th of them, and those as questions.
fn held_out(rows: Vec<Vec<f32>>, questions: usize) -> (Vec<Vec<f32>>, Vec<Vec<f32>>) {
    let every = (rows.len() / questions).max(2);
    let (mut base, mut queries) = (Vec::new(), Vec::new());
    for (at, row) in rows.into_iter().enumerate() {
        match at % every == every / 2 {
            true => queries.push(row),
            false => base.push(row),
        }
    }
    (base, queries)
}

/// The passages of the demo's documents; every so many-th is a question and is left out of the table.
pub fn demo_vectors(demo: &mut Client) -> Result<Data, Box<dyn std::error::Error>> {
    demo.batch_execute(
        "CREATE TABLE IF NOT EXISTS bench_vectors AS
           SELECT s.embedding::real[] AS v FROM docs d, LATERAL situ.situate(d.body, 'minilm', title => d.title) s",
    )?;
    let rows = demo.query("SELECT v FROM bench_vectors", &[])?;
    let (base, queries) = held_out(rows.iter().map(|row| row.get(0)).collect(), 200);
    Ok(Data {
        name: "demo".into(),
        operator: "<=>",
        class: "vector_cosine_ops",
        base,
        queries,
        rounds: 7,
    })
}

/// A two-dimensional array of little-endian f32 in NumPy's format 1.0.
fn read_npy(path: &Path) -> Result<Vec<Vec<f32>>, Box<dyn std::error::Error>> {
    let bytes = std::fs::read(path)?;
    if bytes.get(..8) != Some(b"\x93NUMPY\x01\x00") {
        return Err(format!("{} is not a NumPy 1.0 file", path.display()).into());
    }
    let length = usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
    let header = std::str::from_utf8(&bytes[10..10 + length])?;
    if !header.contains("'<f4'") {
        return Err(format!("{}: only little-endian f32 is read, not {header}", path.display()).into());
    }
    let shape = header
        .split('(')
        .nth(1)
        .and_then(|rest| rest.split(')').next())
        .ok_or("no shape")?;
    let sizes: Vec<usize> = shape.split(',').filter_map(|size| size.trim().parse().ok()).collect();
    let [rows, columns] = sizes[..] else {
        return Err("not two-dimensional".into());
    };
    let values: Vec<f32> = bytes[10 + length..]
        .chunks_exact(4)
        .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
        .collect();
    if values.len() != rows * columns {
        return Err(format!("{} does not hold {rows} rows of {columns}", path.display()).into());
    }
    if header.contains("'fortran_order': True") {
        let row = |row| (0..columns).map(|column| values[column * rows + row]).collect();
        return Ok((0..rows).map(row).collect());
    }
    Ok(values.chunks_exact(columns).map(<[f32]>::to_vec).collect())
}
