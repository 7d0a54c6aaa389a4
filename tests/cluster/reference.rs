//! docs/REFERENCE.md is what the catalog says: every function, view, type and setting with its comment.
//!
//! `SITU_WRITE_REFERENCE=1` writes the page, any other run compares it.

use crate::support::{Cluster, Sql};
use postgres::Client;
use std::fmt::Write;
use std::path::Path;

/// One line of a table a row of two columns.
fn table(client: &mut Client, heads: [&str; 2], sql: &str) -> String {
    let mut lines = format!("| {} | {} |\n|---|---|\n", heads[0], heads[1]);
    for row in client
        .query(sql, &[])
        .unwrap_or_else(|error| panic!("{sql}: {error:?}"))
    {
        let (name, comment): (String, String) = (row.get(0), row.get(1));
        let escaped = |text: &str| text.replace('|', "\\|");
        writeln!(lines, "| {} | {} |", escaped(&name), escaped(&comment)).expect("a String takes it");
    }
    lines
}

/// Signatures with their comments: arguments, and the columns of what functions return.
fn functions(client: &mut Client) -> String {
    let rows = client
        .query(
            "SELECT p.proname::text, p.prokind::text, pg_get_function_arguments(p.oid), coalesce(pg_get_function_result(p.oid), ''),
                    d.description, p.provolatile::text, NOT has_function_privilege('pg_database_owner', p.oid, 'EXECUTE'),
                    NOT has_function_privilege('public', p.oid, 'EXECUTE')
               FROM pg_proc p JOIN pg_description d ON d.objoid = p.oid AND d.classoid = 'pg_proc'::regclass
              WHERE p.pronamespace = 'situ'::regnamespace
              ORDER BY p.proname, pg_get_function_arguments(p.oid)",
            &[],
        )
        .expect("functions");
    let mut page = String::new();
    for row in rows {
        let (name, kind, arguments, result): (String, String, String, String) =
            (row.get(0), row.get(1), row.get(2), row.get(3));
        let arguments = without_casts(&arguments);
        let comment: String = row.get(4);
        let inputs: Vec<&str> = arguments.split(", ").filter(|one| !one.starts_with("OUT ")).collect();
        let outputs: Vec<&str> = arguments
            .split(", ")
            .filter_map(|one| one.strip_prefix("OUT "))
            .collect();
        writeln!(page, "### situ.{name}\n").expect("a String takes it");
        writeln!(page, "{}.\n\n```text", sentence(&comment)).expect("a String takes it");
        let inputs = inputs.join(",\n    ");
        let inputs = match inputs.contains('\n') {
            true => format!("\n    {inputs}\n"),
            false => inputs,
        };
        let call = match kind.as_str() {
            "p" => "CALL ",
            _ => "",
        };
        write!(page, "{call}situ.{name}({inputs})").expect("a String takes it");
        let rows = match (result.starts_with("SETOF "), outputs.is_empty()) {
            (_, false) => format!(" -> rows of\n    {}", outputs.join(",\n    ")),
            (true, true) => format!(" -> rows of {}", &result["SETOF ".len()..]),
            (false, true) if kind == "p" => String::new(),
            (false, true) => format!(" -> {result}"),
        };
        writeln!(page, "{rows}\n```\n").expect("a String takes it");
        match (row.get::<_, bool>(6), row.get::<_, bool>(7)) {
            (true, _) => page += "For superusers, and roles that were granted it.\n\n",
            (false, true) => {
                page += "For superusers and the owner of the database, and roles that were granted it.\n\n"
            }
            _ => {}
        }
    }
    page
}

/// Arguments without the casts of NULL to the arguments' own types.
fn without_casts(arguments: &str) -> String {
    let mut pieces = arguments.split("NULL::");
    let mut plain = pieces.next().unwrap_or_default().to_owned();
    for piece in pieces {
        let end = piece.find(',').unwrap_or(piece.len());
        plain += "NULL";
        plain += &piece[end..];
    }
    plain
}

