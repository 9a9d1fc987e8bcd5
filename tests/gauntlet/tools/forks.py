"""Run by another tool's interpreter: imports its client once, and forks a process of it for each call.

Argument: the module to import. Each line of standard input is a call in JSON: the code of the tool's command line, its
words, directory and variables, and a processor core or none. The answers are the process's id and its exit code.
"""

import importlib
import json
import os
import sys
import traceback
from typing import Any


def carry_out(call: dict[str, Any]) -> int:
    """In the fork: the exit code of the tool."""
    os.setsid()
    os.chdir(call["directory"])
    if call["core"] is not None:
        os.sched_setaffinity(0, {call["core"]})
    os.environ.clear()
    os.environ.update(call["variables"])
    printed = os.open("printed", os.O_CREAT | os.O_WRONLY)
    for target, source in ((0, os.open(os.devnull, os.O_RDONLY)), (1, printed), (2, printed)):
        os.dup2(source, target)
    sys.argv = call["words"]
    try:
        exec(call["code"], {"__name__": "__main__"})
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def main() -> None:
    told = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    importlib.import_module(sys.argv[1])
    for line in sys.stdin:
        if not (child := os.fork()):
            code = carry_out(json.loads(line))
            sys.stdout.flush()
            os._exit(code)
        print(child, file=told, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), file=told, flush=True)


if __name__ == "__main__":
    main()
