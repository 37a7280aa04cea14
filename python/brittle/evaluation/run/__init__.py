"""One whole evaluation as a run.

``evaluate`` is the way through. ``settings`` and ``preflight`` say what is to be done; stages (``work``,
``answers``, ``single_steps``, ``iterated``) do it to each sample, in processes that ``workers`` brings
together, and write rows to the ``store``; ``fingerprint`` says whether a run may go on; ``reading`` gives the
rows back, and ``finish`` makes the report of them. ``verify`` looks at every stored point once more.
"""
