"""HTML pages that load nothing: one look for what this project writes.

    page = render_template(Path("page.html.j2"), title="Which encoder?", image=embed(png))

Templates take their style from `page.css` of this folder: {% include "page.css" %}.
"""

from __future__ import annotations

import base64
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import Environment


def render_template(template: Path, **values: Any) -> str:
    """A page from a Jinja template: every text is escaped, a name without value is an error."""
    return _open_templates(template.parent).get_template(template.name).render(**values)


@cache
def _open_templates(folder: Path) -> Environment:
    """The templates of a folder and of this one, which are compiled once."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    return Environment(
        loader=FileSystemLoader([folder, Path(__file__).parent]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def embed(data: bytes, kind: str = "png") -> str:
    """The content of an image file, by default a PNG, as the address of an image in a page."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"
