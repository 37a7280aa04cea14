"""Drives CMake and Ninja; everything else is in pyproject.toml and CMakeLists.txt."""

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

SOURCE = Path(__file__).resolve().parent


class CMakeBuild(build_ext):
    def run(self) -> None:
        if not any(map(shutil.which, [os.environ.get("CXX", "c++"), "g++", "clang++"])):
            raise SystemExit(
                "brittle: no C++ compiler was found; install g++ 11 or newer (Debian: apt-get install g++) "
                "or set CXX, and install again."
            )
        inplace = self.inplace or self.editable_mode
        package = SOURCE / "python" / "brittle" if inplace else Path(self.build_lib).resolve() / "brittle"
        # One build tree a Python, kept: the next build compiles only what changed.
        tree = SOURCE / "build" / f"{sys.implementation.cache_tag}-{sysconfig.get_platform()}"
        configure = ["-S", SOURCE, "-B", tree, "-G", "Ninja", f"-DPython_EXECUTABLE={sys.executable}"]
        options = shlex.split(os.environ.get("CMAKE_ARGS", ""))
        if "BRITTLE_CUDA" in os.environ:
            options.append(f"-DBRITTLE_CUDA={os.environ['BRITTLE_CUDA']}")
        self.cmake([*configure, *options])
        self.cmake(["--build", tree])
        self.cmake(["--install", tree, "--prefix", package])

    @staticmethod
    def cmake(arguments: list) -> None:
        tools = sysconfig.get_path("scripts")  # where pip put cmake and ninja
        path = os.pathsep.join([tools, os.environ.get("PATH", "")])
        command = shutil.which("cmake", path=path)
        if command is None:
            raise SystemExit("brittle: cmake was not found; install it with `pip install cmake ninja`.")
        subprocess.run([command, *map(str, arguments)], check=True, env={**os.environ, "PATH": path})

    def get_outputs(self) -> list[str]:
        return []

    def get_output_mapping(self) -> dict[str, str]:
        return {}


setup(ext_modules=[Extension("brittle._native", sources=[])], cmdclass={"build_ext": CMakeBuild})
