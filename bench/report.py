"""The figures as a file: each part with when, on what and from which state of the code it was measured."""

import json
import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[1] / "docs" / "benchmarks"
LATEST = "latest.json"


def store(folder: Path, parts: dict[str, Any]) -> dict[str, Any]:
    """Puts these parts in the place of their former figures; parts that were not measured now stay as they are."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / LATEST
    report: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    for name, figures in parts.items():
        report[name] = {"measured": _circumstances(), **_rounded(figures)}
    file.write_text(json.dumps(report, indent=2) + "\n")
    return report


def _circumstances() -> dict[str, Any]:
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "cores": os.cpu_count(),
        "load_average": round(os.getloadavg()[2], 1),
        "python": platform.python_version(),
        "commit": _commit(),
    }


def _commit() -> str:
    answer = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=FOLDER.parents[1], capture_output=True, text=True, check=False
    )
    return answer.stdout.strip() or "unknown"


def _rounded(figures: Any) -> Any:
    match figures:
        case dict():
            return {name: _rounded(value) for name, value in figures.items()}
        case list():
            return [_rounded(value) for value in figures]
        case float():
            return round(figures, 3)
        case _:
            return figures
