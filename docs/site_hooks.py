"""Extend the site's build: formulas as MathML, and the docstrings' reStructuredText as Markdown.

``mkdocs.yml`` names this file twice: as a hook of mkdocs and as an extension of griffe, which
reads the docstrings for mkdocstrings. Browsers draw MathML themselves, so that formulas need
neither a script nor the network.
"""

from __future__ import annotations

import re
import textwrap
from typing import Any

import griffe
from latex2mathml.converter import convert

ROLE = re.compile(r':(?P<role>[a-z]+):`(?P<text>[^`]+)`')
LINK = re.compile(r'`(?P<text>[^`<]+?)\s+<(?P<url>https?://[^>]+)>`_+')
DIRECTIVE = re.compile(
    r'^(?P<indent> *)\.\. (?P<name>math|note|warning)::[ ]*(?P<title>.*)\n'
    r'(?P<body>(?:(?P=indent) +\S.*\n|[ ]*\n)*)',
    re.MULTILINE,
)
EXAMPLE = re.compile(r'^Example:$', re.MULTILINE)
CODE_FOLLOWS = re.compile(r'::[ ]*$', re.MULTILINE)


def on_config(config: Any) -> Any:
    """Draw fenced blocks and inline code of the language ``math`` as formulas."""
    extensions = config.mdx_configs
    fence = dict(name='math', **{'class': 'math'}, format=format_block)
    extensions['pymdownx.superfences'] = dict(custom_fences=[fence])
    inline = dict(name='math', **{'class': 'math'}, format=format_inline)
    extensions['pymdownx.inlinehilite'] = dict(custom_inline=[inline])
    return config


def format_block(source: str, *args: Any, **kwargs: Any) -> str:
    """Return a LaTeX formula as a MathML block."""
    return f'<div class="math">{convert(source, display="block")}</div>'


def format_inline(source: str, *args: Any, **kwargs: Any) -> str:
    """Return a LaTeX formula as MathML within a line."""
    return convert(source)


class MarkdownDocstrings(griffe.Extension):
    """Translate the reStructuredText of docstrings into what mkdocs reads."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Translate the docstring of a module, class, function or attribute."""
        if obj.docstring:
            obj.docstring.value = translate(obj.docstring.value, obj)


def translate(text: str, scope: griffe.Object) -> str:
    """Return a docstring with its roles, links, formulas and admonitions as Markdown.

    Args:
        text: The docstring, dedented.
        scope: The object that it documents: names are looked up from there.
    """
    text = DIRECTIVE.sub(_directive, text + '\n').rstrip('\n')
    text = LINK.sub(r'[\g<text>](\g<url>)', text)
    text = EXAMPLE.sub('Examples:', CODE_FOLLOWS.sub(':', text))
    return ROLE.sub(lambda match: _role(match['role'], match['text'], scope), text)


def _directive(match: re.Match[str]) -> str:
    indent, name = match['indent'], match['name']
    body = textwrap.dedent(match['body']).strip('\n')
    if name == 'math':
        lines = ['```math', *body.splitlines(), '```', '']
    else:
        content = '\n'.join(filter(None, [match['title'], body]))
        lines = [f'!!! {name}', '', *textwrap.indent(content, '    ').splitlines(), '']
    return ''.join(f'{indent}{line}'.rstrip() + '\n' for line in lines)


def _role(role: str, text: str, scope: griffe.Object) -> str:
    if role == 'math':
        return f'`#!math {text}`'
    shown = text.rsplit('.', 1)[-1] if text.startswith('~') else text.lstrip('.')
    path = text.lstrip('~.')
    try:
        path = scope.resolve(path)
    except griffe.NameResolutionError:
        return f'`{shown}`'
    # Optional: an object that no page documents stays plain code.
    return f'<autoref identifier="{path}" optional><code>{shown}</code></autoref>'
