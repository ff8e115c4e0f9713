"""Write .dvc/plots/page.html, in which `dvc plots show` draws without a network: python tools/plots_page.py

DVC's own page loads its drawing libraries from a server each time it is opened. This one holds them, at the versions that
DVC names, with their licence; run it again after an update of DVC. It needs npm and a network.
"""

from __future__ import annotations

import re
import subprocess
import tarfile
import tempfile
from pathlib import Path

from dvc_render.vega import VegaRenderer

PAGE = Path(__file__).resolve().parents[1] / ".dvc/plots/page.html"
BUILDS = {
    "vega": "build/vega.min.js",
    "vega-lite": "build/vega-lite.min.js",
    "vega-embed": "build/vega-embed.min.js",
}
TOP = """<!DOCTYPE html>
<html lang="en">
<head>
  {refresh_tag}
  <meta charset="utf-8">
  <meta name="viewport" content="width=device-width">
  <title>paribus: plots</title>
  <style>
    body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem; display: flex; flex-wrap: wrap; gap: 2rem; }
    body > div { overflow-x: auto; }
    body > div:not(:has(svg, canvas)) { display: none; }
  </style>
"""
BOTTOM = """</head>
<body>
{plot_divs}
</body>
</html>
"""


def wanted() -> dict[str, str]:
    """Library -> the version that DVC's page names."""
    return dict(re.findall(r"npm/([\w-]+)@([\d.]+)", VegaRenderer.SCRIPTS))


def packed(name: str, version: str, folder: Path) -> tuple[str, str]:
    """(the built script of a library, its licence), from npm."""
    command = ["npm", "pack", "--silent", f"{name}@{version}"]
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    with tarfile.open(folder / f"{name}-{version}.tgz") as archive:
        script = archive.extractfile(f"package/{BUILDS[name]}")
        licence = archive.extractfile("package/LICENSE")
        assert script is not None
        assert licence is not None
        return script.read().decode(), licence.read().decode()


def main() -> None:
    parts = [TOP]
    with tempfile.TemporaryDirectory() as folder:
        for name, version in wanted().items():
            script, licence = packed(name, version, Path(folder))
            lines = [line for line in script.splitlines() if "sourceMappingURL" not in line]
            text = "\n".join(lines).replace("</script", "<\\/script")
            parts += [f"<!-- {name} {version}\n{licence.strip()}\n-->\n<script>{text}</script>\n"]
    PAGE.parent.mkdir(parents=True, exist_ok=True)
    PAGE.write_text("".join([*parts, BOTTOM]), encoding="utf-8")


if __name__ == "__main__":
    main()
