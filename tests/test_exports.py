"""HTML copies and slides of executed notebooks: no network, formulas, alt texts, sizes, no injection."""

import base64
import copy
import html
import re
import struct
from functools import lru_cache
from html.parser import HTMLParser

import pytest

from rlgenkit.commands import pages
from rlgenkit.commands.places import NOTEBOOKS, read, series

# Elements that load what their attribute names, and attributes that do so anywhere.
LOADING = {"src", "srcset", "poster", "data", "background", "xlink:href"}
VOID = {"img", "br", "meta", "hr", "link", "input"}


class Page(HTMLParser):
    """Elements of a page in order: (tag, attributes), and the text outside of scripts and code."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements, self.open, self.prose, self.styles = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self.open += [] if tag in VOID else [tag]

    def handle_endtag(self, tag):
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data):
        if "style" in self.open:
            self.styles.append(data)
        elif not {"script", "pre", "code", "math", "title"} & set(self.open):
            self.prose.append(data)

    def of(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.elements if name == tag]


def loads(page: Page) -> list[str]:
    """Everything that a browser would fetch to show the page."""
    found = [v for t, a in page.elements for k, v in a.items() if k in LOADING]
    found += [a["href"] for t, a in page.elements if t == "link"]
    styles = [*page.styles, *(a["style"] for _, a in page.elements if "style" in a)]
    found += [x for s in styles for x in re.findall(r"url\((.*?)\)|@import\s+(\S+)", s)]
    return [x for x in found if not (isinstance(x, str) and x.startswith("data:image/"))]


@lru_cache
def exported(path, kind: str) -> str:
    """A notebook as a page or as slides."""
    return getattr(pages, kind)(read(path))


def figures_of(nb: dict) -> list[str]:
    """Alt texts of the figures in the outputs."""
    shown = [
        o for c in nb["cells"] for o in c.get("outputs", []) if "image/png" in o.get("data", {})
    ]
    return [o["metadata"]["image/png"]["alt"] for o in shown]


@pytest.mark.parametrize("kind", ["page", "slides"])
@pytest.mark.parametrize("path", series(), ids=lambda p: p.stem)
def test_exports_load_nothing_and_show_formulas_and_alt_texts(path, kind):
    nb, text = read(path), exported(path, kind)
    page = Page(text)
    assert loads(page) == []
    assert all(a.get("alt", "").strip() for a in page.of("img"))
    alts = [a["alt"] for a in page.of("img")]
    assert [x for x in figures_of(nb) if x not in alts] == []
    prose = "".join(page.prose)
    assert "$" not in re.sub(r"\$\d", "", prose) and "\\" not in prose
    assert f"<title>{pages.heading(nb).split(':')[0]}" in text
    assert len(page.of("script")) == (kind == "slides")


RESTING = 36.0 - 2 * 1.8  # rem inside the padding of a slide
ROOM = 64.0 - 2 * 2.0


def boxes(section: str) -> list[tuple[float, float]]:
    """(width, height) in rem of the pictures of a slide."""
    sizes = re.findall(r'style="width:([\d.]+)rem;height:([\d.]+)rem"', section)
    return [(float(w), float(h)) for w, h in sizes]


def measured(piece: str) -> float:
    """Height of a piece in rem by its lines alone, not by the measure that packed it."""
    if sizes := boxes(piece):
        return sum(high for _, high in sizes)
    text = re.sub(r"<[^>]*>", "", re.sub(r"<math.*?</math>", "xxxxxx", piece, flags=re.S)).strip()
    if "<pre" in piece:
        return 0.945 * len(text.splitlines()) + 1.4
    rows = piece.count("<tr") or piece.count("<li") or 1
    return max(len(text) / 110, rows) * 1.45 + 0.4


@pytest.mark.parametrize("path", series(), ids=lambda p: p.stem)
def test_slides_fit_their_screen(path):
    """A slide's pieces fit the screen, or its only long one scrolls; pictures fit wholly."""
    packed = pages.packed(read(path))
    assert len(packed) == exported(path, "slides").count("<section>") > 20
    for parts in packed:
        assert all(w <= ROOM and h <= pages.FIGURE for p in parts for w, h in boxes(p))
        high = sum(min(measured(p), pages.HIGH) for p in parts)
        assert high <= RESTING or len([p for p in parts if measured(p) > 3]) == 1, parts


def test_slides_are_a_fixed_stage_that_scales_with_the_screen():
    css = (pages.HERE / "slides.css").read_text("utf-8")
    assert "min(calc(100vw / 64), calc(100vh / 36))" in css  # 20 px at 1280 x 720
    assert re.search(r"section \{[^}]*height: 100vh; overflow: hidden", css)
    assert re.search(r"\.slide \{[^}]*width: 64rem; height: 36rem[^}]*overflow: auto", css)
    for name in ("page", "slides"):  # nothing scrolls on paper
        printed = (pages.HERE / f"{name}.css").read_text("utf-8").partition("@media print")[2]
        assert "overflow: visible" in printed and "auto;" not in printed.replace("height: auto", "")
    script = (pages.HERE / "slides.js").read_text("utf-8")
    assert all(key in script for key in ("ArrowRight", "ArrowLeft", "Home", "End"))


