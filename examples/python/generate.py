"""Generates the Python stubs from the schema, into `generated/` beside this file unless --out says otherwise."""

import argparse
import sys
from pathlib import Path

from grpc_tools import protoc

HERE = Path(__file__).resolve().parent
SCHEMA = HERE.parent.parent / "proto" / "schema"


def generate(out: Path) -> int:
    """Runs the compiler that grpcio-tools brings along, and gives its exit code."""
    out.mkdir(parents=True, exist_ok=True)
    files = sorted(SCHEMA.glob("skein/broker/v1/*.proto"))
    outputs = [f"--{kind}_out={out}" for kind in ("python", "pyi", "grpc_python")]
    return protoc.main(["protoc", f"--proto_path={SCHEMA}", *outputs, *map(str, files)])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=HERE / "generated", help="where the stubs go")
    sys.exit(generate(parser.parse_args().out))
