"""Seven small things that Sphinx does for this book and no other extension does.

- The role {found}`key` shows a text that some notebook glued, with a link to that page, or says that this run did
  not judge it.
- plotly.js (1.5 MB) is loaded on pages that hold a plotly figure, before its content, and on no others.
- sphinx-thebe, which comes with Jupyter Book, announces a script from a CDN on every page, twice; it is silenced.
- Links to a page that are shared in a chat or a feed show its title, what it is about, and a picture (Open Graph).
- A link to the glossary shows the definition when the pointer rests on it.
- Where there is a narrow picture of a figure, a phone loads it in place of the wide one.
- Docstrings are written to be read in the source; they are shown as text and never misread as reStructuredText.
"""

import functools
import html
import inspect
import json
import re
from pathlib import Path

from docutils import nodes
from sphinx.addnodes import pending_xref

NOT_FOUND = "not judged in this run"


def found_role(name, rawtext, text, lineno, inliner, options=None, content=None):
    """The role {found}."""
    env = inliner.document.settings.env
    source = Path(env.srcdir) / "book" / "found.json"
    env.note_dependency(str(source))
    entry = json.loads(source.read_text(encoding="utf-8")).get(text)
    if entry is None:
        return [nodes.emphasis(rawtext, NOT_FOUND)], []
    link = pending_xref(
        "", nodes.inline(rawtext, entry["text"]), refdomain="std", reftype="doc", reftarget=f"/{entry['page']}",
        refdoc=env.docname, refexplicit=True, refwarn=True,
    )  # fmt: skip
    return [link], []


DESCRIPTION = "What a single node of a vision transformer knows about every label: a paper's claims, measured."


def finish_page(app, pagename, templatename, context, doctree):
    """Event html-page-context: plotly.js where it is needed, Open Graph; the list of references holds links, too."""
    told = {
        "og:type": "article",
        "og:title": re.sub(r"<[^>]+>", "", context.get("title") or app.config.html_title),
        "og:description": DESCRIPTION,
        "og:url": f"{app.config.html_baseurl}{pagename}.html",
        "og:image": f"{app.config.html_baseurl}_static/hero.png",
        "og:image:alt": "Two nodes and their noise; below, noise and signal to noise along the encoders.",
    }
    tags = [f'<meta property="{name}" content="{html.escape(value)}">' for name, value in told.items()]
    tags.append(f'<meta name="description" content="{html.escape(DESCRIPTION)}">')
    context["metatags"] = "\n".join([context.get("metatags", ""), *tags])
    if "plotly-graph-div" in context.get("body", ""):
        app.add_js_file("plotly/plotly-cartesian.min.js")
    phone = Path(app.srcdir) / "book" / "_static" / "phone"

    def with_narrow(image):
        if not (phone / image[1]).is_file():
            return image[0]
        source = context["pathto"](f"_static/phone/{image[1]}", resource=True)
        return f'<picture><source media="(max-width: 480px)" srcset="{source}">{image[0]}</picture>'

    if "glossary.html#term-" in context.get("body", ""):
        meanings = definitions(app.env)
        context["body"] = re.sub(
            r'<a (class="[^"]*" href="[^"]*glossary\.html#(term-[^"]+)")',
            lambda link: f'<a title="{html.escape(meanings.get(link[2], ""))}" {link[1]}',
            context["body"],
        )
    if "_images" in context.get("body", ""):
        context["body"] = re.sub(r'<img [^>]*src="[^"]*_images/(\w+\.png)"[^>]*>', with_narrow, context["body"])
    if "citation-list" in context.get("body", ""):
        context["body"] = context["body"].replace(
            '<div role="list" class="citation-list">', '<div class="citation-list">'
        )


@functools.cache  # most pages link to the glossary, whose document tree is read from disk
def definitions(env):
    """The text of each definition of the glossary, by the address of its term."""
    items = env.get_doctree("book/glossary").findall(nodes.definition_list_item)
    return {
        name: item.children[-1].astext() for item in items for term in item.findall(nodes.term) for name in term["ids"]
    }


def show_as_text(app, what, name, obj, options, lines):
    """Event autodoc-process-docstring: paragraphs stay paragraphs, indented or aligned blocks are shown as they are."""
    blocks = inspect.cleandoc("\n".join(lines)).split("\n\n")
    shown = []
    for block in blocks:
        rows = block.strip("\n").split("\n")
        aligned = all(row.startswith("  ") for row in rows) or any(re.search(r"\S {2,}\S", row) for row in rows)
        if aligned:
            shown += ["::", "", *(f"    {row}" for row in inspect.cleandoc(block).split("\n")), ""]
        elif re.match(r"(-|\d+\.) ", rows[0]):
            items = [
                re.match(r"(-|\d+\.) (.*)", item, re.S).groups()
                for item in re.split(r"\n(?=(?:-|\d+\.) )", block.strip("\n"))
            ]
            shown += [f"{mark} {_escaped(' '.join(item.split()))}" for mark, item in items] + [""]
        else:
            shown += [_escaped(" ".join(block.split())), ""]
    lines[:] = shown


def _escaped(text: str) -> str:
    """Text with every sign that reStructuredText would read as markup escaped, but for `code` and *emphasis*."""
    parts = re.split(r"(``.+?``|`[^`]+`|(?<![\w*])\*\w(?:[^*]*?\w)?\*(?![\w*]))", text)
    for position, part in enumerate(parts):
        if position % 2 == 0:
            parts[position] = re.sub(r"([\\*`|]|_(?!\w)|:(?=:))", r"\\\1", part)
        else:
            parts[position] = (part if part.startswith("*") else f"``{part.strip('`')}``") + "\\ "
    return "".join(parts).removesuffix("\\ ")


def silence_thebe(app):
    """Event builder-inited: no live code cells here, and nothing from a CDN."""
    for listener in list(app.events.listeners.get("env-before-read-docs", [])):
        if listener.handler.__name__ == "init_thebe_core":
            app.disconnect(listener.id)


def setup(app):
    """Register with Sphinx."""
    app.connect("builder-inited", silence_thebe)
    app.add_role("found", found_role)
    app.connect("html-page-context", finish_page)
    app.connect("autodoc-process-docstring", show_as_text)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
