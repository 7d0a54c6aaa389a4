"""make eval: every method on every judged set, through SQL only.

Usage: main.py PSQL SOCKET DATA OUT [quick] [name of a set ...]

Loads the sets, builds the indexes, trains the bridges on the train questions, judges on questions never trained on, and
prints a table (stderr), one JSON object a measure (stdout) and OUT/index.html. What the installed extension does not
have yet is left out with a line that says so.
"""

import dataclasses
import json
import pathlib
import sys
import time

import page
import sets
from database import Database, Failure

MEASURES = ("ndcg@10", "map", "mrr", "recall@1", "recall@10", "recall@100")
GAINS = ("ndcg@10", "map", "mrr", "recall@1", "recall@100")
MODEL = "minilm"
#: A masked language model, which the scheme clr of lexsem reads.
MASKED_MODEL = "splade"
#: Of a training that gave no bridge.
FAILED = "failed"


@dataclasses.dataclass
class Variant:
    """One way to search a set."""

    bridge: str
    variant: str
    index: str
    #: Arguments of situ.query behind the question, "" for none.
    options: str = ""
    default: bool = False
    #: Its settings were chosen on the questions held apart: it is not judged on them.
    chosen_by_queries: bool = False
    #: Encoding seconds of its index over those of the plain one; 1 for what leaves the plain index as it is.
    encode_cost: float = 1.0
    #: Median milliseconds of one search, the question encoded.
    latency: float | None = None
    #: Why it was not used, where training did not beat the identity.
    rejected: str | None = None

    @property
    def template(self) -> str:
        return f"situ.query({self.options})" if self.options else "NULL"