/// A comment with its first letter large.
fn sentence(comment: &str) -> String {
    let mut letters = comment.chars();
    let keep = comment
        .split(' ')
        .next()
        .is_some_and(|word| word.contains(['@', '_', '.']));
    match letters.next() {
        Some(first) if !keep => first.to_uppercase().chain(letters).collect(),
        _ => comment.to_owned(),
    }
}

fn page(client: &mut Client) -> String {
    let settings = table(
        client,
        ["setting", "what it says"],
        "SELECT format('`%s` = %s', name, CASE WHEN boot_val = '' THEN '''''' ELSE boot_val || coalesce(' ' || unit, '') END),
                concat_ws(' ', short_desc, extra_desc) || CASE context WHEN 'postmaster' THEN ' Needs a restart.' WHEN 'sighup' THEN ' Set by a reload.'
                                                  WHEN 'superuser' THEN ' For superusers.' ELSE '' END
           FROM pg_settings WHERE name LIKE 'situ.%' AND name NOT LIKE 'situ.test%' ORDER BY name",
    );
    let relations = table(
        client,
        ["relation", "what it holds"],
        "SELECT format('`%s` (%s)', c.oid::regclass, (SELECT string_agg(a.attname, ', ' ORDER BY a.attnum) FROM pg_attribute a
                                                WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped)),
                upper(left(d.description, 1)) || substr(d.description, 2) || '.'
           FROM pg_class c JOIN pg_description d ON d.objoid = c.oid AND d.objsubid = 0 AND d.classoid = 'pg_class'::regclass
          WHERE c.relnamespace = 'situ'::regnamespace AND c.relkind IN ('r', 'v') ORDER BY c.relname",
    );
    let types = table(
        client,
        ["type", "what it is"],
        "SELECT format('`%s`', t.oid::regtype), upper(left(d.description, 1)) || substr(d.description, 2) || '.'
           FROM pg_type t JOIN pg_description d ON d.objoid = t.oid AND d.classoid = 'pg_type'::regclass
          WHERE t.typnamespace = 'situ'::regnamespace ORDER BY t.typname",
    );
    let classes = table(
        client,
        ["operator class", "operators"],
        "SELECT format('`%s` over `%s`%s', c.opcname, c.opcintype::regtype, CASE WHEN c.opcdefault THEN ' (default)' ELSE '' END),
                coalesce((SELECT string_agg(format('`%s %s %s`', o.amoplefttype::regtype, p.oprname, o.amoprighttype::regtype), ', ' ORDER BY o.amopstrategy)
                            FROM pg_amop o JOIN pg_operator p ON p.oid = o.amopopr
                           WHERE o.amopfamily = c.opcfamily AND o.amoplefttype = c.opcintype), 'the title beside a body')
           FROM pg_opclass c JOIN pg_am a ON a.oid = c.opcmethod AND a.amname = 'situ' ORDER BY c.opcname",
    );
    let functions = functions(client);
    format!(
        "# Reference\n\nEvery function, relation, type and setting, as the catalog has them. This page is generated: \
         `make reference` writes it.\n\n## Settings\n\n{settings}\n## Relations\n\n{relations}\n## Types\n\n{types}\n\
         ## Operator classes of the access method `situ`\n\n{classes}\n## Functions\n\n{}\n",
        functions.trim_end()
    )
}

#[test]
fn the_reference_is_what_the_catalog_says() {
    // A server of its own: no settings but the defaults.
    let cluster = Cluster::new();
    let mut client = cluster.database("reference");
    client.run("SET search_path = pg_catalog, public");
    let page = page(&mut client);
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/REFERENCE.md");
    if std::env::var("SITU_WRITE_REFERENCE").is_ok() {
        std::fs::write(&file, &page).expect("the page can be written");
        return;
    }
    let written = std::fs::read_to_string(&file).expect("docs/REFERENCE.md");
    let differs = written.lines().zip(page.lines()).find(|(one, other)| one != other);
    assert!(
        written == page,
        "docs/REFERENCE.md is not what the catalog says: run make reference. First difference: {differs:#?}"
    );
}
