"""The judged sets, each loaded into a schema of its own with the same tables.

    docs(id, document, ordinal, title, body)   what is searched; rows with one document follow each other by ordinal
    queries(id, text), qrels(query_id, document_id, grade)            the questions that are judged, never trained on
    train_passages(id, document, ordinal, body), train_pairs(query, passage)                       what is trained on
    span16, span8, keyword (id, text, document_id) and the views ..._qrels     questions from the last 40 % of each row's
                                                                words, of which the training of lexsem sees the first 60 %
"""

import csv
import json
import pathlib
import random
import re
import subprocess
import sys

TABLES = """
CREATE SCHEMA {s};
CREATE TABLE {s}.docs (id text PRIMARY KEY, document text, ordinal int, title text, body text);
CREATE TABLE {s}.queries (id text PRIMARY KEY, text text);
CREATE TABLE {s}.qrels (query_id text, document_id text, grade real);
CREATE TABLE {s}.train_passages (id text PRIMARY KEY, document text, ordinal int, body text);
CREATE TABLE {s}.train_pairs (query text, passage text);
"""
TASKS = ("span16", "span8", "keyword")


def read(path: pathlib.Path) -> list[dict]:
    return [json.loads(line) for line in path.open(encoding="utf-8")]


def judgements(path: pathlib.Path) -> list[tuple[str, str, float]]:
    rows = csv.reader(path.open(encoding="utf-8"), delimiter="\t")
    return [(query, document, float(grade)) for query, document, grade in rows]


class Set:
    """A judged set: its schema, and what its documents are like."""

    name = ""
    #: The rows of a document stand beside each other: there is a context to situate them in.
    situated = False

    def __init__(self, data: pathlib.Path, quick: bool) -> None:
        self.data, self.quick = data / self.name, quick

    def missing(self) -> str | None:
        """Why the set cannot be loaded, if it cannot."""
        needed = ("corpus.jsonl", "queries.jsonl", "qrels.tsv")
        absent = [name for name in needed if not (self.data / name).is_file()]
        return f"{self.data} has no {', '.join(absent)}" if absent else None

    def load(self, db) -> None:
        """Fills the tables."""
        docs, queries, qrels, passages, pairs = self.parts()
        db.run(TABLES.format(s=self.name))
        for table, rows in (("docs", docs), ("queries", queries), ("qrels", qrels), ("train_passages", passages),
                            ("train_pairs", pairs)):
            db.fill(f"{self.name}.{table}", rows)
        db.run(f"ANALYZE {self.name}.docs")

    def make_tasks(self, db, index: str, count: int) -> None:
        """Makes the questions of each task from the last 40 % of the documents of an index."""
        for seed, task in enumerate(TASKS):
            table = f"{self.name}.{task}"
            db.run(
                f"CREATE TABLE {table} AS SELECT * FROM situ.make_queries('{index}', '{task}', n => {count}, "
                f"seed => {seed}, key => 'id', part_from => 0.6);\n"
                f"CREATE VIEW {table}_qrels AS SELECT id AS query_id, document_id FROM {table};"
            )

    def parts(self):
        raise NotImplementedError


class FairytaleQa(Set):
    """Sections of stories: trained on questions about train stories, judged on val stories."""

    name = "fairytaleqa"
    situated = True

    def parts(self):
        corpus, queries = read(self.data / "corpus.jsonl"), read(self.data / "queries.jsonl")
        qrels = judgements(self.data / "qrels.tsv")
        stories = sorted({row["doc"] for row in corpus if row["split"] == "train"})
        random.Random(1).shuffle(stories)
        chosen = set(stories[:40] if self.quick else stories)
        val = [row for row in corpus if row["split"] == "val"]
        if self.quick:
            keep = set(sorted({row["doc"] for row in val})[:8])
            val = [row for row in val if row["doc"] in keep]
        inside = {row["id"] for row in val}
        docs = [(r["id"], r["doc"], r["pos"], r["title"], r["text"]) for r in val]
        kept = {query for query, document, _ in qrels if document in inside}
        asked = [(q["id"], q["text"]) for q in queries if q["split"] == "val" and q["id"] in kept]
        names = {query for query, _ in asked}
        passages = [(r["id"], r["doc"], r["pos"], r["text"]) for r in corpus if r["doc"] in chosen]
        trained, texts = {p[0] for p in passages}, {q["id"]: q for q in queries if q["split"] == "train"}
        pairs = [(texts[q]["text"], d) for q, d, _ in qrels if q in texts and d in trained]
        return docs, asked, [j for j in qrels if j[0] in names and j[1] in inside], passages, pairs


