"""What all examples need: a connection to one of several nodes, and calls that are tried again where that can help.

    client = Client(["127.0.0.1:7101", "127.0.0.1:7102"])
    answer = client.call(lambda node: node.broker.Send, broker.SendRequest(...))

This module cannot be called `skein`: that is the package of the generated stubs, after the package of the schema.
"""

import argparse
import itertools
import os
import random
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import grpc

# Where generate.py puts the stubs. Others that PYTHONPATH names come first.
sys.path.append(str(Path(__file__).resolve().parent / "generated"))
try:
    from skein.broker.v1 import broker_pb2 as broker
    from skein.broker.v1 import broker_pb2_grpc, queues_pb2_grpc
    from skein.broker.v1 import message_pb2 as message
    from skein.broker.v1 import queues_pb2 as queues
except ModuleNotFoundError as missing:
    sys.exit(f"{missing}: run `python generate.py` first")

__all__ = ["CallFailed", "Client", "argument_parser", "broker", "message", "queues", "run"]

# The largest message that nodes send: a batch of 4 MiB and what is around it. gRPC alone would receive 4 MiB at most.
GRPC_MESSAGE_BYTES_MAX = 8 << 20

CHANNEL_OPTIONS = [
    ("grpc.max_send_message_length", GRPC_MESSAGE_BYTES_MAX),
    ("grpc.max_receive_message_length", GRPC_MESSAGE_BYTES_MAX),
    # A node that is gone without a word (its machine lost power, say) is noticed within these two together.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.max_pings_without_data", 0),
]

# After these the same call may succeed a moment later, at this node or another one.
RETRYABLE_REASONS = {"NO_LEADER", "NOT_LEADER", "SHUTTING_DOWN", "OUTCOME_UNKNOWN", "OVER_BUDGET", "DISK_FULL", "BUSY"}
# The same where no node gave a reason: the connection broke, or the time was over.
RETRYABLE_CODES = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED}

# The pauses between them are some 15 s together: many times as long as it takes until there is a new leader.
ATTEMPTS_MAX = 20
PAUSE_SECONDS, PAUSE_SECONDS_MAX = 0.05, 1.0
CALL_SECONDS = 5.0


class CallFailed(Exception):
    """Why a call failed: a gRPC code, the reason for programs ("" when no node gave one), a sentence for people."""

    def __init__(self, error: Any, outcome_was_unknown: bool) -> None:
        self.code: grpc.StatusCode = error.code()
        self.reason = str(dict(error.trailing_metadata() or ()).get("skein-reason", ""))
        # The same call may succeed a moment later.
        self.is_retryable = self.reason in RETRYABLE_REASONS or (not self.reason and self.code in RETRYABLE_CODES)
        # This attempt, or one before it, may have taken effect.
        self.outcome_is_unknown = outcome_was_unknown or self.reason in ("", "OUTCOME_UNKNOWN")
        super().__init__(f"{error.details()} ({self.reason or self.code.name})")


class Node:
    """The generated stubs, on a connection to one node."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.channel = grpc.insecure_channel(address, options=CHANNEL_OPTIONS)
        self.broker = broker_pb2_grpc.BrokerStub(self.channel)
        self.queues = queues_pb2_grpc.QueuesStub(self.channel)


class Client:
    """Talks to one of several nodes, and to the next one when that is gone. Any will do. For one thread at a time."""

    def __init__(self, servers: Sequence[str]) -> None:
        self._addresses = itertools.cycle(servers)
        self._node = Node(next(self._addresses))

    def call(self, method: Callable[[Node], Any], request: Any, seconds: float = CALL_SECONDS) -> Any:
        """Calls a method of a stub, and again with the same request while it fails for a reason that passes.

        So it may take effect more than once, unless the request forbids that as a batch with a sequence does."""
        outcome_is_unknown = False
        for attempt in itertools.count(1):
            try:
                return method(self._node)(request, timeout=seconds)
            except grpc.RpcError as error:
                failure = CallFailed(error, outcome_is_unknown)
            if attempt == ATTEMPTS_MAX or not failure.is_retryable:
                raise failure
            outcome_is_unknown = failure.outcome_is_unknown
            self._turn_to_next_node(failure)
            time.sleep(min(PAUSE_SECONDS * 2**attempt, PAUSE_SECONDS_MAX) * random.uniform(0.5, 1.0))

    def _turn_to_next_node(self, failure: CallFailed) -> None:
        gone = self._node
        gone.channel.close()
        self._node = Node(next(self._addresses))
        print(f"  [{gone.address}: {failure}; trying {self._node.address}]")


def argument_parser(description: str | None) -> argparse.ArgumentParser:
    """A parser that knows --servers."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    servers = os.environ.get("SKEIN_SERVERS", "127.0.0.1:7101")
    text = "nodes as host:port,host:port,...; one that answers is enough (default: $SKEIN_SERVERS, or 127.0.0.1:7101)"
    parser.add_argument("--servers", default=servers, type=lambda given: given.split(","), help=text)
    return parser


def run(example: Callable[[], int]) -> None:
    """Runs an example and ends the program with its exit code; with 1 and a sentence when a call failed for good."""
    try:
        sys.exit(example())
    except CallFailed as failure:
        sys.exit(f"failed: {failure}")
