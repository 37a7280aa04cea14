"""The packages of the extra ``eval``, imported before work begins: what cannot be had is said then."""

from __future__ import annotations

from importlib import import_module

#: What a report is made with, from numbers to page.
REPORT = (
    "PIL.Image", "jinja2", "matplotlib.figure", "pydantic", "safetensors.torch", "scipy.stats",
    "sklearn.covariance", "threadpoolctl", "torchmetrics.functional.classification",
)  # fmt: skip
DRIFT = ("pydantic", "safetensors.torch", "scipy.stats")
DIAGNOSIS = ("jinja2", "matplotlib.figure", "safetensors.torch", "scipy.stats", "sklearn.cluster")

_DISTRIBUTIONS = {"PIL": "pillow", "sklearn": "scikit-learn"}


class UnusablePackage(ImportError):  # noqa: N818
    """A package that is needed is not there, or cannot be imported."""


def require(op: str, *modules: str) -> None:
    """Import modules of packages that brittle itself can do without.

    A package may be installed and still be of no use, for instance where it imports another one that does not
    fit this version of torch. That is known only once it is imported.

    Args:
        op: the operator to name.
        modules: as they will be imported later, such as :data:`REPORT`.

    Raises:
        UnusablePackage: one sentence that names the package, what it said and what to do.
    """
    for module in modules:
        package = module.partition(".")[0]
        name = _DISTRIBUTIONS.get(package, package)
        try:
            import_module(module)
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] == package:
                raise UnusablePackage(
                    f"{op}: needs {name}, which is not installed; `pip install '.[eval]'` in brittle's "
                    "folder installs all that the command line and the reports need",
                    name=module,
                ) from None
            raise _unusable(op, name, module, error) from error
        except Exception as error:  # whatever other people's code raises while it is imported
            raise _unusable(op, name, module, error) from error


def _unusable(op: str, name: str, module: str, error: Exception) -> UnusablePackage:
    said = next((line.strip() for line in str(error).splitlines() if line.strip()), "no reason given")
    return UnusablePackage(
        f"{op}: needs {name}, which is installed but cannot be imported ({type(error).__name__}: {said}); "
        f"install versions that fit each other, or uninstall what {name} trips over",
        name=module,
    )
