"""Keep TensorFlow's log out of what `python -m stopgrad_op` writes to the terminal."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

LEVEL = "TF_CPP_MIN_LOG_LEVEL"


def is_command_line() -> bool:
    """Return whether this process is `python -m stopgrad_op` and is importing the package for it.

    Until Python has found what -m names, "-m" stands in argv[0].
    """
    named = {"stopgrad_op", "-mstopgrad_op"}.intersection(sys.orig_argv)
    return bool(named) and sys.argv[:1] == ["-m"]


@contextmanager
def quiet_import() -> Iterator[None]:
    """Write nothing to stderr in this context, on the command line and if all goes well.

    TF_CPP_MIN_LOG_LEVEL=0 asks TensorFlow for everything, and then it comes. Other values do not
    silence it, though they should: while TensorFlow is imported its log is not set up and heeds
    nothing (TensorFlow's issue 100442). The lines come from C++, so the file descriptor has to be
    turned aside.
    """
    if not is_command_line() or os.environ.setdefault(LEVEL, "2") == "0":
        yield
        return
    sys.stderr.flush()
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as log:
        os.dup2(log.fileno(), 2)
        try:
            yield
        except BaseException:
            log.seek(0)
            os.write(stderr, log.read())
            raise
        finally:
            sys.stderr.flush()
            os.dup2(stderr, 2)
            os.close(stderr)
