"""Run the benchmarks that end within half an hour: ``make bench``. Arguments choose some."""

import subprocess
import sys
from pathlib import Path

BENCHMARKS = ("train_throughput", "checkpoint_cost", "exact_cost", "winograd", "ingest_png")


def main(chosen: list[str]) -> int:
    unknown = set(chosen) - set(BENCHMARKS)
    if unknown:
        print(f"no benchmark {', '.join(sorted(unknown))}; there are: {', '.join(BENCHMARKS)}")
        return 2
    folder = Path(__file__).parent
    for name in chosen or BENCHMARKS:
        subprocess.run([sys.executable, str(folder / f"{name}.py")], check=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
