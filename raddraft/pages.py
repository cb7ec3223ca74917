"""HTML pages that load nothing: one look for what this project writes.

    page = render_template(Path("page.html.j2"), title="Which encoder?", image=embed(png))

Templates take their style from `page.css` of this folder: {% include "page.css" %}.
"""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any


def render_template(template: Path, **values: Any) -> str:
    """A page from a Jinja template: every text is escaped, a name without value is an error."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader([template.parent, Path(__file__).parent]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template.name).render(**values)


def embed(data: bytes, kind: str = "png") -> str:
    """The content of an image file, by default a PNG, as the address of an image in a page."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"
