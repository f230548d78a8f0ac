"""Asks questions through one queue and gets the answers through another.

Who asks creates a private queue for replies and names it in `reply_to`; `correlation_id` says which answer belongs to
which question. Nobody has to delete the private queue: with `expires_ms` it goes when nobody has used it for a while.

Server and client are two threads here; they would be two programs elsewhere.
"""

import random
import sys
import time
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import Any

from skein_client import CallFailed, Client, argument_parser, broker, message, queues, run

QUESTIONS = "questions"
GROUP = "servers"
EXPIRES_MS = 30_000

# An answer that comes later than this helps nobody.
PATIENCE_SECONDS = 10
# How often the server looks whether it shall stop.
WAIT_MS = 500


def create_queue(client: Client, name: str) -> None:
    """Creates a queue that goes by itself, or finds it."""
    settings = queues.QueueSettings(expires_ms=EXPIRES_MS)
    client.call(lambda node: node.queues.CreateQueue, queues.CreateQueueRequest(name=name, settings=settings))


def send(client: Client, queue: str, body: str, **properties: Any) -> None:
    """Sends one message. It may be stored twice when an answer is lost; both sides can live with that."""
    batch = message.MessageBatch(messages=[message.Message(body=body.encode(), **properties)])
    client.call(lambda node: node.broker.Send, broker.SendRequest(queue=queue, batch=batch))


def receive(client: Client, queue: str, group: str) -> Sequence[broker.ReceivedMessage]:
    """Takes what is there, or what comes within a moment."""
    request = broker.ReceiveRequest(queue=queue, group=group, messages_max=10, wait_ms=WAIT_MS)
    return client.call(lambda node: node.broker.Receive, request).messages


def ack(client: Client, queue: str, group: str, received: Sequence[broker.ReceivedMessage]) -> None:
    """Acks messages. Those for which that fails come again: a question is answered twice, an answer is not awaited."""
    acks = [each.lease_token for each in received]
    client.call(lambda node: node.broker.Settle, broker.SettleRequest(queue=queue, group=group, acks=acks))


def serve(servers: Sequence[str], stop: Event) -> int:
    """Answers questions until told to stop, and gives how many."""
    client = Client(servers)
    answered = 0
    while not stop.is_set():
        received = receive(client, QUESTIONS, GROUP)
        for question in received:
            answer(client, question.message)
        if received:
            ack(client, QUESTIONS, GROUP, received)
        answered += len(received)
    return answered


def answer(client: Client, question: message.Message) -> None:
    """Sends the answer to where the question says."""
    left, _, right = question.body.decode().split()
    try:
        send(client, question.reply_to, str(int(left) * int(right)), correlation_id=question.correlation_id)
    except CallFailed as failure:
        if failure.reason != "QUEUE_NOT_FOUND":
            raise
        print("whoever asked is gone, and the queue for the answer too")


class Asker:
    """Asks, and waits for answers in a queue of its own."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self.replies = f"replies-{uuid.uuid4().hex}"
        create_queue(client, self.replies)

    def ask(self, question: str) -> str:
        """Sends a question, and gives the correlation id that its answer will have."""
        correlation_id = uuid.uuid4().hex
        send(
            self._client,
            QUESTIONS,
            question,
            reply_to=self.replies,
            correlation_id=correlation_id,
            ttl_ms=PATIENCE_SECONDS * 1000,
        )
        return correlation_id

    def answers(self, awaited: set[str]) -> dict[str, str]:
        """Waits for the answers to these questions. Some may be missing when it took too long."""
        answers: dict[str, str] = {}
        deadline = time.monotonic() + PATIENCE_SECONDS
        while awaited - answers.keys() and time.monotonic() < deadline:
            received = receive(self._client, self.replies, "asker")
            answers.update({each.message.correlation_id: each.message.body.decode() for each in received})
            if received:
                ack(self._client, self.replies, "asker", received)
        return answers


def ask(servers: Sequence[str], count: int) -> bool:
    """Asks so many questions at once, shows the answers, and says whether all came and are right."""
    asker = Asker(Client(servers))
    print(f"answers come through {asker.replies}")
    factors = [(random.randint(2, 99), random.randint(2, 99)) for _ in range(count)]
    questions = {asker.ask(f"{left} times {right}"): (left, right) for left, right in factors}
    answers = asker.answers(set(questions))
    for correlation_id, (left, right) in questions.items():
        print(f"  {left} times {right} is {answers.get(correlation_id, '... no answer came')}")
    return all(answers.get(asked) == str(left * right) for asked, (left, right) in questions.items())


def main() -> int:
    parser = argument_parser(__doc__)
    parser.add_argument("--count", type=int, default=5, help="how many questions (default: 5)")
    args = parser.parse_args()

    create_queue(Client(args.servers), QUESTIONS)
    stop = Event()
    with ThreadPoolExecutor() as threads:
        server = threads.submit(serve, args.servers, stop)
        try:
            is_well = ask(args.servers, args.count)
        finally:
            stop.set()
        print(f"the server answered {server.result()} questions")
    if not is_well:
        print("an answer is wrong or missing", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    run(main)
