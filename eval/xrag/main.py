"""make eval-xrag: a projector trained in the database, judged on passages and questions that it never saw, through SQL only.

Usage: main.py PSQL SOCKET DATA [quick] [name of a set ...]

Trains a projector on passages (and on questions with answers), then asks questions with nothing, with passages as text
and with passages as vectors, and prints one JSON object a measure (stdout) and what it is doing (stderr). The settings
are in scripts/eval_xrag.sh.
"""

import concurrent.futures
import json
import os
import pathlib
import statistics
import sys
import time

import answers
import material

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "methods"))

from database import Database  # noqa: E402

ENCODER, LLM, LLM_FILE = "minilm", "smol", "smollm.gguf"
#: Longest answer. It ends with its line.
ANSWER_TOKENS = 32
#: Passages of a document that a sample trains on.
QUICK_PASSAGES = 8
#: Questions that the costs are taken from, one after another.
TIMED = 20
#: Modes of an answer from retrieved passages: arguments of situ.rag.
RETRIEVED = {
    "none": "mode => 'none'",
    "text": "k => 1, mode => 'text'",
    "text_k3": "k => 3, mode => 'text'",
    "xrag": "k => 1, mode => 'xrag', bridge => '{bridge}'",
    "xrag_k3": "k => 3, mode => 'xrag', bridge => '{bridge}'",
}
#: Modes of an answer from the passage that has it: the prompt, as situ.rag puts it together. `xrag_other` has the vector
#: of a passage about something else: what a projector gains by it, it gains by the manner of its answers alone.
GOLD = {
    "text": "E'Use the background to answer the question.\\n\\nBackground: ' || d.body || E'\\n\\nQuestion: ' || q.text",
    "xrag": "situ.xrag_prompt(q.text, ARRAY[situ.xrag_token(d.embedding, '{bridge}')])",
    "xrag_other": "situ.xrag_prompt(q.text, ARRAY[situ.xrag_token(o.embedding, '{bridge}')])",
}


def number(name: str, default: int) -> int:
    """A setting from the environment."""
    return int(os.environ.get(name) or default)


