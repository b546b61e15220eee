"""The coordinator computes nothing itself: what needs torch is in processes of its own."""

import subprocess
import sys


def test_the_coordinators_process_does_not_load_torch() -> None:
    """It would take half a gigabyte, and seconds of every restart."""
    code = (
        "import sys, fedpeft_server.main; print([m for m in ('torch', 'ray') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
