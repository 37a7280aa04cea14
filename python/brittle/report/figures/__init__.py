"""Figures of a report: from plain numbers to SVG in the page's own colours."""
