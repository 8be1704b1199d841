"""The command lines that documents show: of code blocks and of indented code, one list of words each."""

import re
import shlex
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path

ROOT = Path(__file__).parents[1]
OURS = re.compile(r"(?:^|\s)(openledger|python jobs/\w+\.py) (?!\.\.\.)")
_BLOCK = re.compile(r"^```(?:sh)?\n(.*?)^```", re.MULTILINE | re.DOTALL)
_INDENTED = re.compile(r"(?:^(?: {4,}|\t).*\n)+", re.MULTILINE)
_SHELL = (">", "<", "|", "&&")  # what follows isn't for the program
_REMARK = re.compile(r" {3,}[^\s-].*")  # beside the command, in blocks that aren't a shell's


def documented(text: str) -> Iterator[list[str]]:
    """Each call of `openledger` or of a job, from its name on."""
    for block in [*_BLOCK.findall(text), *_INDENTED.findall(text)]:
        for line in re.sub(r"\\\n\s*", "", block).splitlines():
            if found := OURS.search(line):
                words = shlex.split(_REMARK.sub("", line[found.start(1) :]), comments=True)
                yield list(takewhile(lambda word: word not in _SHELL, words))
