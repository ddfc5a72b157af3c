"""Puts conf/ into a wheel, as synaptune/conf; pyproject.toml holds everything else.

A `package-dir` entry for conf/ would do the same, but with one an editable install uses an import
hook, and Hydra does not find plugins through a hook.
"""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithConf(build_py):
    """Copies conf/ beside the modules; an editable install reads it where it lies."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            self.copy_tree("conf", str(Path(self.build_lib) / "synaptune" / "conf"))


setup(cmdclass={"build_py": BuildWithConf})
