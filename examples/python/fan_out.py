"""Several groups of one queue each get every message, and one with a filter only those that it wants.

What a topic exchange does elsewhere: nothing is copied, each group reads the same log and has acks of its own. The
filter is applied by the nodes; what it does not want counts as acked.

The queue is made for this example, and deleted by the nodes when nobody has used it for a minute.
"""

import secrets
import sys
import uuid

from skein_client import Client, argument_parser, broker, message, queues, run

EXPIRES_MS = 60_000
WAIT_MS = 5_000

KEYS = [f"orders.{where}.{what}" for where in ("eu", "us", "asia") for what in ("created", "paid", "shipped")]

# Each group, its filter (none: every message), and the keys that it should get.
GROUPS = {
    "audit": (None, KEYS),
    "mail": (None, KEYS),
    "billing": (queues.Filter(key_matches="orders.*.created"), [key for key in KEYS if key.endswith(".created")]),
}


def create(client: Client, queue: str) -> None:
    """Creates the queue and its groups, which get what is published from now on."""
    settings = queues.QueueSettings(expires_ms=EXPIRES_MS)
    client.call(lambda node: node.queues.CreateQueue, queues.CreateQueueRequest(name=queue, settings=settings))
    for group, (wanted, _) in GROUPS.items():
        request = queues.CreateGroupRequest(queue=queue, group=group, filter=wanted)
        client.call(lambda node: node.queues.CreateGroup, request)


def publish(client: Client, queue: str) -> None:
    """Publishes a message for each key."""
    messages = [message.Message(key=key.encode(), body=b"something happened") for key in KEYS]
    request = broker.SendRequest(
        queue=queue,
        # Stored once, also when `call` sends it again; see publisher.py.
        producer_id=1 + secrets.randbelow(2**64 - 1),
        sequence=1,
        batch=message.MessageBatch(messages=messages),
    )
    client.call(lambda node: node.broker.Send, request)


def consume(client: Client, queue: str, group: str, expected: int) -> list[str]:
    """Receives and acks everything for a group, and gives the keys in the order of the queue."""
    keys: dict[int, str] = {}
    while True:
        # Waits for what is still to come; then looks whether there is more than that.
        wait_ms = WAIT_MS if len(keys) < expected else 0
        request = broker.ReceiveRequest(queue=queue, group=group, messages_max=100, wait_ms=wait_ms)
        received = client.call(lambda node: node.broker.Receive, request, seconds=wait_ms / 1000 + 5).messages
        if not received:
            return [keys[offset] for offset in sorted(keys)]
        keys.update({each.offset: each.message.key.decode() for each in received})
        acks = [each.lease_token for each in received]
        # What cannot be acked comes again, and has the same offset.
        client.call(lambda node: node.broker.Settle, broker.SettleRequest(queue=queue, group=group, acks=acks))


def show(received: dict[str, list[str]]) -> None:
    """A line for each message, a column for each group."""
    print(f"{'':24}" + "".join(f"{group:>10}" for group in received))
    for key in KEYS:
        print(f"{key:24}" + "".join(f"{'x' if key in keys else '-':>10}" for keys in received.values()))


def main() -> int:
    args = argument_parser(__doc__).parse_args()
    client = Client(args.servers)
    queue = f"fan-out-{uuid.uuid4().hex[:8]}"
    create(client, queue)
    publish(client, queue)
    print(f"{len(KEYS)} messages are in {queue}; who gets them:\n")
    received = {group: consume(client, queue, group, len(expected)) for group, (_, expected) in GROUPS.items()}
    show(received)

    wrong = [group for group, (_, expected) in GROUPS.items() if received[group] != expected]
    if wrong:
        print(f"not what was expected: {', '.join(wrong)}", file=sys.stderr)
        return 1
    print("\nas it should be")
    return 0


if __name__ == "__main__":
    run(main)
