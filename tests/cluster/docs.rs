//! The examples of the manual: every block of SQL in `README.md` and `docs/*.md` runs as it stands.
//!
//! Each page gets a fresh database, made ready as its comment `<!-- examples: ... -->` says (`docs` without one), and
//! its blocks run in their order in one session. A block behind a line `<!-- not run: reason -->` is left out and
//! counted. Blocks of other kinds (`text`, `console`, `sh`) show output and commands, and are not looked at.

use crate::generate::{give, register, smollm};
use crate::support::sql::failure_of;
use crate::support::{Cluster, Sql};
use postgres::Client;
use std::path::{Path, PathBuf};

/// The largest share of blocks that may be left out. It is what needs another server, files, roles or hours.
const MOST_LEFT_OUT: f64 = 0.25;

/// A few real paragraphs, forty short documents that are alike, judged questions, and material for a training.
const DOCS: &str = "
CREATE TABLE docs (id bigint PRIMARY KEY, title text, body text);
INSERT INTO docs VALUES
 (1, 'Running a replica', '## Monitoring
Compare pg_last_wal_replay_lsn() on the replica with pg_current_wal_lsn() on the primary. The difference is the lag in
bytes.

## When the primary fails
Call pg_promote() on the replica. It ends recovery and begins to accept writes. Make sure that the old primary does
not come back as a second one.'),
 (2, 'Tides', 'The Moon pulls the water of the oceans towards it. Most coasts see two high tides and two low tides a
day. The tide turns about every six hours.'),
 (3, 'Volcanoes', 'A volcano erupts when the pressure of gas in the magma below it becomes larger than the rock above
can hold. Ash can rise ten kilometres high.'),
 (4, 'Bread', 'Yeast eats the sugar of the dough and gives off gas. The gas makes the dough rise. Knead it until it
can be stretched thin.'),
 (5, 'Salt', 'Salt is won from the sea in shallow ponds, and from mines in the hills. It keeps fish and meat from
spoiling.'),
 (6, 'Vacuum', 'Rows that were deleted or updated leave dead versions behind. VACUUM frees their space for new rows.
Autovacuum does it without being asked.'),
 (7, 'Bees', 'A colony of bees has one queen. In summer it holds some forty thousand workers. They find flowers by their
colour and scent, and tell each other of them in a dance.'),
 (8, 'Glass', 'Glass is made of sand, soda and lime. The mixture melts at about fifteen hundred degrees. It is blown,
cast or rolled.');
INSERT INTO docs
    SELECT 100 + n, 'House ' || n,
           'House ' || n || ' stands in the street of the '
           || (ARRAY['bakers','smiths','weavers','potters','sailors'])[1 + n % 5] || '. It has ' || (n * 7) % 100
           || ' green windows, and ' || n % 4 || ' chimneys. In the year ' || 1700 + n * 3
           || ' it belonged to a family of ' || (ARRAY['glaziers','fishers','millers'])[1 + n % 3] || '.'
      FROM generate_series(1, 40) n;
CREATE INDEX docs_body ON docs USING situ (body, title situ_title_ops) WITH (model = 'minilm');

CREATE TABLE my_queries (id bigint PRIMARY KEY, text text);
CREATE TABLE my_qrels (query_id bigint, document_id bigint, grade int);
INSERT INTO my_queries VALUES (1, 'when does the tide turn?'), (2, 'why does dough rise?'),
    (3, 'how do I make a standby the primary?'), (4, 'where does the space of deleted rows go?');
INSERT INTO my_qrels VALUES (1, 2, 1), (2, 4, 1), (3, 1, 1), (4, 6, 1);
INSERT INTO my_queries
    SELECT 100 + n, 'Which house has ' || (n * 7) % 100 || ' green windows?' FROM generate_series(1, 20) n;
INSERT INTO my_qrels SELECT 100 + n, 100 + n, 1 FROM generate_series(1, 20) n;

CREATE TABLE sections AS
    SELECT n AS id, n / 4 AS document, n % 4 AS ordinal,
           'The ' || md5(n::text) || ' of house ' || n || ' has ' || (n * 7) % 100 || ' green windows.' AS body
      FROM generate_series(0, 399) n;
CREATE TABLE questions AS
    SELECT 'Which house has ' || (n * 7) % 100 || ' windows and number ' || n || '?' AS query, n AS passage
      FROM generate_series(0, 399) n;";

/// Numbers of a vector of MiniLM, and of a token of SmolLM2.
const ENCODER: usize = 384;
const LLM: usize = 576;

/// A block of SQL on a page.
#[derive(Debug, PartialEq)]
struct Block {
    /// The line of its first statement, from 1.
    line: usize,
    sql: String,
    /// Why it is not run.
    left_out: Option<String>,
}

/// A page: what it has to find in its database, and its blocks.
#[derive(Debug, PartialEq)]
struct Page {
    needs: Vec<String>,
    blocks: Vec<Block>,
}

/// What stands between `<!-- what:` and `-->` on a line of its own.
fn comment<'a>(line: &'a str, what: &str) -> Option<&'a str> {
    let inner = line.trim().strip_prefix("<!--")?.strip_suffix("-->")?.trim();
    Some(inner.strip_prefix(what)?.strip_prefix(':')?.trim())
}

fn parse(text: &str) -> Page {
    let mut page = Page {
        needs: vec!["docs".to_owned()],
        blocks: Vec::new(),
    };
    let (mut fence, mut before) = (None::<Block>, "");
    let mut other = false;
    for (at, line) in text.lines().enumerate() {
        match (&mut fence, line.trim_end()) {
            (Some(_), "```") => page.blocks.extend(fence.take()),
            (Some(block), _) => {
                block.sql.push_str(line);
                block.sql.push('\n');
            }
            (None, "```") if other => other = false,
            (None, _) if other => {}
            (None, "```sql") => {
                fence = Some(Block {
                    line: at + 2,
                    sql: String::new(),
                    left_out: comment(before, "not run").map(str::to_owned),
                });
            }
            (None, opening) if opening.starts_with("```") => other = true,
            (None, _) => {
                if let Some(needs) = comment(line, "examples") {
                    page.needs = needs.split_whitespace().map(str::to_owned).collect();
                }
            }
        }
        before = line;
    }
    page
}

/// The statements of a block with the line that each begins on, from 0: cut at semicolons outside of quotes, bodies
/// between dollars and comments.
fn statements(sql: &str) -> Vec<(usize, &str)> {
    let (mut found, mut start, mut at) = (Vec::new(), 0, 0);
    while at < sql.len() {
        let rest = &sql[at..];
        at += if rest.starts_with("--") {
            rest.find('\n').unwrap_or(rest.len())
        } else if let Some(quoted) = rest.strip_prefix('\'') {
            quoted.find('\'').map_or(rest.len(), |end| end + 2)
        } else if let Some(tag) = dollar_tag(rest) {
            let body = &rest[tag.len()..];
            body.find(tag).map_or(rest.len(), |end| end + 2 * tag.len())
        } else if rest.starts_with(';') {
            found.push((start, &sql[start..at]));
            start = at + 1;
            1
        } else {
            rest.chars().next().map_or(1, char::len_utf8)
        };
    }
    found.push((start, &sql[start..]));
    let has_words = |part: &str| {
        part.lines()
            .any(|line| !line.split("--").next().unwrap_or("").trim().is_empty())
    };
    found.retain(|(_, part)| has_words(part));
    let begins = |place: usize, part: &str| place + part.len() - part.trim_start().len();
    found
        .into_iter()
        .map(|(place, part)| (sql[..begins(place, part)].matches('\n').count(), part.trim()))
        .collect()
}

/// `$$` or `$tag$` at the beginning of a text.
fn dollar_tag(text: &str) -> Option<&str> {
    let end = text.strip_prefix('$')?.find('$')?;
    let inner = &text[1..=end];
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_';
    (inner.chars().all(plain) && !inner.starts_with(|c: char| c.is_ascii_digit())).then(|| &text[..end + 2])
}

/// A safetensors file of one value everywhere, as bridges are stored. `kind` says in it what it is.
fn bridge_file(kind: Option<&str>, tensors: &[(&str, &[usize])], value: f32) -> Vec<u8> {
    let mut header = serde_json::Map::new();
    if let Some(kind) = kind {
        let about = serde_json::json!({"kind": kind, "dimensions": ENCODER}).to_string();
        header.insert("__metadata__".to_owned(), serde_json::json!({"situ": about}));
    }
    let mut data = Vec::new();
    for (name, shape) in tensors {
        let start = data.len();
        for _ in 0..shape.iter().product::<usize>() {
            data.extend(value.to_le_bytes());
        }
        let tensor = serde_json::json!({"dtype": "F32", "shape": shape, "data_offsets": [start, data.len()]});
        header.insert((*name).to_owned(), tensor);
    }
    let mut header = serde_json::Value::Object(header).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    [(header.len() as u64).to_le_bytes().to_vec(), header, data].concat()
}

/// Bridges that change nothing, under the names that examples use.
fn store_bridges(client: &mut Client) {
    let adapter = bridge_file(Some("adapter"), &[("map", &[ENCODER, ENCODER])], 0.0);
    let places: [(&str, &[usize]); 6] = [
        ("bias", &[7]),
        ("key", &[1, ENCODER]),
        ("map", &[ENCODER, ENCODER]),
        ("query", &[1, ENCODER]),
        ("share", &[1]),
        ("values", &[ENCODER, ENCODER]),
    ];
    let situate = bridge_file(Some("situate"), &places, 0.0);
    for (name, file) in [("stories", &adapter), ("words", &adapter), ("places", &situate)] {
        client
            .execute("SELECT situ.import_bridge($1, $2, model => 'minilm')", &[&name, &file])
            .unwrap_or_else(|error| panic!("bridge {name}: {:#?}", failure_of(&error)));
    }
}

/// A projector under the name that examples use.
fn store_projector(client: &mut Client) {
    let tensors: [(&str, &[usize]); 4] = [
        ("projector.projector.0.weight", &[8, ENCODER]),
        ("projector.projector.0.bias", &[8]),
        ("projector.projector.2.weight", &[LLM, 8]),
        ("projector.projector.2.bias", &[LLM]),
    ];
    let file = bridge_file(None, &tensors, 0.01);
    let statement = "SELECT situ.import_bridge('doc', $1, kind => 'xrag', model => 'minilm', llm => 'smol')";
    if let Err(error) = client.execute(statement, &[&file]) {
        panic!("bridge doc: {:#?}", failure_of(&error));
    }
}

/// A database with what the page needs; none where that is not on this machine.
fn database(cluster: &Cluster, name: &str, needs: &[String]) -> Option<Client> {
    let needs = |what: &str| needs.iter().any(|need| need == what);
    let llm = if needs("llm") { Some(smollm()?) } else { None };
    let mut client = cluster.bare_database(name);
    client.run("SET client_min_messages = warning; SET statement_timeout = '10min'");
    if needs("empty") {
        return Some(client);
    }
    client.run("CREATE EXTENSION situ CASCADE; SELECT situ.register_model('minilm', 'minilm')");
    client.run(DOCS);
    if needs("bridge") {
        store_bridges(&mut client);
    }
    if let Some(file) = llm {
        give(cluster, &file);
        register(&mut client);
        store_projector(&mut client);
    }
    Some(client)
}

/// Runs a page's blocks to the first that fails, and says where that was.
fn run_page(client: &mut Client, name: &str, page: &Page) -> Result<(), String> {
    for block in page.blocks.iter().filter(|block| block.left_out.is_none()) {
        for (offset, statement) in statements(&block.sql) {
            if let Err(error) = client.batch_execute(statement) {
                let failure = failure_of(&error);
                let (line, first) = (block.line + offset, statement.lines().next().unwrap_or_default());
                return Err(format!(
                    "{name}, line {line}: {}: {} {} {}\n    {first}",
                    failure.code, failure.message, failure.detail, failure.hint
                ));
            }
        }
    }
    Ok(())
}

/// The pages of the manual, the README first.
fn pages() -> Vec<(String, Page)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files: Vec<PathBuf> = std::fs::read_dir(root.join("docs"))
        .expect("the folder docs is there")
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "md"))
        .collect();
    files.sort();
    files.insert(0, root.join("README.md"));
    let read = |path: PathBuf| {
        let name = path.strip_prefix(root).unwrap_or(&path).display().to_string();
        let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{name}: {error}"));
        (name, parse(&text))
    };
    files
        .into_iter()
        .map(read)
        .filter(|(_, page)| !page.blocks.is_empty())
        .collect()
}

#[test]
fn every_example_of_the_manual_runs() {
    // Of its own: examples make roles and change settings of the server.
    let cluster = Cluster::new();
    let (mut all, mut left_out, mut failed) = (0, 0, Vec::new());
    for (at, (name, page)) in pages().iter().enumerate() {
        let blocks = page.blocks.len();
        let not_run = page.blocks.iter().filter(|block| block.left_out.is_some()).count();
        all += blocks;
        left_out += not_run;
        let Some(mut client) = database(&cluster, &format!("page_{at}"), &page.needs) else {
            eprintln!("SKIPPED: the examples of {name}: the LLM of the tests is not here");
            continue;
        };
        println!("{name}: {blocks} blocks, {not_run} not run");
        failed.extend(run_page(&mut client, name, page).err());
    }
    println!("{all} blocks, {left_out} not run");
    assert!(failed.is_empty(), "examples fail:\n{}", failed.join("\n"));
    let share = f64::from(left_out as u32) / f64::from(all.max(1) as u32);
    assert!(
        share <= MOST_LEFT_OUT,
        "{left_out} of {all} examples are not run: more than may be"
    );
}

/// The files that a page links to, without addresses of the web and places in the page itself.
fn links(text: &str) -> impl Iterator<Item = &str> {
    let targets = text
        .split("](")
        .skip(1)
        .filter_map(|rest| rest.split_once(')').map(|(target, _)| target));
    targets
        .filter(|target| !target.starts_with("http"))
        .filter_map(|target| target.split('#').next())
        .filter(|file| !file.is_empty())
}

#[test]
fn links_of_the_manual_lead_to_files() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut missing = Vec::new();
    for folder in ["", "docs", "docs/research"] {
        for entry in std::fs::read_dir(root.join(folder)).expect("a folder of pages") {
            let path = entry.expect("an entry of it").path();
            if path.extension().is_none_or(|extension| extension != "md") {
                continue;
            }
            let text = std::fs::read_to_string(&path).expect("a page");
            let gone = links(&text).filter(|file| !root.join(folder).join(file).exists());
            missing.extend(gone.map(|file| format!("{}: {file}", path.display())));
        }
    }
    assert!(missing.is_empty(), "{missing:#?}");
}

#[test]
fn a_page_is_read_into_its_blocks() {
    let text = [
        "# Page",
        "<!-- examples: llm bridge -->",
        "```sh",
        "make",
        "```sql",
        "```",
        "",
        "<!-- not run: a reason -->",
        "```sql",
        "SELECT 1;",
        "```",
        "text",
        "```sql",
        "SELECT 2;",
        "-- a line",
        "SELECT 3;",
        "```",
    ];
    let page = parse(&text.join("\n"));
    assert_eq!(page.needs, ["llm", "bridge"]);
    let blocks: Vec<_> = page
        .blocks
        .iter()
        .map(|block| (block.line, block.left_out.as_deref()))
        .collect();
    assert_eq!(blocks, [(10, Some("a reason")), (14, None)]);
    assert_eq!(page.blocks[1].sql, "SELECT 2;\n-- a line\nSELECT 3;\n");
    assert_eq!(parse("text").needs, ["docs"]);
}

#[test]
fn a_block_is_cut_into_its_statements() {
    let sql = "SELECT 'a;b', $$c;d$$;   -- it's; one\n\nDO $x$ BEGIN; END $x$;\n-- nothing; else\n";
    assert_eq!(
        statements(sql),
        [
            (0, "SELECT 'a;b', $$c;d$$"),
            (0, "-- it's; one\n\nDO $x$ BEGIN; END $x$")
        ]
    );
    assert!(statements("-- a comment; alone\n").is_empty());
    assert_eq!(statements("\n\nSELECT $1"), [(2, "SELECT $1")]);
}
