"""The tokenizer of caption scores: the Java program where it is installed, else our own."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from mmtune.core.errors import ResourceError
from mmtune.evaluation.scorers import ptb

JAVA_NAME = "Stanford PTBTokenizer 3.4.1 (Java)"
_JAR = "stanford-corenlp-3.4.1.jar"
_CLASS = "edu.stanford.nlp.process.PTBTokenizer"


@dataclass(frozen=True, slots=True)
class Tokenizer:
    """A way to bring captions into the form that is compared, and what scores call it."""

    name: str
    comparable: Callable[[Sequence[str]], list[str]]


def tokenizer() -> Tokenizer:
    """The Java program when ``java`` and the package ``pycocoevalcap`` are installed, which brings it; else our own."""
    package = find_spec("pycocoevalcap")
    folders = list(package.submodule_search_locations or ()) if package else []
    jars = [jar for folder in folders if (jar := Path(folder) / "tokenizer" / _JAR).is_file()]
    java = shutil.which("java")
    if not jars or java is None:
        return Tokenizer(ptb.NAME, lambda captions: [ptb.comparable(caption) for caption in captions])
    return Tokenizer(JAVA_NAME, lambda captions: java_comparable(captions, java, jars[0]))


def java_comparable(captions: Sequence[str], java: str, jar: Path) -> list[str]:
    """Captions as the Java program tokenises them, without punctuation.

    Raises:
        ResourceError: The program failed.
    """
    text = "\n".join(" ".join(caption.splitlines()) for caption in captions)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "captions.txt"
        file.write_text(text, encoding="utf-8")
        command = [java, "-cp", str(jar), _CLASS, "-preserveLines", "-lowerCase", str(file)]
        done = subprocess.run(command, capture_output=True, check=False)
    lines = done.stdout.decode("utf-8", errors="replace").split("\n")
    if done.returncode or len(lines) < len(captions):
        raise ResourceError(
            f"The Java tokenizer failed: {done.stderr.decode(errors='replace').strip()[-200:]}",
            where=str(jar),
            fix="repair Java, or uninstall pycocoevalcap to use the tokenizer of mmtune",
        )
    kept = ([word for word in line.split() if word not in ptb.PUNCTUATION] for line in lines[: len(captions)])
    return [" ".join(words) for words in kept]
