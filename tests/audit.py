"""``make audit``: what pip-audit says of the locked dependencies, or plainly that nothing could be asked."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

LOCK = Path(__file__).parents[1] / "requirements" / "lock.txt"


def verdict(report: str, error: str) -> tuple[int, str]:
    """Exit code and sentence: 0 nothing is known, 1 something is, 3 nothing was checked."""
    try:
        packages = json.loads(report)["dependencies"]
    except (ValueError, KeyError, TypeError):
        *_, last = error.strip().splitlines() or ["pip-audit said nothing"]
        return 3, f"nothing was checked: the database of vulnerabilities cannot be reached from here ({last})"
    found = [
        f"{package['name']} {package['version']}: {vulnerability['id']}, fixed in "
        f"{', '.join(vulnerability['fix_versions']) or 'no version yet'}"
        for package in packages
        for vulnerability in package.get("vulns", ())
    ]
    return (1, "\n".join(found)) if found else (0, f"no known vulnerabilities in {len(packages)} packages")


def main() -> int:
    command = [sys.executable, "-m", "pip_audit", "-f", "json", "--progress-spinner", "off", "--disable-pip"]
    done = subprocess.run([*command, "--require-hashes", "-r", str(LOCK)], capture_output=True, text=True)
    code, sentence = verdict(done.stdout, done.stderr)
    print(sentence)
    return code


if __name__ == "__main__":
    sys.exit(main())