class SciFact(Set):
    """Abstracts and claims. Claims that cite a common abstract stay on one side of the split."""

    name = "scifact"

    def parts(self):
        corpus, queries = read(self.data / "corpus.jsonl"), read(self.data / "queries.jsonl")
        qrels = judgements(self.data / "qrels.tsv")
        texts = {query["id"]: query["text"] for query in queries}
        qrels = [judged for judged in qrels if judged[0] in texts]
        groups: dict[str, str] = {}

        def root(name: str) -> str:
            while groups.setdefault(name, name) != name:
                name = groups[name]
            return name

        for query, document, _ in qrels:
            groups[root("q" + query)] = root("d" + document)
        parts = sorted({root("q" + query) for query in texts})
        random.Random(2).shuffle(parts)
        training = set(parts[: len(parts) * 6 // 10])
        trained = {query for query in texts if root("q" + query) in training}
        test = [judged for judged in qrels if judged[0] not in trained]
        if self.quick:
            cited = {document for _, document, _ in qrels}
            corpus = [row for place, row in enumerate(corpus) if row["id"] in cited or place < 400][:900]
        inside = {row["id"] for row in corpus}
        test = [judged for judged in test if judged[1] in inside]
        names = {query for query, _, _ in test}
        docs = [(row["id"], row["id"], 0, row["title"], row["text"]) for row in corpus]
        pairs = [(texts[q], d) for q, d, _ in qrels if q in trained and d in inside]
        used = {document for _, document in pairs}
        passages = [(row["id"], row["id"], 0, row["text"]) for row in corpus if row["id"] in used]
        return docs, [(query, texts[query]) for query in sorted(names)], test, passages, pairs


class Manual(Set):
    """Sections of the PostgreSQL manual's pages on SQL commands: the questions name the page and the section, which the
    section's own text does not. Trained on half of the pages, judged on the other."""

    name = "manual"
    situated = True
    pages = pathlib.Path("/usr/share/doc/postgresql-doc-15/html")
    #: Headings that stand on many pages, and how one asks for them.
    asked = {
        "Description": "What does {page} do?",
        "Parameters": "Which parameters does {page} take?",
        "Notes": "What has to be kept in mind with {page}?",
        "Examples": "How is {page} used, in examples?",
        "Compatibility": "Does {page} follow the SQL standard?",
        "Outputs": "What does {page} print or return?",
    }

    def missing(self) -> str | None:
        return None if self.pages.is_dir() else f"{self.pages} is not there (scripts/deps.sh demo brings it)"

    def parts(self):
        tool = pathlib.Path(__file__).resolve().parents[2] / "demo" / "manual.py"
        done = subprocess.run([sys.executable, tool, self.pages, "parts"], capture_output=True, text=True, check=True)
        csv.field_size_limit(1 << 30)
        sections = []
        for path, part, title, body in csv.reader(done.stdout.splitlines(keepends=True)):
            if part == "SQL Commands":
                pieces = re.split(r"^## +(.*)$", body, flags=re.MULTILINE)
                named = zip(pieces[1::2], pieces[2::2])
                sections += [(path, title, heading.strip(), text.strip()) for heading, text in named]
        pages = sorted({path for path, *_ in sections})
        random.Random(3).shuffle(pages)
        training = set(pages[: len(pages) // 2])
        if self.quick:
            keep = set(pages[: len(pages) // 8] + pages[-len(pages) // 8 :])
            sections = [section for section in sections if section[0] in keep]
        docs, queries, qrels, passages, pairs, place = [], [], [], [], [], {}
        for path, title, heading, text in sections:
            if len(text) < 80 or heading not in self.asked:
                continue
            ordinal = place[path] = place.get(path, 0) + 1
            name, question = f"{path}#{ordinal}", self.asked[heading].format(page=title)
            if path in training:
                passages.append((name, path, ordinal, text))
                pairs.append((question, name))
            else:
                docs.append((name, path, ordinal, title, text))
                queries.append((f"q{len(queries)}", question))
                qrels.append((queries[-1][0], name, 1))
        return docs, queries, qrels, passages, pairs


SETS = (FairytaleQa, SciFact, Manual)
