"""Publishes orders in batches, so that each is stored once however often it has to be sent.

When an answer does not come, nobody knows whether the batch was stored. A producer that draws a random producer_id and
numbers its batches 1, 2, 3, ... need not know: it sends the same batch with the same sequence again, and a node that
has it already says so and gives the offsets of the first time. `Client.call` does that by itself; here the last batch
is sent twice on purpose, to see it.

worker.py works on what is published here.
"""

import secrets
import sys
from collections.abc import Iterable, Iterator

from skein_client import CallFailed, Client, argument_parser, broker, message, queues, run

# How long a worker may hold a message before it goes to another one. Short, so that nobody waits long for what a worker
# held that died; one whose work takes longer extends the lease.
LEASE_MS = 2_000


class Producer:
    """Numbers batches. Lives as long as the program: one that starts again draws another producer_id."""

    def __init__(self, client: Client, queue: str) -> None:
        self._client = client
        self._queue = queue
        self._producer_id = 1 + secrets.randbelow(2**64 - 1)  # 0 would say: store whatever comes.
        self._sequence = 0

    def batch(self, messages: Iterable[message.Message]) -> broker.SendRequest:
        """The next batch. It is to be confirmed before the one after it is sent."""
        self._sequence += 1
        return broker.SendRequest(
            queue=self._queue,
            producer_id=self._producer_id,
            sequence=self._sequence,
            batch=message.MessageBatch(messages=messages),
        )

    def send(self, batch: broker.SendRequest) -> broker.Confirm:
        """Sends a batch until it is confirmed: on disk on a majority of the nodes."""
        try:
            return self._client.call(lambda node: node.broker.Send, batch).confirm
        except CallFailed as failure:
            stored = "may be stored or not" if failure.outcome_is_unknown else "is not stored"
            print(f"batch {batch.sequence} {stored}", file=sys.stderr)
            raise


def create_queue(client: Client, name: str) -> None:
    """Creates the queue, or finds it as it is. One with other settings is an error (QUEUE_EXISTS)."""
    settings = queues.QueueSettings(lease_ms=LEASE_MS)
    request = queues.CreateQueueRequest(name=name, settings=settings)
    answer = client.call(lambda node: node.queues.CreateQueue, request)
    what = "created" if answer.created else "was there already"
    print(f"queue {name} {what}: shard {answer.queue.shard_id}, led by node {answer.queue.leader_node_id}")


def order(number: int) -> message.Message:
    """An order. Most are to be packed; some need a label, a few an engraving."""
    task = "engrave" if number % 50 == 25 else "label" if number % 10 == 7 else "pack"
    return message.Message(
        message_id=f"order-{number}",
        headers={"task": task.encode()},
        body=f"order {number}".encode(),
    )


def batches(count: int, batch_size: int) -> Iterator[list[message.Message]]:
    """So many orders, cut into batches."""
    for first in range(1, count + 1, batch_size):
        last = min(first + batch_size - 1, count)
        yield [order(number) for number in range(first, last + 1)]


def main() -> int:
    parser = argument_parser(__doc__)
    parser.add_argument("--queue", default="workshop", help="where to publish (default: workshop)")
    parser.add_argument("--count", type=int, default=50, help="how many orders (default: 50)")
    parser.add_argument("--batch-size", type=int, default=10, help="how many of them in a batch (default: 10)")
    args = parser.parse_args()
    if args.count < 1 or args.batch_size < 1:
        parser.error("publish at least one order, in batches of at least one")

    client = Client(args.servers)
    create_queue(client, args.queue)
    producer = Producer(client, args.queue)
    for orders in batches(args.count, args.batch_size):
        batch = producer.batch(orders)
        confirm = producer.send(batch)
        print(f"batch {confirm.sequence}: {confirm.count} orders at {offsets(confirm)}")

    again = producer.send(batch)
    print(f"batch {again.sequence} again: {'known already' if again.duplicate else 'NEW'}, at {offsets(again)}")
    if not again.duplicate or again.first_offset != confirm.first_offset:
        print("a batch was stored twice", file=sys.stderr)
        return 1
    print(f"{args.count} orders are stored, each once")
    return 0


def offsets(confirm: broker.Confirm) -> str:
    """The offsets that the messages of a batch have got."""
    return f"offsets {confirm.first_offset} to {confirm.first_offset + confirm.count - 1}"


if __name__ == "__main__":
    run(main)
