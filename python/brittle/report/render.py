"""Templates, filled in: everything is escaped, and a value that a template misses is an error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from brittle.report.pictures import grey_image, perturbation_image
from brittle.report.text import clean, count, number, percent


def _fit(value: Any) -> Any:
    """Text that a page can hold; a number stays on one line with its per cent sign."""
    return clean(value).replace(" %", "\N{NO-BREAK SPACE}%") if type(value) is str else value


def render(template: str, **values: Any) -> str:
    """A template of ``report/templates``, filled in; a value that the template misses is an error."""
    pages = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_fit,
    )
    pages.filters |= {
        "percent": percent,
        "number": number,
        "count": count,
        "grey_image": grey_image,
        "perturbation_image": perturbation_image,
        "largest": lambda pixels: float(np.abs(pixels).max()),
    }
    return pages.get_template(template).render(values)
