"""Runs of the deployed files: a config that they can use, and the wait until the copy is live."""

from __future__ import annotations

import json
import subprocess

import yaml

from tests.cli.command_line import World, endpoint


def dynamodb_config(world: World, *sections: str) -> str:
    """A config that copies the table ``orders``, with one item, to ``copy``, and needs no other server."""
    world.db.create_table("orders")
    world.db.put("orders", {"id": "1"})
    access = {"region": "us-east-1", "endpoint_url": endpoint(world)}
    config = {
        "pipeline": "orders",
        "source": {"table": "orders", "poll_interval": "50ms", **access},
        "target": {"type": "dynamodb", "table": "copy", "create": True, **access},
    }
    return "\n".join([yaml.safe_dump(config), *sections, ""])


def await_live(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if json.loads(line).get("phase") == "live":
            return
    raise AssertionError(f"the run ended with {process.wait()} before it was live")
