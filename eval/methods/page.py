"""The page of make eval: the table and plots as inline SVG; nothing is fetched, so it can be read anywhere."""

import html

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 76em; padding: 0 1em; color: #1b1f24; }
h1 { font-size: 1.6em } h2 { font-size: 1.25em; margin-top: 2em } h3 { font-size: 1em; margin: 1.2em 0 .3em }
table { border-collapse: collapse; font-size: 13px } td, th { padding: .2em .7em; text-align: right; border-bottom: 1px solid #dde1e6 }
td:nth-child(-n+4), th:nth-child(-n+4) { text-align: left } .plots { display: flex; flex-wrap: wrap; gap: 1em }
svg text { font: 11px system-ui, sans-serif; fill: #444c56 } .better { color: #116329 } .worse { color: #a40e26 }
"""
COLOURS = ("#444c56", "#0969da", "#bf3989", "#1a7f37", "#bc4c00", "#8250df", "#0f766e", "#9a6700", "#cf222e")
WIDTH, HEIGHT, LEFT, BOTTOM = 470, 300, 46, 34


def render(report, runs) -> str:
    """The whole page."""
    parts = [f"<!doctype html><html lang=en><meta charset=utf-8><title>situ: evaluation</title><style>{STYLE}</style>",
             "<h1>situ: evaluation</h1><p>Questions never trained on; 95 % bootstrap intervals; gains are relative to plain "
             "search (and to the adapter) on the same questions; p of the paired randomisation test on nDCG@10.</p>",
             table(report)]
    for run in runs:
        parts.append(f"<h2>{html.escape(run.name)}</h2>")
        for task in run.tasks:
            judged = [v for v in run.variants if any(r[0] == run.name and r[1] == task and r[2] is v and r[3] for r in report.table)]
            rows = {id(r[2]): r[3] for r in report.table if r[0] == run.name and r[1] == task}
            parts.append(f"<h3>{html.escape(task)}</h3><div class=plots>")
            parts.append(cost_plot(judged, rows))
            parts.append(gain_plot(report, run.name, task, run.variants[0], judged[1:]))
            parts.append("</div>")
    return "\n".join(parts) + "</html>\n"


def table(report) -> str:
    """All figures."""
    names = ("data", "task", "bridge", "variant", "nDCG@10", "95 %", "R@1", "R@10", "R@100", "MAP", "MRR", "gain", "95 %", "p",
             "over adapter", "encode cost", "query ms")
    rows = ["<table><tr>" + "".join(f"<th>{name}</th>" for name in names) + "</tr>"]
    for data, task, variant, found, over in report.table:
        cells = [data, task, variant.bridge, variant.variant + (" *" if variant.default else "")]
        if found is None:
            rows.append("<tr>" + "".join(f"<td>{html.escape(c)}</td>" for c in cells) +
                        f"<td colspan=13 style='text-align:left'>{html.escape(variant.rejected or '')}</td></tr>")
            continue
        row, score = found["ndcg@10"], {m: f"{found[m]['compared']:.3f}" for m in found}
        cells += [score["ndcg@10"], f"{row['compared_low']:.3f} to {row['compared_high']:.3f}", score["recall@1"],
                  score["recall@10"], score["recall@100"], score["map"], score["mrr"]]
        if variant.bridge == "plain":
            cells += ["", "", "", ""]
        else:
            beside = over["ndcg@10"]["gain"] if over and over["ndcg@10"] else None
            cells += [f"{row['gain']:+.1%}", f"{row['gain_low']:+.1%} to {row['gain_high']:+.1%}", f"{row['p']:.4f}",
                      "" if beside is None else f"{beside:+.1%}"]
        cells += [f"{variant.encode_cost:.2f}", f"{variant.latency or 0:.1f}"]
        kind = "" if variant.bridge == "plain" else "better" if row["gain_low"] > 0 else "worse" if row["gain_high"] < 0 else ""
        rows.append(f"<tr class='{kind}'>" + "".join(f"<td>{html.escape(c)}</td>" for c in cells) + "</tr>")
    return "\n".join(rows) + "</table><p>* the default variant of its bridge. Green: the interval lies above 0; red: below.</p>"


class Axes:
    """A frame with two scales."""

    def __init__(self, title: str, across: tuple[float, float], up: tuple[float, float], below: str) -> None:
        self.across, self.up = widen(across), widen(up)
        middle = (LEFT + WIDTH) / 2
        self.parts = [
            f"<svg width={WIDTH} height={HEIGHT} viewBox='0 0 {WIDTH} {HEIGHT}' role=img aria-label='{html.escape(title)}'>",
            f"<text x={middle} y=14 text-anchor=middle>{html.escape(title)}</text>",
            f"<text x={middle} y={HEIGHT - 4} text-anchor=middle>{html.escape(below)}</text>",
        ]
        for step in range(5):
            value = self.up[0] + (self.up[1] - self.up[0]) * step / 4
            self.parts.append(f"<line x1={LEFT} x2={WIDTH - 8} y1={self.y(value):.1f} y2={self.y(value):.1f} stroke='#e6e9ed'/>"
                              f"<text x={LEFT - 4} y={self.y(value) + 4:.1f} text-anchor=end>{value:.3g}</text>")
            value = self.across[0] + (self.across[1] - self.across[0]) * step / 4
            self.parts.append(f"<text x={self.x(value):.1f} y={HEIGHT - BOTTOM + 14} text-anchor=middle>{value:.3g}</text>")

    def x(self, value: float) -> float:
        low, high = self.across
        return LEFT + (WIDTH - 16 - LEFT) * (value - low) / (high - low)

    def y(self, value: float) -> float:
        low, high = self.up
        return HEIGHT - BOTTOM - (HEIGHT - BOTTOM - 24) * (value - low) / (high - low)

    def close(self) -> str:
        return "\n".join([*self.parts, "</svg>"])


def widen(ends: tuple[float, float]) -> tuple[float, float]:
    """Ends that are apart, with a little room."""
    low, high = ends
    room = (high - low) * 0.08 or abs(high) * 0.1 or 1.0
    return low - room, high + room


def cost_plot(variants, rows) -> str:
    """Recall@10 against the milliseconds of a query, with the interval of recall."""
    points = [(v, v.latency or 0.0, rows[id(v)]["recall@10"]) for v in variants]
    axes = Axes("recall@10 against the time of a query", (0, max(p[1] for p in points)),
                (min(p[2]["compared_low"] for p in points), max(p[2]["compared_high"] for p in points)), "milliseconds, median")
    for place, (variant, cost, recall) in enumerate(points):
        colour, x = COLOURS[place % len(COLOURS)], axes.x(cost)
        axes.parts.append(
            f"<line x1={x:.1f} x2={x:.1f} y1={axes.y(recall['compared_low']):.1f} y2={axes.y(recall['compared_high']):.1f} "
            f"stroke='{colour}' stroke-opacity=.4 /><circle cx={x:.1f} cy={axes.y(recall['compared']):.1f} r=4 fill='{colour}'>"
            f"<title>{html.escape(variant.bridge)} {html.escape(variant.variant)}: {recall['compared']:.3f}, {cost:.1f} ms</title></circle>")
    return axes.close() + legend(variants)


def gain_plot(report, data, task, plain, variants) -> str:
    """Each question's gain in nDCG@10 over plain search, sorted: what is won on the left, what is lost on the right."""
    base = report.queries(data, task, plain, "ndcg@10")
    axes = Axes("gain in nDCG@10 question by question, sorted", (0, 1), (-1, 1), "share of the questions")
    axes.parts.append(f"<line x1={LEFT} x2={WIDTH - 8} y1={axes.y(0):.1f} y2={axes.y(0):.1f} stroke='#8c959f'/>")
    for place, variant in enumerate(variants, start=1):
        other = report.queries(data, task, variant, "ndcg@10")
        gains = sorted((other[name] - base[name] for name in other if name in base), reverse=True)
        count = max(len(gains) - 1, 1)
        line = " ".join(f"{axes.x(at / count):.1f},{axes.y(gain):.1f}" for at, gain in enumerate(gains))
        axes.parts.append(f"<polyline points='{line}' fill=none stroke-width=1.5 stroke='{COLOURS[place % len(COLOURS)]}'>"
                          f"<title>{html.escape(variant.bridge)} {html.escape(variant.variant)}</title></polyline>")
    return axes.close()


def legend(variants) -> str:
    """Which colour is which variant."""
    marks = (f"<span style='color:{COLOURS[place % len(COLOURS)]}'>&#9679;</span> {html.escape(v.bridge)} {html.escape(v.variant)}"
             for place, v in enumerate(variants))
    return "<div style='font-size:12px;align-self:center'>" + "<br>".join(marks) + "</div>"