class Evaluation:
    """One run over one set."""

    def __init__(self, db: Database, judged: sets.Set, quick: bool, clock) -> None:
        self.db, self.set, self.quick, self.step = db, judged, quick, clock
        self.variants: list[Variant] = []
        self.tasks: dict[str, tuple[str, str]] = {}
        #: Trained over the vectors of the index with titles, and over the chunks alone.
        self.gap: list[Variant] = []

    @property
    def name(self) -> str:
        return self.set.name

    # Indexes

    def indexes(self) -> None:
        """The indexes: the passages alone, with the title before them, and pooled from their window."""
        kinds = {"plain": ("body", ""), "title": ("body, title situ_title_ops", "")}
        if self.set.situated:
            kinds["late"] = ("body", ", situate = 'late'")
        for kind, (columns, options) in kinds.items():
            index = f"{self.name}.{kind}"
            self.step(f"{self.name}: CREATE INDEX {kind}")
            self.db.run(
                f"CREATE INDEX {kind} ON {self.name}.docs USING situ ({columns}) "
                f"WITH (model = '{MODEL}', chunk_tokens = 250{options})"
            )
            bridge = "plain" if kind == "plain" else "situate"
            # Spans and keywords are made from the body alone: a title in the vector is judged on them too.
            self.variants.append(Variant(bridge, kind, index, encode_cost=self.cost(index)))

    def cost(self, index: str) -> float:
        """Encoding seconds of an index over those of the plain one."""
        seconds = "(SELECT encode_seconds FROM situ.stat_index WHERE indexrelid = '{}'::regclass)"
        return float(self.db.one(f"SELECT {seconds.format(index)} / {seconds.format(self.name + '.plain')}") or 1)

    def situated(self) -> None:
        """Rows embedded among the other rows of their document, in indexes over vectors: cut as the plain index cuts them, found at
        the nearest piece. `chunk` is the piece alone, `control` a map of it with the same training as `bridge`."""
        s, base = self.name, None
        if not self.set.situated:
            return
        if not self.db.has_function("situate", "chunks"):
            self.step(f"SKIPPED: {s}: rows in their document: this build has no situ.situate over chunks")
            return
        kinds = {"chunk": "mode => 'none'", "context": "mode => 'late'"}
        trained = {"bridge": "", "control": ", options => '{\"document\": false}'"} if self.db.has_function("train") else {}
        for kind, options in trained.items():
            pairs = f"model => '{MODEL}', passages => '{s}.train_passages', pairs => '{s}.train_pairs'"
            why = self.train("situate", f"{s}_situate_{kind}", pairs + options)
            if not why:
                kinds[kind] = f"mode => 'bridge', bridge => '{s}_situate_{kind}'"
            elif why != FAILED:
                self.variants.append(Variant("situate", kind, f"{s}.plain", default=kind == "bridge", rejected=why))
        self.db.run(
            f"CREATE TABLE {s}.pieces AS SELECT d.id, d.document, row_number() OVER (PARTITION BY d.document ORDER BY d.ordinal, "
            f"c.ordinal) AS ordinal, c.passage AS body FROM {s}.docs d, situ.chunks(d.body, '{MODEL}', 250) c;"
        )
        for kind, arguments in kinds.items():
            self.step(f"{s}: situ.situate_chunks(chunks, {arguments})")
            table, begin = f"{s}.situated_{kind}", time.monotonic()
            made = (
                f"CREATE TABLE {table} AS SELECT ids[n] AS id, vectors[n] AS v FROM (SELECT array_agg(id ORDER BY ordinal) AS "
                f"ids, situ.situate_chunks(array_agg(body ORDER BY ordinal), model => '{MODEL}', {arguments}) AS vectors FROM {s}.pieces "
                "GROUP BY document) d, generate_subscripts(ids, 1) n;"
            )
            try:
                self.db.run(made)
            except Failure as failure:
                self.step(f"SKIPPED: {s}: {kind}: {failure}".splitlines()[0])
                continue
            seconds = time.monotonic() - begin
            base = base or seconds
            self.db.run(
                f"ALTER TABLE {table} ALTER v TYPE vector(384);\n"
                f"CREATE INDEX {kind} ON {table} USING situ (v vector_cosine_ops);"
            )
            self.variants.append(
                Variant("situate", kind, f"{s}.{kind}", default=kind == "bridge", encode_cost=seconds / base)
            )

    # Training

    def train(self, kind: str, name: str, arguments: str) -> str | None:
        """Trains a bridge; None where it can be used, else why not: rejected, or failed and never a bridge."""
        self.step(f"{self.name}: CALL situ.train('{kind}', name => '{name}', {arguments})")
        begin = time.monotonic()
        try:
            self.db.run(f"CALL situ.train('{kind}', name => '{name}', {arguments}, seed => 1);")
        except Failure as failure:
            self.step(f"SKIPPED: {self.name}: {name}: {failure}".splitlines()[0])
            return FAILED
        row = self.db.rows(f"SELECT state, figures FROM situ.bridges WHERE name = '{name}'")
        self.step(f"{self.name}: {name}: {row[0] if row else 'no bridge'}, {time.monotonic() - begin:.0f} s")
        return None if row and row[0][0].startswith("accepted") else f"rejected: {row[0][1] if row else 'no bridge'}"

    def bridges(self) -> None:
        """Trains every bridge that the extension can train."""
        s, plain = self.name, f"{self.name}.plain"
        if not self.db.has_function("train") or not self.db.has_function("query", "bridge"):
            self.step(f"SKIPPED: {s}: adapter, lexsem, situate: this build has no situ.train")
            return
        pairs = f"model => '{MODEL}', passages => '{s}.train_passages', pairs => '{s}.train_pairs'"
        # The index's own texts, without their questions: what the adapter will have to tell apart.
        why = self.train("adapter", f"{s}_adapter", f"{pairs}, index => '{plain}'")
        if why != FAILED:
            self.variants.append(
                Variant("adapter", "query", plain, f"bridge => '{s}_adapter'", default=True, rejected=why)
            )
        # The trainer sees the first 60 % of each row's words; the tasks are made of the others.
        schemes = {"bag": ""}
        if not self.quick:
            schemes |= {"slr": "", "llr": ""}
            if self.db.one(f"SELECT count(*) FROM situ.models WHERE name = '{MASKED_MODEL}'") == "1":
                schemes["clr"] = f""", options => '{{"mlm": "{MASKED_MODEL}"}}'"""
            else:
                self.step(f"SKIPPED: {s}: lexsem clr: there is no masked language model")
        for scheme, options in schemes.items():
            name = f"{s}_lexsem_{scheme}"
            why = self.train("lexsem", name, f"index => '{plain}', scheme => '{scheme}'{options}")
            if why == FAILED:
                continue
            self.variants.append(
                Variant("lexsem", scheme, plain, f"bridge => '{name}'", default=scheme == "bag", rejected=why)
            )

    def held_apart(self) -> None:
        """A fifth of the questions chooses settings; what was chosen by them is judged on the others."""
        s = self.name
        self.db.run(f"CREATE TABLE {s}.tune_queries AS SELECT * FROM {s}.queries WHERE abs(hashtext(id)) % 5 = 0;")

    def feedback(self) -> None:
        """The feedback settings that situ.query takes."""
        if not self.db.has_function("query", "feedback"):
            self.step(f"SKIPPED: {self.name}: feedback: this build has none")
            return
        s, plain = self.name, f"{self.name}.plain"
        for variant in ("average", "rocchio"):
            self.variants.append(Variant("feedback", variant, plain, f"feedback => '{variant}'"))
        chosen = self.db.has_function("tune_feedback")
        if chosen:
            self.step(f"{s}: situ.tune_feedback")
            self.db.run(f"SELECT situ.tune_feedback('{plain}', '{s}.tune_queries', '{s}.qrels');")
        if self.db.has_function("feedback_text"):
            # A copy of the encoder that reads the question with the first round's passages.
            pairs = f"model => '{MODEL}', passages => '{s}.train_passages', pairs => '{s}.train_pairs'"
            why = self.train("feedback", f"{s}_reader", pairs)
            if why != FAILED:
                self.variants.append(
                    Variant("feedback", "text", plain, f"feedback_model => '{s}_reader'", rejected=why)
                )
        self.variants.append(
            Variant("feedback", "gated", plain, "feedback => 'gated'", default=True, chosen_by_queries=chosen)
        )

    def tuned(self) -> None:
        """Everything together: what situ.tune finds best."""
        s = self.name
        self.step(f"{s}: situ.tune")
        self.db.run(f"CREATE TABLE {s}.tuned AS SELECT * FROM situ.tune('{s}.plain', '{s}.tune_queries', '{s}.qrels');")
        for row in self.db.rows(f"SELECT round(value::numeric, 4), chosen, confirmed, options FROM {s}.tuned"):
            self.step(f"{s}: tried {row[3]}: {row[0]}" + (f", chosen, confirmed: {row[2]}" if row[1] == "t" else ""))
        self.variants.append(
            Variant("all", "profile", f"{s}.plain", "profile => 'best'", default=True, chosen_by_queries=True)
        )

    # Judging

    def judge(self) -> None:
        """Runs every variant on every task, and keeps each question's values."""
        s = self.name
        count = 100 if self.quick else 500
        self.set.make_tasks(self.db, f"{s}.plain", count)
        self.tasks = {"semantic": (f"{s}.queries", f"{s}.qrels")}
        for task in sets.TASKS:
            self.tasks[task] = (f"{s}.{task}", f"{s}.{task}_qrels")
        # Questions are encoded once for all variants.
        for queries, _ in self.tasks.values():
            self.db.run(
                f"ALTER TABLE {queries} ADD embedding vector(384);\n"
                f"UPDATE {queries} q SET embedding = e.v FROM (SELECT ids[n] AS id, vectors[n] AS v FROM "
                f"(SELECT array_agg(id) AS ids, situ.embed_batch(array_agg(text), '{MODEL}', 'query') AS vectors FROM "
                f"(SELECT id, text FROM {queries} ORDER BY id) o) a, generate_subscripts(ids, 1) n) e WHERE e.id = q.id;"
            )
        for variant in self.variants:
            if variant.rejected:
                continue
            self.step(f"{s}: judging {variant.bridge} {variant.variant}")
            for task, (queries, qrels) in self.tasks.items():
                apart = f"AND query_id NOT IN (SELECT id FROM {s}.tune_queries)"
                without = apart if variant.chosen_by_queries else ""
                self.db.run(
                    f"INSERT INTO results SELECT '{s}', '{task}', '{variant.bridge}', '{variant.variant}', query_id, "
                    f"measure, value FROM situ.evaluate_queries('{variant.index}', '{queries}', '{qrels}', "
                    f"{variant.template}, key => 'id') WHERE measure <> 'milliseconds' {without};"
                )
            variant.latency = self.latency(variant)

    def titled(self) -> None:
        """What a bridge lost that was trained on other vectors than it is used with: the same one over the index with titles, trained
        over what that index stores, and over the chunks alone. The last step, because nothing else may choose these."""
        s, title = self.name, f"{self.name}.title"
        if not self.db.has_function("train"):
            return
        names = {"title_stored": f"{s}_lexsem_title", "title_alone": f"{s}_lexsem_bag"}
        self.train("lexsem", names["title_stored"], f"index => '{title}'")
        listed = ", ".join(f"'{name}'" for name in names.values())
        if self.db.one(f"SELECT count(*) FROM situ.bridges WHERE name IN ({listed})") != "2":
            self.step(f"SKIPPED: {s}: train_serve_gap_ndcg@10: a training failed")
            return
        # Whether they help is not asked here.
        self.db.run(f"UPDATE situ.bridges SET state = 'accepted' WHERE name IN ({listed}) AND state = 'rejected';")
        queries, qrels = self.tasks["semantic"]
        for variant, name in names.items():
            self.db.run(
                f"INSERT INTO results SELECT '{s}', 'semantic', 'lexsem', '{variant}', query_id, measure, value FROM "
                f"situ.evaluate_queries('{title}', '{queries}', '{qrels}', situ.query(bridge => '{name}'), key => 'id') "
                "WHERE measure = 'ndcg@10';"
            )
            self.gap.append(Variant("lexsem", variant, title, f"bridge => '{name}'"))

    def latency(self, variant: Variant) -> float:
        """The median of forty searches in one session, milliseconds, each question encoded."""
        arguments = f", {variant.options}" if variant.options else ""
        return float(self.db.one(
            "CREATE TEMP TABLE took (ms float8);\n"
            "DO $do$ DECLARE question text; begun timestamptz; BEGIN\n"
            f"  FOR question IN SELECT text FROM {self.name}.queries ORDER BY id LIMIT 42 LOOP\n"
            "    begun := clock_timestamp();\n"
            f"    PERFORM * FROM situ.search('{variant.index}', situ.query(question{arguments}), k => 10);\n"
            "    INSERT INTO took VALUES (extract(epoch FROM clock_timestamp() - begun) * 1000);\n"
            "  END LOOP; END $do$;\n"
            "SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY ms) FROM (SELECT ms FROM took OFFSET 2) t;"
        ))


