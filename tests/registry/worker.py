"""A process that puts artifacts until it is killed.

`FOLDER ORDER` forks, for each line that it reads, a child that puts one new artifact after the
other and prints the digest of each. ORDER `wrong` writes under the final name at once.
"""

import hashlib
import os
import sys
from pathlib import Path

from fedpeft.registry.artifacts import ArtifactStore
from tests.processes import nurse, say


def work(folder: Path, order: str) -> None:
    store = ArtifactStore(folder)
    while True:
        content = os.urandom(16) * 500_000  # quickly made, slowly written
        if order == "right":
            say(store.put(content))
        else:
            path = folder / hashlib.sha256(content).hexdigest()
            path.write_bytes(content)
            say(path.name)


if __name__ == "__main__":
    for _ in nurse():
        work(Path(sys.argv[1]), sys.argv[2])
