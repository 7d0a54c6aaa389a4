"""Turns the HTML pages of the PostgreSQL manual into CSV rows (path, part, title, body): one row a page.

Usage: manual.py FOLDER [full]

The body is plain text: the chapter and the headings of the page as Markdown headings (`# chapter`, `## section`),
paragraphs on lines of their own, code with its line breaks. Navigation and tables of contents are left out. Without
`full` only the parts on server administration and on the SQL commands are taken.
"""

import csv
import html.parser
import pathlib
import re
import sys

CHOSEN = {"admin.html", "sql-commands.html"}
HEADINGS = {"h1": "#", "h2": "##", "h3": "##", "h4": "###", "h5": "####", "h6": "####"}
BLOCKS = {"p", "div", "dt", "dd", "dl", "li", "ul", "ol", "tr", "table", "hr", "br", "pre", *HEADINGS}
LEFT_OUT = {"navheader", "navfooter", "toc", "footnotes"}
VOID = {"br", "hr", "img", "link", "meta", "input", "col"}


def plain(title: str) -> str:
    """A title without its number: "27.3. Failover" and "Chapter 27. High Availability" lose them."""
    return re.sub(r"^(?:Chapter|Part|Appendix)?\s*(?:[A-Z]\.)?(?:[0-9]+|[IVX]+|[A-Z])?(?:\.[0-9]+)*\.\s+", "", title).strip()


class Page(html.parser.HTMLParser):
    """Collects one page's title, its way up and its text."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.title = ""
        self.up = None
        self.up_title = ""
        self.lines: list[str] = []
        self.line = ""
        self.heading = None
        self.preformatted = 0
        self.hidden = 0
        self.in_title = False
        self.first_heading = True

    def handle_starttag(self, tag: str, attributes: list) -> None:
        values = dict(attributes)
        classes = set((values.get("class") or "").split())
        if tag == "a" and values.get("accesskey") == "u":
            self.up, self.up_title = values.get("href", "").split("#")[0], values.get("title", "")
        if tag == "title":
            self.in_title = True
        if self.hidden or (tag in ("div", "table", "dl") and classes & LEFT_OUT):
            self.hidden += tag not in VOID
            return
        if tag in BLOCKS:
            self.flush()
        if tag == "pre":
            self.preformatted += 1
        if tag in HEADINGS:
            self.heading = tag
        if tag in ("td", "th") and self.line.strip():
            self.line = self.line.rstrip() + " | "

    def handle_endtag(self, tag: str) -> None:
        if tag == "title":
            self.in_title = False
        if self.hidden:
            self.hidden -= tag not in VOID
            return
        if tag in BLOCKS:
            self.flush()
        if tag == "pre":
            self.preformatted -= 1
        if tag in ("p", "pre", "table", "dd", "ul", "ol") and self.lines and self.lines[-1]:
            self.lines.append("")
        if tag in HEADINGS:
            self.heading = None

    def handle_data(self, data: str) -> None:
        if self.in_title:
            self.title += data
        elif not self.hidden:
            self.line += data

    def flush(self) -> None:
        """Ends the line that was being collected."""
        text, self.line = self.line.replace("\u00a0", " "), ""
        if self.preformatted:
            # Indented as Markdown has it, so that a comment (`# ...`) in a listing is not taken for a heading.
            self.lines.extend(("    " + line).rstrip() for line in text.strip("\n").split("\n"))
            return
        text = " ".join(text.split())
        if not text:
            return
        if self.heading:
            # The page's own title is a column; repeating it in the body would put it before every chunk twice.
            if not (self.first_heading and plain(text) == plain(" ".join(self.title.split()))):
                self.lines += ["", f"{HEADINGS[self.heading]} {plain(text)}", ""]
            self.first_heading = False
        else:
            self.lines.append(text)

    def body(self) -> str:
        """The text, with runs of empty lines made one."""
        text = "\n".join(self.lines).replace("\x00", "")
        chapter = plain(self.up_title)
        if chapter and not chapter.startswith("PostgreSQL 1"):
            text = f"# {chapter}\n\n{text}"
        return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def read(folder: str) -> dict:
    """All pages of the manual by file name."""
    pages = {}
    for path in sorted(pathlib.Path(folder).glob("*.html")):
        page = Page()
        page.feed(path.read_text(encoding="utf-8"))
        page.close()
        page.title = " ".join(page.title.replace("\u00a0", " ").split())
        pages[path.name] = page
    return pages


def way_up(pages: dict, name: str) -> list:
    """File names from a page's parent to its part."""
    way = []
    above = pages[name].up
    while above in pages and above != "index.html" and above not in way:
        way.append(above)
        above = pages[above].up
    return way


def main(folder: str, *options: str) -> None:
    pages = read(folder)
    if not pages:
        sys.exit(f"no pages in {folder}")
    rows = csv.writer(sys.stdout, lineterminator="\n")
    for name, page in pages.items():
        way = way_up(pages, name)
        if name == "index.html" or ("full" not in options and not CHOSEN & {name, *way}):
            continue
        chosen = CHOSEN & {name, *way}
        part = pages[(way or [name])[-1] if "sql-commands.html" not in chosen else "sql-commands.html"].title
        body = page.body()
        if body.strip():
            rows.writerow([name, plain(part), plain(page.title), body])


if __name__ == "__main__":
    main(*sys.argv[1:])
