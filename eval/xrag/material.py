"""What a projector is trained on, and what it is asked about: passages of some fifty words, questions with their answers.

Each judged set becomes a schema of its own; what is trained on lies in schema `train`. No passage that a judged question
is about, and no judged question, is trained on.

    train.passages(id, document, ordinal, body), train.pairs(query, passage, answer)
    <set>.docs(id, document, ordinal, body)
    <set>.questions(id, text, gold, other)      gold: the passage that answers it best; other: one of another document
"""

import pathlib
import random
import re
import sys
import unicodedata

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "methods"))

from sets import judgements, read  # noqa: E402

#: A passage ends with the sentence in which it reaches the first number of words, and at the second in any case.
WORDS, MOST_WORDS = 48, 64
#: Fewer words at the end of a text stay with the passage before them.
LEAST_WORDS = 16
#: Passages of a novel that count as one document.
CHAPTER = 40

TABLES = """
CREATE SCHEMA {s};
CREATE TABLE {s}.docs (id text PRIMARY KEY, document text, ordinal int, body text);
CREATE TABLE {s}.questions (id text PRIMARY KEY, text text, gold text, other text);
"""
TRAIN_TABLES = """
CREATE SCHEMA train;
CREATE TABLE train.passages (id text PRIMARY KEY, document text, ordinal int, body text);
CREATE TABLE train.pairs (query text, passage text, answer text);
"""


def pieces(text: str) -> list[str]:
    """A text cut into passages of whole sentences."""
    found: list[list[str]] = [[]]
    for word in text.split():
        if len(found[-1]) >= MOST_WORDS or (len(found[-1]) >= WORDS and re.search(r"[.!?][\"'”’)]*$", found[-1][-1])):
            found.append([])
        found[-1].append(word)
    if len(found) > 1 and len(found[-1]) < LEAST_WORDS:
        rest = found.pop()
        found[-1] += rest
    return [" ".join(words) for words in found if words]


def tokens(text: str) -> list[str]:
    """Words and signs in lower case, as substring matches are counted by."""
    return re.findall(r"\w+|[^\w\s]", unicodedata.normalize("NFD", text).lower())


def best(names: list[str], bodies: dict[str, str], question: str, answers: list[str]) -> str:
    """Which of some passages has most of an answer's words, then of the question's."""
    def score(name: str) -> tuple[int, int]:
        there = set(tokens(bodies[name]))
        return max(len(there & set(tokens(answer))) for answer in answers), len(there & set(tokens(question)))

    return max(names, key=score)


