"""Works on the orders that publisher.py publishes, in a group that several workers can share.

A message comes with a lease: until it ends, nobody else in the group gets the message. What is done is acked; what
failed is given back, to come again after a delay; what nobody can ever do is rejected, and goes to the queue's
dead-letter queue, if it has one; and before something that takes long, the leases of all that is held are extended.
A settlement may fail for some of its messages, when their leases are lost: they come again, here or at
another worker. So what was done is remembered, and not done twice.

Ends after --count orders, or when none came for a while.
"""

import sys
import time
from collections import deque
from collections.abc import Iterable

from skein_client import Client, argument_parser, broker, message, run

TASKS = (b"pack", b"label", b"engrave")
HELD_MAX = 10
RECEIVE_SECONDS_MAX = 60  # Nodes answer then in any case.
ENGRAVING_SECONDS = 3.0
ENGRAVING_LEASE_MS = 6_000
PACKING_SECONDS = 0.01
RETRY_DELAY_MS = 500


class WorkFailed(Exception):
    """An order cannot be worked on now."""


class WorkImpossible(Exception):
    """An order cannot be worked on, however often it comes."""


def work(task: bytes, attempt: int) -> None:
    """Works on an order. The label printer jams at the first attempt."""
    if task not in TASKS:
        raise WorkImpossible(f"nobody here can {task.decode(errors='replace')}")
    if task == b"label" and attempt == 1:
        raise WorkFailed("the label printer jams")
    time.sleep(ENGRAVING_SECONDS if task == b"engrave" else PACKING_SECONDS)


def task_of(order: message.Message) -> bytes:
    """What is to be done. Orders of which nobody said it are packed."""
    return order.headers.get("task", b"pack")


def name_of(order: message.Message) -> str:
    """What to call it when talking about it."""
    return order.body.decode(errors="replace")


class Worker:
    """One consumer of a group."""

    def __init__(self, client: Client, queue: str, group: str) -> None:
        self._client = client
        self._queue = queue
        self._group = group
        self.done: set[int] = set()  # Offsets. A real worker would ask its database.

    def receive(self, most: int, wait_seconds: float) -> list[broker.ReceivedMessage]:
        """Takes what is there, or waits for the first message. Nothing came in time when the list is empty."""
        request = broker.ReceiveRequest(
            queue=self._queue, group=self._group, messages_max=most, wait_ms=int(wait_seconds * 1000)
        )
        # The node answers when the wait is over: the call itself needs more time than that.
        answer = self._client.call(lambda node: node.broker.Receive, request, seconds=wait_seconds + 5)
        return list(answer.messages)

    def work_off(self, held: Iterable[broker.ReceivedMessage]) -> None:
        """Works on messages one after the other, and settles them together."""
        waiting = deque(held)
        lost: set[str] = set()
        settlement = self._new_settlement()
        while waiting:
            received = waiting.popleft()
            if task_of(received.message) == b"engrave" and received.offset not in self.done:
                print(f"  {name_of(received.message)} is engraved, which takes {ENGRAVING_SECONDS:g} s")
                # Leases of what waits behind it run as well; and what is done already need not wait.
                extend(settlement, [received, *waiting])
                lost |= self._settle(settlement)
                settlement = self._new_settlement()
            if received.lease_token in lost:
                continue
            self._work_on(received, settlement)
        self._settle(settlement)

    def _work_on(self, received: broker.ReceivedMessage, settlement: broker.SettleRequest) -> None:
        token, name = received.lease_token, name_of(received.message)
        if received.offset in self.done:
            print(f"  {name} came again, but is done")
            settlement.acks.append(token)
            return
        try:
            work(task_of(received.message), received.attempt)
        except WorkFailed as failure:
            print(f"  {name}: {failure}; again in {RETRY_DELAY_MS} ms")
            settlement.nacks.add(lease_token=token, delay_ms=RETRY_DELAY_MS)
            return
        except WorkImpossible as failure:
            print(f"  {name}: {failure}; rejected")
            settlement.nacks.add(lease_token=token, reject=True)
            return
        if received.attempt > 1:
            print(f"  {name} is done, at attempt {received.attempt}")
        self.done.add(received.offset)
        settlement.acks.append(token)

    def _new_settlement(self) -> broker.SettleRequest:
        return broker.SettleRequest(queue=self._queue, group=self._group)

    def _settle(self, settlement: broker.SettleRequest) -> set[str]:
        """Settles, and gives the tokens whose leases are lost: their messages come again, here or at another worker.

        A lease also counts as lost when it was settled before, by an attempt of `call` that got no answer."""
        answer = self._client.call(lambda node: node.broker.Settle, settlement)
        for failure in answer.failures:
            if failure.reason != message.LEASE_LOST:
                raise RuntimeError(f"{message.Reason.Name(failure.reason)}: {failure.message}")
        if answer.failures:
            print(f"  {len(answer.failures)} leases were lost: {answer.failures[0].message}")
        return {failure.lease_token for failure in answer.failures}


def extend(settlement: broker.SettleRequest, held: Iterable[broker.ReceivedMessage]) -> None:
    """Lets the leases of what is held end later."""
    for received in held:
        settlement.extends.add(lease_token=received.lease_token, lease_ms=ENGRAVING_LEASE_MS)


def main() -> int:
    parser = argument_parser(__doc__)
    parser.add_argument("--queue", default="workshop", help="where to take orders from (default: workshop)")
    parser.add_argument("--group", default="workers", help="the group to be one of (default: workers)")
    parser.add_argument("--count", type=int, help="end after so many orders (default: work on what there is)")
    parser.add_argument("--idle-seconds", type=float, default=3, help="end when none comes for so long (default: 3)")
    args = parser.parse_args()
    if not 0 <= args.idle_seconds <= RECEIVE_SECONDS_MAX:
        parser.error(f"a node waits for a message for {RECEIVE_SECONDS_MAX} s at most")

    worker = Worker(Client(args.servers), args.queue, args.group)
    while args.count is None or len(worker.done) < args.count:
        most = HELD_MAX if args.count is None else min(HELD_MAX, args.count - len(worker.done))
        held = worker.receive(most, args.idle_seconds)
        if not held:
            print(f"nothing came for {args.idle_seconds:g} s")
            break
        worker.work_off(held)
        print(f"{len(worker.done)} orders done")

    if args.count is not None and len(worker.done) < args.count:
        print(f"only {len(worker.done)} of {args.count} orders came", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    run(main)