# --- small notebooks


def notebook(*cells: dict) -> dict:
    return {"cells": [markdown_cell("# 98. A title & more"), *cells], "metadata": {}}


def markdown_cell(text: str) -> dict:
    return {"cell_type": "markdown", "id": "m", "metadata": {}, "source": text}


def code_cell(*outputs: dict, code: str = "1") -> dict:
    return {"cell_type": "code", "id": "c", "metadata": {}, "source": code, "outputs": [*outputs]}


def shown(metadata: dict | None = None, **data: str) -> dict:
    data = {k.replace("_", "/"): v for k, v in data.items()}
    return {"output_type": "display_data", "data": data, "metadata": metadata or {}}


HOSTILE = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    '<img alt="a" src="data:image/png;base64,AA" onerror="alert(1)">',
    "<details ontoggle=alert(1) open>x</details>",
    "<svg onload=alert(1)>",
    "<iframe src='https://example.org'></iframe>",
    '<td style="background:url(https://example.org/x)">',
    "</main></body><script>alert(1)</script>",
    "<SCRIPT SRC=//example.org/x.js></SCRIPT>",
    "<style>@import 'https://example.org/x.css'</style>",
    "<a href='javascript:alert(1)'>x</a>",
]


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("make", [pages.page, pages.slides], ids=["page", "slides"])
def test_foreign_html_is_shown_and_not_run(text, make):
    table = f"| a | b |\n|---|---|\n| {text} | 1 |"
    stream = {"output_type": "stream", "name": "stdout", "text": text}
    outputs = [shown(text_markdown=table), shown(text_html=text), shown(text_plain=text), stream]
    alt = shown({"image/png": {"alt": f'"{text}'}}, image_png=png(4, 4))
    page = Page(make(notebook(markdown_cell(text), code_cell(*outputs, alt))))
    assert len(page.of("script")) == (make is pages.slides)
    assert not {"iframe", "svg", "link"} & {t for t, _ in page.elements}
    assert not any(k.startswith("on") for _, a in page.elements for k in a)
    assert not any("javascript:" in (a.get("href") or "") for a in page.of("a"))
    assert loads(page) == [] and page.elements[-1][0] != "body"


FORMULAS = [
    r"\text{%s}",
    r"\mbox{%s}",
    r"\tag{%s}",
    r"\href{%s}{x}",
    r"\style{%s}{x}",
    r"\class{%s}{x}",
    r"\color{%s}{x}",
    r"\hspace{%s}",
    r"\operatorname{%s}",
    r"\begin{array}{%s}a\end{array}",
]
IN_FORMULAS = [
    "<script>alert(1)</script>",
    "<svg/onload=alert(1)>",
    "<img src=x onerror=alert(1)>",
    '1em"><script>alert(1)</script>',
    "javascript:alert(1)",
    'x" onclick="alert(1)',
    "</math><script>alert(1)</script>",
]
HARMLESS = {"displaystyle", "scriptlevel", "mathvariant", "stretchy", "width", "display"}
HARMLESS |= {"movablelimits", "columnalign"}


@pytest.mark.parametrize("latex", FORMULAS)
def test_foreign_html_in_formulas_is_shown_and_not_run(latex):
    """In Markdown, in HTML whose text is escaped as pandas does it, and in a cell of a table."""
    for text in IN_FORMULAS:
        raw = latex % text
        quoted = f"<td>${html.escape(raw)}$</td>"
        cells = [markdown_cell(f"${raw}$\n\n$$\n{raw}\n$$\n\n<p>${html.escape(raw)}$</p>")]
        cells += [markdown_cell(f"| a |\n|---|\n| ${raw}$ |"), code_cell(shown(text_html=quoted))]
        page = Page("".join(piece for cell in cells for piece in pages.pieces(cell)))
        plain = {"p", "td", "th", "tr", "table", "thead", "tbody", "div", "span", "pre", "code"}
        inside = [(t, a) for t, a in page.elements if t not in plain]
        assert all(t == "math" or re.fullmatch("m[a-z]+", t) for t, _ in inside), inside
        assert {k for _, a in inside for k in a} <= HARMLESS, inside


def test_text_in_formulas_is_read_as_it_stands():
    assert "<mtext>a&#x000A0;&lt;&#x000A0;b</mtext>" in pages.formula(r"\text{a < b}")
    assert "<mo>&#x0003C;</mo>" in pages.formula("a < b")


