"""A database asked through psql: statements in, rows out, tables filled by COPY."""

import csv
import io
import subprocess
import sys


class Failure(Exception):
    """An error of the server, with its message."""


class Database:
    """One database of a private cluster, reached through its socket."""

    def __init__(self, psql: str, socket: str, name: str) -> None:
        self.command = [psql, "-X", "-q", "-v", "ON_ERROR_STOP=1", "-h", socket, "-U", "postgres"]
        self.name = name

    def _psql(self, arguments: list[str], text: str, name: str | None = None) -> str:
        command = [*self.command, "-d", name or self.name, *arguments]
        done = subprocess.run(command, input=text, capture_output=True, text=True)
        if done.returncode:
            raise Failure(done.stderr.strip() or f"psql ended with {done.returncode}")
        for line in done.stderr.splitlines():
            if "NOTICE" not in line:
                print(line, file=sys.stderr)
        return done.stdout

    def make(self) -> None:
        """Makes the database anew, with the extension in it."""
        for statement in (f"DROP DATABASE IF EXISTS {self.name} WITH (FORCE)", f"CREATE DATABASE {self.name}"):
            self._psql(["-c", statement], "", "postgres")
        self.run("SET client_min_messages = warning; CREATE EXTENSION situ CASCADE;")

    def run(self, sql: str) -> None:
        """Runs statements, each as a transaction of its own."""
        self._psql(["-f", "-"], sql)

    def rows(self, sql: str) -> list[list[str]]:
        """The rows of one query, every value as text, NULL as an empty one."""
        return list(csv.reader(io.StringIO(self._psql(["--csv", "-t", "-f", "-"], sql))))

    def one(self, sql: str) -> str:
        """The first value of the first row, or an empty text."""
        rows = self.rows(sql)
        return rows[0][0] if rows and rows[0] else ""

    def fill(self, table: str, rows: list[tuple]) -> None:
        """Copies rows into a table."""
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(rows)
        statement = f"COPY {table} FROM STDIN WITH (FORMAT csv)"
        self._psql(["-c", statement], text.getvalue())

    def has_function(self, name: str, argument: str | None = None) -> bool:
        """Whether situ has a function of that name, with an argument of that name."""
        wanted = f"AND '{argument}' = ANY (proargnames)" if argument else ""
        return self.one(
            f"SELECT count(*) > 0 FROM pg_proc WHERE pronamespace = 'situ'::regnamespace AND proname = '{name}' {wanted}"
        ) == "t"
