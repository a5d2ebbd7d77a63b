"""`make bench`: runs the benchmarks named on the command line, or all of them."""

import importlib
import sys
from pathlib import Path

NOT_BENCHMARKS = ("__main__", "curve_files", "publish", "record", "trials")


def main(names: list[str]) -> None:
    """Runs each benchmark's `main`; raises `SystemExit` for a name there is none of."""
    known = sorted(path.stem for path in Path(__file__).parent.glob("*.py"))
    known = [name for name in known if name not in NOT_BENCHMARKS]
    if unknown := sorted(set(names) - set(known)):
        raise SystemExit(f"{unknown[0]!r} is no benchmark; they are {', '.join(known)}.")
    for name in names or known:
        importlib.import_module(f"tests.benchmarks.{name}").main()


if __name__ == "__main__":
    main(sys.argv[1:])