def compare(db: Database, data: str, task: str, base: Variant, other: Variant, measure: str) -> dict | None:
    """Two variants on the questions that both were judged on."""
    def chosen(variant: Variant) -> str:
        return (f"(SELECT query_id, value FROM results WHERE data = '{data}' AND task = '{task}' AND measure = '{measure}' "
                f"AND bridge = '{variant.bridge}' AND variant = '{variant.variant}')")

    names = ("value", "low", "high", "queries", "compared", "compared_low", "compared_high", "gain", "gain_low",
             "gain_high", "p")
    rows = db.rows(
        f"SELECT {', '.join('c.' + name for name in names)} FROM (SELECT array_agg(b.value ORDER BY query_id) AS base, "
        f"array_agg(o.value ORDER BY query_id) AS other FROM {chosen(base)} b JOIN {chosen(other)} o USING (query_id)) v, "
        "situ.compare(v.base, v.other) c WHERE v.base IS NOT NULL"
    )
    if not rows:
        return None
    return {name: float(value) if value else None for name, value in zip(names, rows[0])}


def kind_of(task: str) -> str:
    return "span" if task.startswith("span") else task


class Report:
    """What was found: lines on stdout, a table on stderr, a page."""

    def __init__(self, db: Database) -> None:
        self.db, self.table, self.pages = db, [], []

    def line(self, metric: str, value: float, unit: str, **more) -> None:
        line = {"bench": "eval", "metric": metric, "value": round(value, 6), "unit": unit}
        print(json.dumps(line | {k: round(v, 6) if isinstance(v, float) else v for k, v in more.items()}), flush=True)

    def add(self, run: Evaluation) -> None:
        """The lines and rows of one set."""
        plain = run.variants[0]
        adapter = next((v for v in run.variants if v.bridge == "adapter" and not v.rejected), None)
        for variant in run.variants:
            if not variant.rejected:
                self.line("encode_cost", variant.encode_cost, "ratio", bridge=variant.bridge, variant=variant.variant,
                          data=run.name, over="plain")
            if variant.latency is not None:
                self.line("query_ms", variant.latency, "ms", bridge=variant.bridge, variant=variant.variant, data=run.name)
        if len(run.gap) == 2:
            stored, alone = run.gap
            if found := compare(self.db, run.name, "semantic", alone, stored, "ndcg@10"):
                self.line("train_serve_gap_ndcg@10", found["compared"] - found["value"], "score", data=run.name, bridge="lexsem",
                          stored=found["compared"], alone=found["value"], gain=found["gain"], low=found["gain_low"],
                          high=found["gain_high"], p=found["p"])
        for task in run.tasks:
            for variant in run.variants:
                about = {"bridge": variant.bridge, "variant": variant.variant, "data": run.name, "task": kind_of(task)}
                about |= {"queries_of": task} if kind_of(task) != task else {}
                # One line a task bears the mark: of the two lengths of spans the longer.
                about |= {"default": True} if variant.default and task != "span8" else {}
                if variant.rejected:
                    for measure in GAINS:
                        self.line(f"gain_{measure}", 0.0, "relative", over="plain", low=0.0, high=0.0, rejected=True, **about)
                    self.table.append((run.name, task, variant, None, None))
                    continue
                found = {m: compare(self.db, run.name, task, plain, variant, m) for m in MEASURES}
                if not found["ndcg@10"]:
                    continue
                if variant is plain:
                    for measure, row in found.items():
                        self.line(measure, row["value"], "score", low=row["low"], high=row["high"],
                                  queries=int(row["queries"]), **about)
                else:
                    self.gains(found, "plain", about)
                over = None
                if adapter and variant is not plain and variant is not adapter:
                    over = {m: compare(self.db, run.name, task, adapter, variant, m) for m in GAINS}
                    self.gains(over, "adapter", about)
                self.table.append((run.name, task, variant, found, over))

    def gains(self, found: dict, over: str, about: dict) -> None:
        for measure in GAINS:
            row = found.get(measure)
            if row and row["gain"] is not None:
                self.line(f"gain_{measure}", row["gain"], "relative", over=over, low=row["gain_low"], high=row["gain_high"],
                          p=row["p"], **about)

    def print_table(self) -> None:
        """The table of everything, for people."""
        head = f"{'data':12}{'task':10}{'bridge':10}{'variant':9}{'nDCG@10':>9}  {'95 %':15}{'R@1':>7}{'R@100':>7}" \
               f"{'MAP':>7}{'MRR':>7}{'gain':>8}  {'95 %':18}{'p':>7}{'/adapter':>9}{'encode':>8}{'ms':>7}"
        print("\n" + head + "\n" + "-" * len(head), file=sys.stderr)
        for data, task, variant, found, over in self.table:
            start = f"{data:12}{task:10}{variant.bridge:10}{variant.variant:9}"
            if found is None:
                print(f"{start}  {variant.rejected[:90]}", file=sys.stderr)
                continue
            row = found["ndcg@10"]
            score = {m: found[m]["compared"] for m in MEASURES}
            gain = "" if variant.bridge == "plain" else f"{row['gain']:+8.1%}  " \
                f"{row['gain_low']:+7.1%} {row['gain_high']:+7.1%}   {row['p']:7.4f}"
            beside = f"{over['ndcg@10']['gain']:+9.1%}" if over and over["ndcg@10"] else " " * 9
            print(f"{start}{score['ndcg@10']:9.3f}  {row['compared_low']:.3f} {row['compared_high']:.3f}    "
                  f"{score['recall@1']:7.3f}{score['recall@100']:7.3f}{score['map']:7.3f}{score['mrr']:7.3f}"
                  f"{gain:43}{beside}{variant.encode_cost:8.2f}{variant.latency or 0:7.1f}", file=sys.stderr)

    def queries(self, data: str, task: str, variant: Variant, measure: str) -> dict[str, float]:
        """Each question's value."""
        return {name: float(value) for name, value in self.db.rows(
            f"SELECT query_id, value FROM results WHERE data = '{data}' AND task = '{task}' AND measure = '{measure}' "
            f"AND bridge = '{variant.bridge}' AND variant = '{variant.variant}'")}


