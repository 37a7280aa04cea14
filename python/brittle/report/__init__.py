"""Reports: one self-contained HTML page each, that opens offline and loads nothing."""

from brittle.report.compare import compare_page
from brittle.report.evaluation import evaluation_page
from brittle.report.page import (
    Answer,
    Example,
    ExampleGroup,
    KeyFigure,
    curve_figure,
    robustness_page,
)
from brittle.report.pictures import grey_image, perturbation_image
from brittle.report.render import render
from brittle.report.text import percent

__all__ = [
    "Answer",
    "Example",
    "ExampleGroup",
    "KeyFigure",
    "compare_page",
    "curve_figure",
    "evaluation_page",
    "grey_image",
    "percent",
    "perturbation_image",
    "render",
    "robustness_page",
]
