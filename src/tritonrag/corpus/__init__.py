"""Where documents come from: folders of this machine and object stores, with their sidecar files.

Gives the files to index, each under its name in citations and with what is said of it from outside;
knows neither what is in them nor the index.
"""

from tritonrag.corpus.finding import Found, find_files
from tritonrag.corpus.place import Source

__all__ = ["Found", "Source", "find_files"]
