"""One HTML page that works offline: the templates of all reports, and their styles."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["render"]


def render(package: str, template: str, view: Mapping[str, Any]) -> str:
    """Render a page without any outside reference.

    Args:
        package: whose folder ``templates/`` holds the template; it extends
            ``page.html.j2`` and takes small parts from ``parts.html.j2``, both here.
        template: name of the file.
        view: everything the page shows; a name that is missing is an error.
    """
    from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

    loaders = [PackageLoader(package), PackageLoader("exhume.report")]
    environment = Environment(
        loader=ChoiceLoader(loaders),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(view)
