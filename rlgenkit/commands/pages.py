"""Notebooks as HTML that needs no network: the page beside each run, and slides.

Formulas become MathML, pictures are part of the file with their alt texts, and of the HTML in cells
and outputs only plain tags stay; all other is shown as text.
"""

import base64
import json
import re
import struct
from html import escape, unescape
from pathlib import Path
from xml.etree.ElementTree import tostring

from latex2mathml.converter import convert_to_element
from nbconvert.filters import strip_ansi
from nbconvert.filters.markdown_mistune import InvalidNotebook, IPythonRenderer, MarkdownWithMath
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

from .committed import WIDGET, heading
from .places import read

HERE = Path(__file__).parent
TAGS = "b|br|code|details|em|i|kbd|li|ol|p|pre|strong|sub|summary|sup|table|tbody|td|th|thead|tr|ul"
# Plain tags with harmless attributes, and pictures that are part of the file.
PLAIN = re.compile(
    rf"(</?(?:{TAGS})(?:\s+(?:align|border|class|colspan|open|rowspan|style)"
    r'(?:="[\w\s.:;%-]*")?)*\s*/?>|<img\s+alt="[^"]*"\s+src="data:image/[^"]*"\s*/?>)'
)
# What the converter writes besides: xmlns, and what the text chose: href, style, class, id, colors.
MATH = re.compile(
    "accent|column|depth|display|fence|form|height|largeop|line|[lr]space|mathsize|mathvariant|max|"
    "min|movable|notation|row|script|separator|stretchy|voffset|width"
)
TEX = re.compile(r"\$\$(.+?)\$\$|\$([^\s$](?:[^$]*?[^\s$])?)\$", re.S)
PICTURES = ("image/svg+xml", "image/png", "image/jpeg")
# Sizes of slides in rem, of which 64 x 36 fill the screen.
WIDE, HIGH, FIGURE = 60.0, 30.0, 24.0


def formula(latex: str, display: str = "inline") -> str:
    """MathML of harmless elements and attributes; the text as it stands where it cannot be read."""
    text = latex.replace(r"\arg\m", r"\operatorname{arg}\m")
    try:
        tree = convert_to_element(text, display=display)
        for node in tree.iter():
            node.attrib = {k: v for k, v in node.attrib.items() if MATH.match(k)}
        made = tostring(tree, encoding="unicode")
    except Exception:  # the converter has no common class of errors
        made = "\\"
    if "\\" in made:
        return f"<code>{escape(latex)}</code>"
    return re.sub("&amp;(#x[0-9A-Fa-f]+;)", r"&\1", made)  # the converter's own, and inert as text


def plain(html: str) -> str:
    """HTML with plain tags only and formulas as MathML; other tags are shown as text."""

    def text(part: str) -> str:
        pieces = TEX.split(part.replace("<", "&lt;").replace(">", "&gt;"))
        for k in range(0, len(pieces) - 1, 3):
            block, inline = pieces[k + 1 : k + 3]
            latex = unescape(block or inline)
            pieces[k + 1 : k + 3] = [formula(latex, "block" if block else "inline"), ""]
        return "".join(pieces)

    parts = PLAIN.split(re.sub(r"<style.*?</style>", "", html, flags=re.S))
    return "".join(part if k % 2 else text(part) for k, part in enumerate(parts))


class Renderer(IPythonRenderer):
    """Markdown to HTML in pieces: paragraphs, lists, tables, ..."""

    def __call__(self, tokens, state):
        self.pieces = list(self.iter_tokens(tokens, state))
        return ""

    def block_html(self, html):
        return plain(html)

    inline_html = block_html

    def block_math(self, body):
        return formula(body, "block")

    def inline_math(self, body):
        return formula(body)

    def latex_environment(self, name, body):
        return formula(rf"\begin{{{name}}}{body}\end{{{name}}}", "block")

    def image(self, text, url, title=None):
        try:
            url = self._embed_image_or_attachment(url)
        except (InvalidNotebook, TypeError, StopIteration):  # no such attachment, or an odd one
            pass
        return picture(unescape(text), url)


def picture(alt: str, url: str, size: str = "") -> str:
    """An image that is part of the file; of any other its alt text."""
    if not url.startswith("data:image/"):
        return escape(alt)
    return f'<img alt="{escape(alt)}" src="{escape(url)}"{size}>'


def markdown(text: str, attachments: dict | None = None) -> list[str]:
    """HTML of each paragraph, list, table, ...; what a <details> holds is one piece."""
    renderer = Renderer(
        allow_harmful_protocols=False, exclude_anchor_links=True, attachments=attachments
    )
    MarkdownWithMath(renderer).render(text)
    found: list[str] = []
    for piece in renderer.pieces:
        if found and found[-1].count("<details") > found[-1].count("</details"):
            found[-1] += piece
        elif piece.strip():
            found.append(piece)
    return found


