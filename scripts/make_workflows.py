"""Write workflows/*.json (canvas), workflows/api/*.json (API twins), their thumbnails and subgraphs/*.json.

    python scripts/make_workflows.py                          write everything
    python scripts/make_workflows.py --signatures URL         first take the node signatures from a running ComfyUI

Both forms of a workflow come from one description here, so they cannot drift apart. The order of a node's inputs and
widgets comes from scripts/node_signatures.json, an excerpt of ComfyUI's /object_info for the node types used.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from graphs.blueprint import BLUEPRINTS, blueprint
from graphs.shipped import WORKFLOWS
from graphs.signatures import NODE_TYPES, SIGNATURES, fetch_signatures
from graphs.thumbnail import PICTURES, thumbnail

ROOT = Path(__file__).resolve().parent.parent


def write(root: Path) -> list[Path]:
    """Write all files under `root`; returns their paths."""
    signatures = json.loads(SIGNATURES.read_text(encoding="utf-8"))
    written = []

    def dump(path: Path, value: Any) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        written.append(path)

    for build in WORKFLOWS:
        graph = build(signatures)
        dump(root / "workflows" / f"{graph.stem}.json", graph.ui())
        dump(root / "workflows" / "api" / f"{graph.stem}.json", graph.api())
        picture = root / "workflows" / f"{graph.stem}.jpg"
        thumbnail(picture, *PICTURES[graph.stem])
        written.append(picture)
    for build, name, description in BLUEPRINTS:
        dump(root / "subgraphs" / f"{name}.json", blueprint(build(signatures), name, description))
    return written


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--signatures", metavar="URL", help="take the node signatures from this ComfyUI first")
    args = parser.parse_args()
    if args.signatures:
        excerpt = fetch_signatures(args.signatures, NODE_TYPES)
        SIGNATURES.write_text(json.dumps(excerpt, indent=1) + "\n", encoding="utf-8")
    write(ROOT)


if __name__ == "__main__":
    main()
