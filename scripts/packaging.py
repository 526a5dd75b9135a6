"""What setuptools calls while it builds a wheel or an sdist of decentral: the commit goes along, for ``--version``.

It is in an sdist as well, from which a wheel is built where there is no git.
"""

import shutil
import subprocess
from pathlib import Path

from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist

_ROOT = Path(__file__).parents[1]
#: Where ``decentral.cli.version`` looks for it, and where an sdist has it.
_COMMIT = "decentral/commit.txt"


def _stamp(folder: Path) -> None:
    """Write the commit of this tree into a tree that is being built; nothing if it is not known."""
    stamped = _ROOT / _COMMIT
    if stamped.exists():
        text = stamped.read_text()
    else:
        command = ("git", "-C", str(_ROOT), "rev-parse", "HEAD")
        if (
            not (_ROOT / ".git").exists()
            or (found := subprocess.run(command, capture_output=True, text=True)).returncode
        ):
            return
        text = found.stdout
    (folder / _COMMIT).write_text(text)


class BuildPy(build_py):
    """A wheel's files, with the commit. An editable install asks git each time."""

    def run(self) -> None:
        """See ``build_py``."""
        super().run()
        if not self.editable_mode:
            _stamp(Path(self.build_lib))


class Sdist(sdist):
    """An sdist's files, with the commit and with this module, by which a wheel is built from them."""

    def make_release_tree(self, base_dir: str, files: list[str]) -> None:
        """See ``sdist``."""
        super().make_release_tree(base_dir, files)
        folder = Path(base_dir)
        (folder / "scripts").mkdir(exist_ok=True)
        shutil.copy(__file__, folder / "scripts")
        _stamp(folder)