class Run:
    """One evaluation."""

    def __init__(self, db: Database, quick: bool, step) -> None:
        self.db, self.quick, self.step = db, quick, step
        self.sets: list[material.Judged] = []
        self.training = material.Training()
        self.tokens = [int(tokens) for tokens in (os.environ.get("XRAG_TOKENS") or "1").split()]
        self.sessions = number("XRAG_SESSIONS", 4)
        #: A mode of situ.situate: vectors of passages among the others of their document, instead of alone.
        self.situate = os.environ.get("XRAG_SITUATE") or ""

    def line(self, metric: str, value: float | None, unit: str, **more) -> None:
        line = {"bench": "eval-xrag", "metric": metric, "value": value, "unit": unit} | more
        print(json.dumps({k: round(v, 6) if isinstance(v, float) else v for k, v in line.items()}), flush=True)

    # Material

    def load(self, data: pathlib.Path, wanted: list[str]) -> None:
        """Reads the sets, fills the tables, and indexes the judged ones' passages."""
        for name, read in material.SETS.items():
            if wanted and name not in wanted:
                continue
            if absent := material.missing(data / name, "corpus.jsonl", "queries.jsonl", "qrels.tsv"):
                self.step(f"SKIPPED: {name}: {absent}")
                continue
            self.sets.append(read(data / name, self.training))
        self.training.mix()
        if self.quick:
            self.training.shorten(QUICK_PASSAGES)
        most = number("XRAG_PASSAGES", 1000 if self.quick else 16_000)
        if most > len(self.training.passages):
            if absent := material.missing(data / "novels_pd", "corpus.jsonl"):
                self.step(f"SKIPPED: novels_pd: {absent}")
            else:
                material.novels(data / "novels_pd", self.training)
        self.training.keep(most)
        self.training.load(self.db)
        self.step(f"{len(self.training.passages)} passages and {len(self.training.pairs)} questions to train on")
        for judged in self.sets:
            judged.draw(number("XRAG_QUESTIONS", 24 if self.quick else 300))
            if self.quick:
                judged.docs = kept_in_quick(judged)
            judged.load(self.db)
            s = judged.name
            self.step(f"{s}: {len(judged.docs)} passages, {len(judged.questions)} questions, CREATE INDEX")
            self.db.run(
                f"CREATE INDEX passages ON {s}.docs USING situ (body) WITH (model = '{ENCODER}', chunk_tokens = 250);"
            )
            self.embed(f"{s}.docs", self.situate)
        if self.situate:
            self.embed("train.passages", self.situate)

    def embed(self, table: str, situate: str) -> None:
        """Adds the passages' vectors to a table, of each alone or among the others of its document."""
        vectors = f"situ.embed_batch(array_agg(body ORDER BY ordinal), '{ENCODER}', 'passage')"
        if situate:
            vectors = f"situ.situate_chunks(array_agg(body ORDER BY ordinal), model => '{ENCODER}', mode => '{situate}')"
        self.db.run(
            f"ALTER TABLE {table} ADD embedding vector;\n"
            f"UPDATE {table} d SET embedding = e.v FROM (SELECT unnest(ids) AS id, unnest(vectors) AS v FROM (SELECT "
            f"array_agg(id ORDER BY ordinal) AS ids, {vectors} AS vectors FROM {table} GROUP BY document) a) e WHERE e.id = d.id;"
        )

    # Training

    def train(self, tokens: int) -> str:
        """Trains a projector stage by stage, prints what its held-out figures say, and gives the last one's name."""
        epochs = number("XRAG_EPOCHS", 1)
        options = {"llm": LLM, "tokens": tokens, "epochs": epochs, "answer_epochs": epochs}
        if self.quick:
            options |= {"measured": 40, "held_out": 0.4}
        options |= json.loads(os.environ.get("XRAG_OPTIONS") or "{}")
        about = {"tokens": tokens, "passages": len(self.training.passages)}
        about |= {"situate": self.situate} if self.situate else {}
        name = f"said_{tokens}"
        figures = self.call(name, "", options | {"stage": "paraphrase"}, about)
        about["held_out"] = figures["held_out"]
        for given, bits in figures["bits_per_token"].items():
            self.line("bits_per_token", bits, "bits", given={"text": "text-32"}.get(given, given), **about)
        self.saved("bits", figures, about)
        self.line("bits_saved_over_other_low", figures["saved_over_other"]["low"], "bits", **about)
        if os.environ.get("XRAG_STAGE") == "paraphrase" or not self.training.pairs:
            return name
        del about["held_out"]
        first, name = name, f"answered_{tokens}"
        figures = self.call(name, ", pairs => 'train.pairs'", options | {"stage": "answers", "start": first}, about)
        # A token of an answer: bits given the question alone, the passage's text, and vectors.
        figures = figures["answers"]
        about["held_out"] = figures["held_out"]
        for given, bits in figures["bits_per_token"].items():
            self.line("bits_per_answer_token", bits, "bits", given=given, **about)
        self.saved("answer_bits", figures, about)
        return name

    def call(self, name: str, pairs: str, options: dict, about: dict) -> dict:
        """Runs one stage; its figures."""
        call = (f"CALL situ.train('xrag', '{name}', model => '{ENCODER}', passages => 'train.passages'{pairs}, "
                f"options => '{json.dumps(options)}', seed => 1)")
        self.step(call)
        begin = time.monotonic()
        self.db.run(call + ";")
        seconds = time.monotonic() - begin
        state, text = self.db.rows(f"SELECT state, figures FROM situ.bridges WHERE name = '{name}'")[0]
        self.step(f"{name}: {state}, {seconds:.0f} s, {text}")
        figures, stage = json.loads(text), options["stage"]
        own = figures.get(stage, figures)
        # Where training ends early, not all were seen.
        epochs = options["answer_epochs" if stage == "answers" else "epochs"]
        trained = own["trained_on"] + own.get("replayed", 0)
        seen = min(trained * epochs, own["rounds"] * options.get("round_steps", 200) * options.get("batch", 4))
        self.line("training_seconds", seconds, "s", stage=stage, state=state, trained_on=own["trained_on"], **about)
        self.line("passages_per_second", seen / seconds, "passages/s", stage=stage, **about)
        # A rejected projector is refused everywhere; what it does is of interest all the same.
        if not state.startswith("accepted"):
            self.db.run(f"UPDATE situ.bridges SET state = 'accepted' WHERE name = '{name}';")
        return figures

    def saved(self, what: str, figures: dict, about: dict) -> None:
        for over in ("other", "none"):
            saved = figures[f"saved_over_{over}"]
            self.line(f"{what}_saved_over_{over}", saved["value"], "bits", low=saved["low"], high=saved["high"], **about)

    # Answers

    def ask(self, judged: material.Judged, bridge: str, tokens: int) -> None:
        """Makes the answers of every mode; questions are shared out to sessions, which changes no answer."""
        s = judged.name
        how = f"max_tokens => {ANSWER_TOKENS}, stop => ARRAY[E'\\n']"
        # What stands for no vector was asked once already.
        again = tokens != self.tokens[0]
        statements = []
        for mode, arguments in RETRIEVED.items():
            # situ.rag encodes passages alone, which a projector of situated vectors is not for.
            if "{bridge}" not in arguments and not again or "{bridge}" in arguments and not self.situate:
                statements.append((mode,
                    f"INSERT INTO answers SELECT '{s}', '{mode}', 'retrieved', {tokens}, q.id, r.answer, r.sources -> 0 ->> 'passage' "
                    f"FROM {s}.questions q, situ.rag('{s}.passages', q.text, {arguments.format(bridge=bridge)}, "
                    f"model => '{LLM}', {how}) r WHERE abs(hashtext(q.id)) % {self.sessions} = %session%;"))
        for mode, passage in GOLD.items():
            if again and "{bridge}" not in passage:
                continue
            prompt = passage.format(bridge=bridge)
            generate = "xrag_generate" if "{bridge}" in passage else "generate"
            statements.append((f"{mode} from the gold passage",
                f"INSERT INTO answers SELECT '{s}', '{mode}', 'gold', {tokens}, q.id, situ.{generate}({prompt}, '{LLM}', {how}), NULL "
                f"FROM {s}.questions q JOIN {s}.docs d ON d.id = q.gold JOIN {s}.docs o ON o.id = q.other "
                f"WHERE abs(hashtext(q.id)) % {self.sessions} = %session%;"))
        for mode, statement in statements:
            begin = time.monotonic()
            with concurrent.futures.ThreadPoolExecutor(self.sessions) as pool:
                list(pool.map(lambda n: self.db.run(statement.replace("%session%", str(n))), range(self.sessions)))
            self.step(f"{s}: answers, {mode}: {time.monotonic() - begin:.0f} s")

    def costs(self, judged: material.Judged, bridge: str, tokens: int) -> None:
        """What an answer of each mode costs, one after another, without a stop."""
        s = judged.name
        for mode, arguments in RETRIEVED.items():
            if tokens != self.tokens[0] and "{bridge}" not in arguments or self.situate and "{bridge}" in arguments:
                continue
            rows = self.db.rows(
                f"SELECT r.prompt_tokens, r.prefill_ms, r.answer_tokens, r.decode_ms, r.retrieval_ms, r.encoding_ms FROM "
                f"(SELECT * FROM {s}.questions ORDER BY id LIMIT {8 if self.quick else TIMED}) q, situ.rag('{s}.passages', q.text, "
                f"{arguments.format(bridge=bridge)}, model => '{LLM}', max_tokens => {ANSWER_TOKENS}) r"
            )
            columns = [[float(value) for value in column] for column in zip(*rows)]
            prompt, prefill, made, decode, retrieval, encoding = columns
            about = {"mode": mode, "data": s} | ({"tokens": tokens} if "{bridge}" in arguments else {})
            self.line("prompt_tokens", statistics.mean(prompt), "tokens", **about)
            self.line("prefill_ms", statistics.median(prefill), "ms", **about)
            self.line("retrieval_ms", statistics.median(retrieval), "ms", **about)
            self.line("encoding_ms", statistics.median(encoding), "ms", **about)
            # The first token comes out of the prompt's pass; where the model ended by itself, that took a pass too.
            passes = sum(n - 1 if n >= ANSWER_TOKENS else n for n in made)
            self.line("tokens_per_second", 1e3 * passes / max(sum(decode), 1e-9), "tokens/s", **about)

    # Judging

    def judge(self, judged: material.Judged, now: int) -> None:
        """Counts the answers of a set that were made with `now` vectors a passage, and those without vectors once."""
        s = judged.name
        found: dict[tuple, dict[str, tuple[str, str]]] = {}
        for mode, given, tokens, query, answer, passage in self.db.rows(
            f"SELECT mode, given, tokens, query_id, answer, passage FROM answers WHERE data = '{s}'"
        ):
            found.setdefault((mode, given, int(tokens)), {})[query] = (answer, passage)
        names = {body: name for name, _, _, body in judged.docs}
        order = [question for question, _, _ in judged.questions]
        for measure, count in (("answer_f1", answers.f1), ("answer_match", answers.match)):
            values = {key: [count(rows[query][0], judged.answers[query]) for query in order] for key, rows in found.items()}
            fresh = {key: own for key, own in values.items() if key[2] == now}
            for key, own in fresh.items():
                low, high = answers.interval([(value,) for value in own], lambda total: total / len(own))
                self.line(measure, statistics.mean(own), "score", low=low, high=high, **self.about(key, s), questions=len(own))
            for key, own in fresh.items():
                if key[0] in ("xrag", "xrag_k3"):
                    self.kept(measure, values, key, own, s)
        for key, rows in found.items():
            if key == ("text", "retrieved", now):
                hits = [names.get(rows[query][1]) in judged.relevant[query] for query in order]
                self.line("retrieved_relevant", statistics.mean(hits), "share", data=s, k=1)

    def about(self, key: tuple, data: str) -> dict:
        mode, given, tokens = key
        about = {"mode": mode, "data": data} | ({"given": given} if mode != "none" else {})
        return about | ({"tokens": tokens} if mode.startswith("xrag") else {})

    def kept(self, measure: str, values: dict, key: tuple, own: list[float], data: str) -> None:
        """The share of the text's gain that vectors keep, and what they gain over another passage's."""
        first = self.tokens[0]
        mode, given, tokens = key
        about = self.about(key, data) | {"of": measure}
        text = values.get(("text_k3" if mode == "xrag_k3" else "text", given, first))
        none = values.get(("none", "retrieved", first))
        rows = list(zip(none, text, own))
        gain = answers.interval([(t - n,) for n, t, _ in rows], lambda total: total / len(rows))
        sums = [sum(column) for column in zip(*rows)]
        # A share of a gain that may be none says nothing.
        share = answers.retained(*sums) if gain and gain[0] > 0 else None
        between = answers.interval(rows, answers.retained) if share is not None else None
        self.line("retained_share", share, "share", low=between and between[0], high=between and between[1],
                  text_gain=(sums[1] - sums[0]) / len(rows), text_gain_low=gain and gain[0], **about)
        other = values.get(("xrag_other", given, tokens))
        if mode == "xrag" and other:
            low, high = answers.interval([(a - b,) for a, b in zip(own, other)], lambda total: total / len(own))
            self.line("gain_over_other", statistics.mean(own) - statistics.mean(other), "score", low=low, high=high, **about)


