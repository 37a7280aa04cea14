"""One spelling of a radius, in headlines, tables, findings and names of measures."""


def radius(value: float) -> str:
    """A radius; where pixels count in 255ths, as that fraction.

    Example:
        >>> from brittle._radius import radius
        >>> radius(8 / 255), radius(0.25), radius(0.0123456)
        ('8/255', '0.25', '0.0123')
    """
    steps = value * 255
    if 0 < value < 1 and abs(steps - round(steps)) < 1e-4 and abs(value - round(value, 3)) > 1e-9:
        return f"{round(steps)}/255"
    return f"{value:.3g}"
