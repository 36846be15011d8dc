"""Check one kernel in this process; the last line is JSON: case -> what went wrong, or the empty string."""

import importlib
import json
import sys
import traceback


def main(kernel: str) -> None:
    """Run every case; an error of any kind is that case's result."""
    module = importlib.import_module(f"tests.gpu.interpreter.{kernel}")
    results = {}
    for name, arguments in module.CASES.items():
        try:
            module.check("cpu", **arguments)
            results[name] = ""
        except Exception:
            results[name] = traceback.format_exc()
    print(json.dumps(results))


if __name__ == "__main__":
    main(sys.argv[1])
