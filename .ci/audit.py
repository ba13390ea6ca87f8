"""Known vulnerabilities of the dependencies, as pip-audit finds them. Exit status 1 where a fix is out.

The advisories come from outside. Where they cannot be had, this says so and fails nothing.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

_AUDIT = (
    *("uvx", "--quiet", "pip-audit>=2.7,<3", "--no-deps", "--disable-pip", "--format", "json"),
    *("--progress-spinner", "off", "--timeout", "10"),
)
_TIMEOUT_S = 180


def main() -> int:
    """Audit one dependency, to see whether that can be done, and then all of them."""
    pinned = subprocess.run(
        ("uv", "export", "--quiet", "--no-hashes", "--no-annotate", "--no-header", "--no-emit-project"),
        capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    for lines in (pinned[:1], pinned):
        audited = [each for each in _audit(lines) if "vulns" in each]
        if not audited:
            print("Dependencies are not audited: the advisories cannot be had from here")
            return 0
    found = [(each, one) for each in audited for one in each["vulns"]]
    for each, one in found:
        fixed = ", ".join(one["fix_versions"]) or "nothing yet"
        print(f"{each['name']} {each['version']}: {one['id']}, fixed in {fixed}")
    print(f"{len(audited)} of {len(pinned)} dependencies audited: {len(found)} known vulnerabilities")
    return 1 if any(one["fix_versions"] for _, one in found) else 0


def _audit(lines: list[str]) -> list[dict[str, Any]]:
    """What pip-audit says of each requirement; nothing where it could not ask."""
    with tempfile.TemporaryDirectory() as directory:
        requirements = Path(directory) / "requirements.txt"
        requirements.write_text("\n".join(lines) + "\n")
        try:
            done = subprocess.run(
                (*_AUDIT, "--requirement", str(requirements)),
                capture_output=True, text=True, check=False, timeout=_TIMEOUT_S,
            )  # fmt: skip
            dependencies: list[dict[str, Any]] = json.loads(done.stdout)["dependencies"]
        except (subprocess.TimeoutExpired, OSError, ValueError, KeyError):
            return []
    return dependencies


if __name__ == "__main__":
    sys.exit(main())
