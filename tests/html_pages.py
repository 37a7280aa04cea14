"""Pages taken apart: elements, text, and the tables of each section."""

from __future__ import annotations

from html.parser import HTMLParser

VOID = {"meta", "img", "br", "hr", "link", "input"}
Attributes = dict[str, str | None]
Rows = list[tuple[str, ...]]


class Page(HTMLParser):
    """A page's elements with their attributes, its text, and the tables of each section by its id.

    Raises AssertionError where elements are not closed in the order in which they were opened.
    """

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, Attributes]] = []
        self.tables: dict[str, list[Rows]] = {}
        self.figures: dict[str, int] = {}
        self.text = ""
        self._open: list[str] = []
        self._sections: list[str] = [""]
        self._cell: list[str] | None = None
        self._row: list[str] = []
        self.feed(page)
        assert not self._open, f"left open: {self._open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        assert len(attributes) == len(attrs), f"an attribute of {tag} comes twice"
        self.elements.append((tag, attributes))
        if tag not in VOID:
            self._open.append(tag)
        section = self._sections[-1]
        if tag == "section":
            self._sections.append(attributes.get("id") or "")
        elif tag == "table":
            self.tables.setdefault(section, []).append([])
        elif tag == "svg":
            self.figures[section] = self.figures.get(section, 0) + 1
        elif tag == "tr":
            self._row = []
        elif tag in ("td", "th"):
            self._cell = []

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open, f"closed without being opened: {tag}"
        assert self._open.pop() == tag, f"closed out of order: {tag}"
        if tag == "section":
            self._sections.pop()
        elif tag in ("td", "th") and self._cell is not None:
            self._row.append(" ".join("".join(self._cell).split()))
            self._cell = None
        elif tag == "tr":
            self.tables[self._sections[-1]][-1].append(tuple(self._row))

    def handle_data(self, data: str) -> None:
        if self._cell is not None:
            self._cell.append(data)
        if "style" not in self._open:
            self.text += data

    def every(self, tag: str) -> list[Attributes]:
        return [attributes for name, attributes in self.elements if name == tag]

    def rows(self, section: str) -> Rows:
        """Every row of every table of a section."""
        return [row for table in self.tables.get(section, []) for row in table]

    def shows(self, section: str, row: tuple[str, ...]) -> None:
        """Fails unless a section has this row in one of its tables."""
        rows = self.rows(section)
        assert row in rows, f"{row} is not among the {len(rows)} rows of {section}"