def kept_in_quick(judged: material.Judged) -> list[tuple]:
    """The passages of the questions' documents, and some others."""
    golds = {gold for _, _, gold in judged.questions}
    documents = {row[1] for row in judged.docs if row[0] in golds}
    return [row for place, row in enumerate(judged.docs) if row[1] in documents or place < 100]


def main() -> None:
    psql, socket, data, *rest = sys.argv[1:]
    quick, begin = "quick" in rest, time.monotonic()

    def step(text: str) -> None:
        print(f"[{time.monotonic() - begin:5.0f} s] {text}", file=sys.stderr, flush=True)

    db = Database(psql, socket, "situ_eval_xrag")
    db.make()
    db.run(
        f"SELECT situ.register_model('{ENCODER}', '{ENCODER}');\n"
        f"SELECT situ.register_model('{LLM}', '{LLM_FILE}');\n"
        "CREATE TABLE answers (data text, mode text, given text, tokens int, query_id text, answer text, passage text);"
    )
    run = Run(db, quick, step)
    run.load(pathlib.Path(data), [name for name in rest if name != "quick"])
    for tokens in run.tokens:
        bridge = run.train(tokens)
        for judged in run.sets:
            run.costs(judged, bridge, tokens)
            run.ask(judged, bridge, tokens)
            run.judge(judged, tokens)
    run.line("seconds", time.monotonic() - begin, "s")


if __name__ == "__main__":
    main()
