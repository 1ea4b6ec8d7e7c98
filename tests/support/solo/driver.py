"""Runs command lines of one main_pretrain.py one after the other, in one interpreter, and reports each as JSON.

Loading torch, Lightning and solo-learn takes many times longer than the small runs themselves. Usage: driver.py ROOT REPORT,
with a JSON list of argument lists on standard input.
"""

import contextlib
import importlib
import io
import json
import sys
import traceback
import warnings


def one(main, arguments):
    sys.argv = ["main_pretrain.py", *arguments]
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), warnings.catch_warnings():
        warnings.simplefilter("always")
        try:
            main()
        except SystemExit as stop:
            code = stop.code or 0
        except Exception:
            traceback.print_exc()
            code = 1
    return {"rc": code, "out": out.getvalue(), "err": err.getvalue()}


def drive():
    root, report = sys.argv[1:3]
    sys.path[0] = root  # as python ROOT/main_pretrain.py would have it
    main = importlib.import_module("main_pretrain").main
    reports = [one(main, arguments) for arguments in json.load(sys.stdin)]
    with open(report, "w") as file:
        json.dump(reports, file)


if __name__ == "__main__":
    drive()
