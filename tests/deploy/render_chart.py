"""Renders the Helm chart into tests/deploy/rendered for the tests, which need no Helm. After a change of it:

    python -m tests.deploy.render_chart [HELM]

Helm is in no Debian; `go install helm.sh/helm/v3/cmd/helm@v3.16.4` builds it.
"""

import hashlib
import re
import subprocess
import sys
from pathlib import Path

from tests.deploy.files import CONFIG

CHART = CONFIG / "helm/objstore"
RENDERED = Path(__file__).parent / "rendered"
KUBERNETES = "1.31.0"


def cases() -> list[str]:
    """Names of the sets of values that are rendered."""
    return sorted(file.name.removesuffix("-values.yaml") for file in (CHART / "ci").iterdir())


def digest() -> str:
    """Of everything that a rendering depends on, but for alerts and dashboards, which the chart links to."""
    whole = hashlib.sha256()
    for file in sorted(CHART.rglob("*")):
        if file.is_file() and not file.is_symlink():
            whole.update(str(file.relative_to(CHART)).encode() + b"\0" + file.read_bytes() + b"\0")
    return whole.hexdigest()


def main() -> None:
    helm = sys.argv[1] if len(sys.argv) > 1 else "helm"
    version = subprocess.run([helm, "version", "--short"], capture_output=True, text=True, check=True).stdout
    RENDERED.mkdir(exist_ok=True)
    for case in cases():
        values = CHART / "ci" / f"{case}-values.yaml"
        subprocess.run([helm, "lint", "--strict", "--quiet", "-f", values, CHART], check=True)
        done = subprocess.run(
            [helm, "template", "shop", CHART, "-n", "store", "--kube-version", KUBERNETES, "-f", values],
            capture_output=True,
            text=True,
            check=True,
        )
        version = version.split("+")[0].strip()
        head = f"# Made by tests/deploy/render_chart.py with helm {version}. Not to be edited.\n"
        text = re.sub(r"[ \t]+$", "", done.stdout, flags=re.M)
        (RENDERED / f"{case}.yaml").write_text(f"{head}# Chart: {digest()}\n{text}")


if __name__ == "__main__":
    main()
