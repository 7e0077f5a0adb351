"""A Markdown report as one HTML file, with its pictures inside."""

from __future__ import annotations

import base64
import html
import re
from pathlib import Path

from markdown_it import MarkdownIt

_STYLE = """\
body { max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222;
       font: 16px/1.5 system-ui, sans-serif; }
table { border-collapse: collapse; margin: 1rem 0; display: block; overflow-x: auto; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid #ddd; }
code, pre { background: #f4f4f4; border-radius: 4px; padding: .1rem .3rem; }
pre { padding: .7rem; overflow-x: auto; }
pre code { padding: 0; }
blockquote { margin: 1rem 0; padding: .1rem 1rem; border-left: 4px solid #c8553d; }
img { max-width: 100%; }"""


def to_html(markdown: str, folder: Path) -> str:
    """Return a page that needs no other file.

    Args:
        markdown: The report. Its first line is its title. HTML in it is shown as text.
        folder: Folder of its PNG pictures.
    """
    # Text within HTML tags could be a name of a class or of a file.
    body = MarkdownIt('commonmark', {'html': False}).enable('table').render(markdown)
    body = re.sub(
        r'<img src="([^":]+\.png)"',
        lambda match: f'<img src="{_data_address(folder / match[1])}"',
        body,
    )
    title = html.escape(markdown.split('\n', 1)[0].lstrip('# '))
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<title>{title}</title>\n<style>\n{_STYLE}\n</style>\n</head>\n<body>\n{body}'
        '</body>\n</html>\n'
    )


def _data_address(picture: Path) -> str:
    return f'data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode()}'