class Judged:
    """Passages and questions of a set that is judged."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.docs: list[tuple] = []
        self.questions: list[tuple[str, str, str]] = []
        #: The answers that count, and the passages of the rows that are judged relevant, by question.
        self.answers: dict[str, list[str]] = {}
        self.relevant: dict[str, set[str]] = {}

    def add(self, question: dict, names: list[str], bodies: dict[str, str]) -> None:
        self.questions.append((question["id"], question["text"], best(names, bodies, question["text"], question["answers"])))
        self.answers[question["id"]] = question["answers"]
        self.relevant[question["id"]] = set(names)

    def draw(self, most: int) -> None:
        """Keeps as many questions, drawn by a fixed seed."""
        random.Random(4).shuffle(self.questions)
        self.questions = self.questions[:most]

    def load(self, db) -> None:
        db.run(TABLES.format(s=self.name))
        db.fill(f"{self.name}.docs", self.docs)
        db.fill(f"{self.name}.questions", [(*question, self.other(n)) for n, question in enumerate(self.questions)])
        db.run(f"ANALYZE {self.name}.docs")

    def other(self, number: int) -> str:
        """The passage of the next question that is about another document."""
        documents = {row[0]: row[1] for row in self.docs}
        turned = self.questions[number:] + self.questions[:number]
        own = documents[turned[0][2]]
        return next((gold for _, _, gold in turned if documents[gold] != own), turned[0][2])


class Training:
    """Passages and pairs that are trained on. The first documents are the first to be kept."""

    def __init__(self) -> None:
        self.passages: list[tuple] = []
        self.pairs: list[tuple[str, str, str]] = []

    def mix(self) -> None:
        """Brings the documents into a random order of a fixed seed."""
        order = sorted({row[1] for row in self.passages})
        random.Random(6).shuffle(order)
        places = {document: place for place, document in enumerate(order)}
        self.passages.sort(key=lambda row: (places[row[1]], row[2]))

    def shorten(self, most: int) -> None:
        """Keeps the first passages of each document: of few passages many documents are needed to hold some out."""
        seen: dict[str, int] = {}
        kept = []
        for row in self.passages:
            seen[row[1]] = seen.get(row[1], 0) + 1
            if seen[row[1]] <= most:
                kept.append(row)
        self.passages = kept

    def keep(self, most: int) -> None:
        """Keeps whole documents up to that many passages, and the pairs of those that stay."""
        documents = list(dict.fromkeys(row[1] for row in self.passages))
        sizes: dict[str, int] = {}
        for row in self.passages:
            sizes[row[1]] = sizes.get(row[1], 0) + 1
        kept, count = set(), 0
        for document in documents:
            if count + sizes[document] > most and kept:
                break
            kept.add(document)
            count += sizes[document]
        self.passages = [row for row in self.passages if row[1] in kept]
        names = {row[0] for row in self.passages}
        self.pairs = [pair for pair in self.pairs if pair[1] in names]

    def load(self, db) -> None:
        db.run(TRAIN_TABLES)
        db.fill("train.passages", self.passages)
        db.fill("train.pairs", self.pairs)


def cut(rows: list[tuple[str, str, str]]) -> tuple[list[tuple], dict[str, list[str]], dict[str, str]]:
    """Rows (id, document, text) as passages; their names by row, and their bodies by name."""
    passages, names, bodies, places = [], {}, {}, {}
    for row, document, text in rows:
        for number, body in enumerate(pieces(text)):
            name = f"{row}/{number}"
            ordinal = places[document] = places.get(document, 0) + 1
            passages.append((name, document, ordinal, body))
            names.setdefault(row, []).append(name)
            bodies[name] = body
    return passages, names, bodies


def fairytaleqa(data: pathlib.Path, training: Training) -> Judged:
    """Stories: trained on the train stories and their questions, judged on the val stories'."""
    corpus, queries = read(data / "corpus.jsonl"), read(data / "queries.jsonl")
    sections: dict[str, list[str]] = {}
    for query, section, _ in judgements(data / "qrels.tsv"):
        sections.setdefault(query, []).append(section)
    judged = Judged("fairytaleqa")
    for split in ("train", "val"):
        rows = [(row["id"], row["doc"], row["text"]) for row in corpus if row["split"] == split]
        passages, names, bodies = cut(rows)
        asked = [query for query in queries if query["split"] == split and query.get("answers")]
        for query in asked:
            own = [name for section in sections.get(query["id"], []) for name in names.get(section, [])]
            if own and split == "val":
                judged.add(query, own, bodies)
            elif own:
                passage = best(own, bodies, query["text"], query["answers"])
                training.pairs.append((query["text"], passage, query["answers"][0]))
        if split == "val":
            judged.docs = passages
        else:
            training.passages += passages
    return judged


def hotpotqa_small(data: pathlib.Path, training: Training) -> Judged:
    """Paragraphs of an encyclopedia: all questions are judged; of the paragraphs those that no question is about are
    trained on."""
    corpus, queries = read(data / "corpus.jsonl"), read(data / "queries.jsonl")
    relevant: dict[str, list[str]] = {}
    for query, paragraph, _ in judgements(data / "qrels.tsv"):
        relevant.setdefault(query, []).append(paragraph)
    judged = Judged("hotpotqa_small")
    passages, names, bodies = cut([(row["id"], row["id"], f"{row['title']}: {row['text']}") for row in corpus])
    judged.docs = passages
    for query in queries:
        own = [name for paragraph in relevant.get(query["id"], []) for name in names.get(paragraph, [])]
        if own and query.get("answers"):
            judged.add(query, own, bodies)
    about = {paragraph for own in relevant.values() for paragraph in own}
    training.passages += [(f"hotpotqa {row[0]}", f"hotpotqa {row[1]}", *row[2:]) for row in passages if row[1] not in about]
    return judged


def novels(data: pathlib.Path, training: Training) -> None:
    """Novels, for trainings on more passages than the judged sets have."""
    rows = []
    for book in read(data / "corpus.jsonl"):
        bodies = pieces(book["text"])
        rows += [(f"novel {book['id']}/{n}", f"novel {book['id']}/{n // CHAPTER}", n, body) for n, body in enumerate(bodies)]
    order = list(dict.fromkeys(row[1] for row in rows))
    random.Random(5).shuffle(order)
    places = {document: place for place, document in enumerate(order)}
    training.passages += sorted(rows, key=lambda row: (places[row[1]], row[2]))


SETS = {"fairytaleqa": fairytaleqa, "hotpotqa_small": hotpotqa_small}


def missing(folder: pathlib.Path, *names: str) -> str | None:
    """Why a set cannot be loaded, if it cannot."""
    absent = [name for name in names if not (folder / name).is_file()]
    return f"{folder} has no {', '.join(absent)}" if absent else None