def output_pieces(output: dict) -> list[str]:
    """HTML of one output; widgets leave their static twin, an output of its own."""
    if "data" not in output:
        lines = output.get("text") or "\n".join(output.get("traceback", []))
        return [f"<pre>{escape(strip_ansi(''.join(lines)))}</pre>"]
    data = {k: "".join(v) if "/json" not in k else v for k, v in output["data"].items()}
    if WIDGET in data:
        return []
    if "text/markdown" in data:
        return markdown(data["text/markdown"])
    if "text/html" in data:
        return [plain(data["text/html"])]
    for kind in PICTURES:
        if kind in data:
            meta = output["metadata"].get(kind)
            alt = meta.get("alt") if isinstance(meta, dict) else None
            return [figure(str(alt or data.get("text/plain", "figure")), kind, data[kind])]
    if "application/json" in data:
        data["text/plain"] = json.dumps(data["application/json"], indent=1)
    return [f"<pre>{escape(data.get('text/plain', ''))}</pre>"]


def figure(alt: str, kind: str, content: str) -> str:
    """A picture as large as a slide allows; its size is known for PNG."""
    if kind == "image/svg+xml":
        content = base64.b64encode(content.encode()).decode()
    wide, high = WIDE, FIGURE
    head = base64.b64decode(content[:32])
    if head.startswith(b"\x89PNG") and len(head) == 24:
        width, height = struct.unpack(">II", head[16:])
        scale = min(WIDE / width, FIGURE / height)
        wide, high = scale * width, scale * height
    size = f' style="width:{wide:.1f}rem;height:{high:.1f}rem"'
    return picture(alt, f"data:{kind};base64,{content.strip()}", size)


def pieces(cell: dict) -> list[str]:
    """HTML of a cell, part by part."""
    text = "".join(cell["source"])
    if cell["cell_type"] != "code":
        return markdown(text, cell.get("attachments"))
    code = [highlight(text, PythonLexer(), HtmlFormatter(cssclass="code"))] if text.strip() else []
    return code + [piece for output in cell["outputs"] for piece in output_pieces(output)]


def document(title: str, kind: str, body: str) -> str:
    """A whole HTML file with its style and, where there is one, its script."""
    style = HtmlFormatter().get_style_defs(".code") + (HERE / f"{kind}.css").read_text("utf-8")
    script = HERE / f"{kind}.js"
    code = f"<script>{script.read_text('utf-8')}</script>" if script.is_file() else ""
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}'
        f'</title>\n<meta name="viewport" content="width=device-width">\n<style>{style}</style>'
        f"</head>\n<body><main>\n{body}\n</main>{code}</body></html>\n"
    )


def page(nb: dict) -> str:
    """The whole notebook as one HTML page."""
    body = "\n".join(
        f'<div class="{cell["cell_type"]}">{"".join(pieces(cell))}</div>' for cell in nb["cells"]
    )
    return document(heading(nb), "page", body)


def write_page(notebook: Path) -> None:
    """The HTML copy beside an executed notebook."""
    notebook.with_suffix(".html").write_text(page(read(notebook)), encoding="utf-8")


def height(piece: str) -> float:
    """About how high a piece is on a slide, in rem; at most a slide, where it then scrolls."""
    if size := re.search(r"<img [^>]*?height:([\d.]+)rem", piece):
        return float(size[1]) + 0.5
    if "<img " in piece:
        return FIGURE
    text = unescape(re.sub(r"<[^>]*>", "", re.sub(r"<(summary|math)\b.*?</\1>", "xxxxxxxx", piece)))
    rows = text.strip("\n").split("\n")
    if "<pre" in piece:
        return min(len(rows) * 0.95 + 1.5, HIGH)
    if "<table" in piece:
        cells = re.findall(r"<tr.*?</tr>", piece, flags=re.S)
        return min(1.5 + sum(1.7 * -(-len(re.sub("<[^>]*>", "", r)) // 110) for r in cells), HIGH)
    if head := re.match(r"<h(\d)", piece):
        return {"1": 4.0, "2": 3.2}.get(head[1], 2.4)
    lines = sum(max(1, -(-len(row) // 115)) for row in rows)
    return min(1.5 * lines + 0.8 + 3 * piece.count('display="block"'), HIGH)


def packed(nb: dict) -> list[list[str]]:
    """Pieces of each slide: a heading of level 1 or 2 starts one, and so does what no longer fits.

    Long code without outputs and solutions are left out, and cells that are marked `skip`.
    """
    made: list[list[str]] = [[]]
    used, head = 0.0, ""
    for cell in nb["cells"]:
        meta, code = cell["metadata"], cell["cell_type"] == "code"
        long = code and not cell["outputs"] and len("".join(cell["source"]).splitlines()) > 15
        marked = meta.get("slideshow", {}).get("slide_type") in ("skip", "notes")
        if marked or long or "solution" in meta.get("tags", []):
            continue
        for piece in pieces(cell):
            starts, high = piece.startswith(("<h1", "<h2")), height(piece)
            if starts or used + high > HIGH:
                head = piece if starts else re.sub("<h1|<h2", '<h2 class="again"', head)
                made.append([] if starts else [head])
                used = 0.0 if starts else height("<h3")
            made[-1].append(piece)
            used += high
    return [parts for parts in made if parts]


def slides(nb: dict) -> str:
    """The notebook as HTML slides, moved through by keys."""
    made = ("".join(parts) for parts in packed(nb))
    body = "\n".join(f'<section><div class="slide">{x}</div></section>' for x in made)
    return document(heading(nb), "slides", body)
