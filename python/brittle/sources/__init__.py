"""Where an evaluation's data come from: folders of images, .npz archives, tensors, torch data sets.

A source gives rows by number, so that a run can stop anywhere, go on later and be shared by processes.
"""

from brittle.sources.base import BadSample, Source
from brittle.sources.digits import Digits, digits
from brittle.sources.folder import ImageFolder
from brittle.sources.opening import as_source, open_source

__all__ = ["BadSample", "Digits", "ImageFolder", "Source", "as_source", "digits", "open_source"]
