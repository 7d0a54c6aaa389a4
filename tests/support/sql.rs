//! Short ways to ask a connection, and what an error has to bring along.

use postgres::Client;
use postgres::types::FromSqlOwned;

/// An error as the client sees it.
#[derive(Debug)]
pub struct Failure {
    pub code: String,
    pub message: String,
    pub detail: String,
    pub hint: String,
}

impl Failure {
    /// Asserts the SQLSTATE, that the message holds `part` (case does not matter), and that there is a hint.
    #[track_caller]
    pub fn is(&self, code: &str, part: &str) -> &Failure {
        assert_eq!(self.code, code, "wrong SQLSTATE: {self:#?}");
        let all = format!("{} {}", self.message, self.detail).to_lowercase();
        assert!(all.contains(&part.to_lowercase()), "does not say {part:?}: {self:#?}");
        assert!(!self.hint.trim().is_empty(), "has no hint: {self:#?}");
        self
    }
}

/// Short forms that panic with the statement and the server's error.
pub trait Sql {
    /// Runs statements that return nothing of interest, each as a transaction of its own unless they begin one.
    fn run(&mut self, sql: &str);
    /// The only column of the only row.
    fn one<T: FromSqlOwned>(&mut self, sql: &str) -> T;
    /// The first column of every row.
    fn column<T: FromSqlOwned>(&mut self, sql: &str) -> Vec<T>;
    /// The error of statements that must fail.
    fn failure(&mut self, sql: &str) -> Failure;
    /// The lines of EXPLAIN.
    fn plan(&mut self, sql: &str) -> String;
}

impl Sql for Client {
    #[track_caller]
    fn run(&mut self, sql: &str) {
        for statement in statements(sql) {
            if let Err(error) = self.batch_execute(statement) {
                panic!("{}: {:#?}", shorten(statement), failure_of(&error));
            }
        }
    }

    #[track_caller]
    fn one<T: FromSqlOwned>(&mut self, sql: &str) -> T {
        match self.query_one(sql, &[]) {
            Ok(row) => row
                .try_get(0)
                .unwrap_or_else(|error| panic!("{}: {error}", shorten(sql))),
            Err(error) => panic!("{}: {:#?} {error}", shorten(sql), failure_of(&error)),
        }
    }

    #[track_caller]
    fn column<T: FromSqlOwned>(&mut self, sql: &str) -> Vec<T> {
        match self.query(sql, &[]) {
            Ok(rows) => rows.iter().map(|row| row.get(0)).collect(),
            Err(error) => panic!("{}: {:#?} {error}", shorten(sql), failure_of(&error)),
        }
    }

    #[track_caller]
    fn failure(&mut self, sql: &str) -> Failure {
        match self.batch_execute(sql) {
            Ok(()) => panic!("must fail, and does not: {}", shorten(sql)),
            Err(error) => failure_of(&error),
        }
    }

    #[track_caller]
    fn plan(&mut self, sql: &str) -> String {
        self.column::<String>(&format!("EXPLAIN {sql}")).join("\n")
    }
}

/// The parts of an error.
///
/// # Panics
/// When it is not the server's (a lost connection, for one).
#[track_caller]
pub fn failure_of(error: &postgres::Error) -> Failure {
    let Some(server) = error.as_db_error() else {
        panic!("not an error of the server: {error}")
    };
    Failure {
        code: server.code().code().to_string(),
        message: server.message().to_string(),
        detail: server.detail().unwrap_or_default().to_string(),
        hint: server.hint().unwrap_or_default().to_string(),
    }
}

/// The statements of a text: cut at semicolons outside of quotes and of `$$` bodies.
fn statements(sql: &str) -> Vec<&str> {
    let (mut parts, mut start, mut quoted, mut body) = (Vec::new(), 0, false, false);
    for (at, byte) in sql.bytes().enumerate() {
        match byte {
            b'\'' if !body => quoted = !quoted,
            b'$' if !quoted && sql[..at].ends_with('$') => body = !body,
            b';' if !quoted && !body => {
                parts.push(&sql[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&sql[start..]);
    parts.retain(|part| !part.trim().is_empty());
    parts
}

fn shorten(sql: &str) -> String {
    sql.chars().take(300).collect()
}