def test_links_and_pictures_of_markdown():
    text = (
        "[x](javascript:alert(1)) [y](https://example.org) ![far away](https://example.org/a.png)"
    )
    attached = {**markdown_cell('![the "one"](attachment:a.png)'), "attachments": {}}
    attached["attachments"]["a.png"] = {"image/png": png(4, 4)}
    page = Page(pages.page(notebook(markdown_cell(text), attached)))
    assert [a["href"] for a in page.of("a")][1] == "https://example.org"
    assert "javascript" not in page.of("a")[0]["href"] and "far away" in "".join(page.prose)
    assert [a["alt"] for a in page.of("img")] == ['the "one"']


def png(width: int, height: int) -> str:
    """The head of a PNG of this size, base64."""
    head = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + struct.pack(">II", width, height) + b"\x08\6\0\0\0"
    return base64.b64encode(head).decode()


def test_what_is_broken_ends_no_good_run():
    cells = [markdown_cell("![lost](attachment:a.png)"), code_cell(shown(image_png="AAAA"))]
    cells += [{**cells[0], "attachments": {"a.png": odd}} for odd in (None, 5, {})]
    cells += [code_cell(shown({"image/png": odd}, image_png="AAAA")) for odd in (None, 5)]
    cells += [code_cell(shown(application_json=odd)) for odd in (None, 5, [1], {"a": None})]
    assert "lost" in pages.page(notebook(*cells)) and pages.slides(notebook(*cells))


@pytest.mark.parametrize("width, height", [(720, 260), (400, 4000), (5000, 300), (10, 10)])
def test_figures_are_as_large_as_a_slide_allows(width, height):
    ((wide, high),) = boxes(pages.figure("a", "image/png", png(width, height)))
    assert wide <= pages.WIDE and high <= pages.FIGURE
    assert wide / high == pytest.approx(width / height, rel=0.1)
    assert wide == pages.WIDE or high == pages.FIGURE


def test_each_kind_of_output_has_its_form():
    nb = notebook(
        code_cell(
            shown(**{"application_vnd.jupyter.widget-view+json": "", "text_plain": "Slider()"}),
            shown(text_plain="<b>", text_html="<table border='1'><tr><td>7</td></tr></table>"),
            shown(**{"image_svg+xml": "<svg/>", "text_plain": "a b"}),
            {"output_type": "error", "traceback": ["\x1b[31mZeroDivisionError\x1b[0m: x < y"]},
        )
    )
    text = pages.page(nb)
    page = Page(text)
    assert "Slider" not in text and "ZeroDivisionError: x &lt; y" in text and "\x1b" not in text
    assert page.of("img")[0]["src"].startswith("data:image/svg+xml;base64,")
    assert page.of("img")[0]["alt"] == "a b" and len(page.of("td")) == 1


def test_formulas():
    text = "In $x_1 < 2$ and $$\\frac{a}{b}$$ but `$code$`, \\$5.\n\n| $a|b$ | c |\n|---|---|\n| 1 | 2 |"
    text += "\n\n<details><summary>Hint</summary>\n\nTake $y$.\n\n</details>\n\n<details>\nRaw $z^2$\n</details>"
    page = Page(pages.page(notebook(markdown_cell(text))))
    assert [a["display"] for a in page.of("math")][:2] == ["inline", "block"]
    assert len(page.of("math")) >= 4 and "<code>$code$</code>" in pages.page(
        notebook(markdown_cell(text))
    )
    assert pages.formula(r"\arg\max_x f").startswith("<math")
    assert pages.formula(r"\nosuchthing{x}") == r"<code>\nosuchthing{x}</code>"
    assert pages.formula(r"\left( x") == r"<code>\left( x</code>"


def test_slides_start_at_headings_and_leave_out_what_is_marked():
    skipped = {**markdown_cell("Not here"), "metadata": {"slideshow": {"slide_type": "skip"}}}
    answer = {**code_cell(code="answer = 1"), "metadata": {"tags": ["solution"]}}
    long = "\n\n".join(f"Paragraph {k} " + "word " * 60 for k in range(12))
    nb = notebook(
        skipped, answer, code_cell(code="x\n" * 16), markdown_cell(f"## 1. One\n\n{long}")
    )
    text = pages.slides(nb)
    sections = re.findall(r"<section>.*?</section>", text, flags=re.S)
    assert "Not here" not in text and "answer" not in text and ">x<" not in text
    assert len(sections) == 4 and "<h2>1. One" in sections[1]
    assert '<h2 class="again">1. One' in sections[2]
    assert sum(s.count("Paragraph") for s in sections) == 12


def test_the_html_copy_stands_beside_the_notebook(tmp_path):
    path = tmp_path / "00.ipynb"
    path.write_text((NOTEBOOKS / "00_start_here.ipynb").read_text("utf-8"), encoding="utf-8")
    pages.write_page(path)
    assert "<math" in path.with_suffix(".html").read_text("utf-8")
    before = copy.deepcopy(nb := read(path))
    pages.slides(nb)
    assert nb == before