def main() -> None:
    psql, socket, data, out, *rest = sys.argv[1:]
    quick, begin = "quick" in rest, time.monotonic()

    def step(text: str) -> None:
        print(f"[{time.monotonic() - begin:5.0f} s] {text}", file=sys.stderr, flush=True)

    db = Database(psql, socket, "situ_eval")
    db.make()
    db.run(
        f"ALTER DATABASE {db.name} SET situ.default_model = '{MODEL}';\n"
        f"SELECT situ.register_model('{MODEL}', '{MODEL}');\n"
        "CREATE TABLE results (data text, task text, bridge text, variant text, query_id text, measure text, value float8);"
    )
    try:
        db.run(f"SELECT situ.register_model('{MASKED_MODEL}', '{MASKED_MODEL}');")
    except Failure as failure:
        step(f"{MASKED_MODEL}: {failure}".splitlines()[0])
    report, runs = Report(db), []
    wanted = [name for name in rest if name != "quick"]
    for kind in sets.SETS:
        if wanted and kind.name not in wanted:
            continue
        judged = kind(pathlib.Path(data), quick)
        if missing := judged.missing():
            step(f"SKIPPED: {judged.name}: {missing}")
            continue
        run = Evaluation(db, judged, quick, step)
        step(f"{judged.name}: loading")
        judged.load(db)
        run.indexes()
        run.situated()
        run.bridges()
        run.held_apart()
        run.feedback()
        run.tuned()
        run.judge()
        run.titled()
        report.add(run)
        runs.append(run)
    report.print_table()
    pathlib.Path(out).mkdir(parents=True, exist_ok=True)
    place = pathlib.Path(out) / "index.html"
    place.write_text(page.render(report, runs), encoding="utf-8")
    step(f"the page is {place}")


if __name__ == "__main__":
    main()
