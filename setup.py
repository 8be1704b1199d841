"""What pyproject.toml can't say: the kernels of OpenLoRA are compiled into the wheel, where there is a compiler.

Without one the wheel is complete all the same; the kernels are then built at first use, or torch computes alone.
An editable install builds nothing: its kernels come from the user's cache.
"""

import importlib.util
import sys
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

FOLDER = Path("openledger") / "openlora"


class BuildWithKernels(build_py):
    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        kernels = _load(FOLDER / "build_kernels.py")
        target = Path(self.build_lib) / FOLDER / kernels.LIBRARY
        try:
            kernels.build(target)
        except (kernels.BuildFailed, OSError) as error:
            print(f"warning: no kernels in this wheel: {error}", file=sys.stderr)
        self.distribution.has_kernels = target.exists()


class PlatformWheel(bdist_wheel):
    """With kernels the wheel is for one platform and any Python; without it is for all."""

    def run(self) -> None:
        self.run_command("build")
        self.root_is_pure = not getattr(self.distribution, "has_kernels", False)
        super().run()

    def get_tag(self) -> tuple[str, str, str]:
        _, _, platform = super().get_tag()
        return "py3", "none", platform


def _load(path: Path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


setup(distclass=Distribution, cmdclass={"build_py": BuildWithKernels, "bdist_wheel": PlatformWheel})
