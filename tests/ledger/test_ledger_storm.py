"""The process that holds the ledger killed under load, frozen and thawed: what clients were told is in the log, once.

Most tests kill a process that is forked in milliseconds (`ledger_server`); the slow ones kill the Ray actor's.
"""

import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter

import ledger_server
import psutil
import pytest
from packed_values import number_id, record

from openledger.core.errors import Unavailable
from openledger.core.signing import SigningKey
from openledger.ledger import Account, Ledger
from openledger.ledger.packed import id_key, pack
from openledger.ledger.transfers import CREATED, EXISTS, RESULTS

NAME = ledger_server.NAME
NUM_CLIENTS = 8
NAMES = [f"user:{number}" for number in range(NUM_CLIENTS)]


class Server:
    """A running `ledger_server`."""

    def __init__(self, storage, key, *options):
        self.folder = tempfile.TemporaryDirectory(prefix="ol")
        self.address = f"{self.folder.name}/s"
        command = [sys.executable, ledger_server.__file__, self.address, str(storage), str(key), *options]
        self.parent = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.children = [int(self.parent.stdout.readline())]
        threading.Thread(target=self.listen, daemon=True).start()

    def listen(self):
        for line in self.parent.stdout:
            self.children.append(int(line))

    def kill(self):
        """SIGKILL, once the child that serves now has been named."""
        before = len(self.children)
        os.kill(self.children[-1], signal.SIGKILL)
        while len(self.children) == before:
            time.sleep(0.001)

    def stop(self):
        self.parent.kill()
        self.parent.wait()
        os.kill(self.children[-1], signal.SIGKILL)
        self.parent.stdout.close()
        self.folder.cleanup()

    def connect(self):
        return Connection(self.address)


class Connection:
    """Sends packed batches; None where nobody answered."""

    def __init__(self, address):
        self.address, self.socket = address, None

    def submit(self, data):
        try:
            self.post(data)
            return self.fetch()
        except OSError:
            self.socket = None
            return None

    def post(self, data):
        if self.socket is None:
            self.socket = socket.socket(socket.AF_UNIX)
            self.socket.connect(self.address)
        ledger_server.send(self.socket, data)

    def fetch(self):
        answer = ledger_server.receive(self.socket)
        if answer is None:
            raise OSError("gone")
        if answer[:1] == b"-":
            return [answer[1:].decode()]
        return [RESULTS[code] for code in answer[1:]]


class Client:
    """Sends batches, each until it is answered, and keeps books of what was answered."""

    def __init__(self, number, connection, *, keeps_ids=True):
        self.number, self.connection, self.keeps_ids = number, connection, keeps_ids
        self.books, self.ids, self.retries = Counter(), [], 0
        self.chance, self.count = random.Random(number), 0

    def send(self, size):
        legs = [(self.chance.choice(NAMES), self.chance.randint(1, 9)) for _ in range(size)]
        legs = [(credit, amount) for credit, amount in legs if credit != NAMES[self.number]]
        batch = self.named(legs)
        while not self.is_answered(self.connection.submit(pack(batch))):
            self.retries += 1
            batch = batch if self.keeps_ids else self.named(legs)
            time.sleep(0.005)
        for transfer in batch:
            self.books[transfer.debit] -= transfer.amount_nano
            self.books[transfer.credit] += transfer.amount_nano
            self.ids.append(transfer.transfer_id)

    def named(self, legs):
        self.count += 1
        first = (self.count << 32) + (self.number << 16)
        return [
            record(first + place + 1, amount, NAMES[self.number], credit) for place, (credit, amount) in enumerate(legs)
        ]

    def is_answered(self, results):
        if results is None or results == ["storage_failed"]:
            return False
        assert set(results) <= {CREATED, EXISTS}, results
        return True


@pytest.fixture
def key(tmp_path):
    SigningKey.load_or_create(tmp_path / "key")
    return tmp_path / "key"


@pytest.fixture
def funded(storage, key):
    ledger = Ledger(storage, None, key, NAME)
    ledger.create_accounts([Account(account_id="genesis", kind="genesis", may_go_negative=True)])
    ledger.create_accounts([Account(account_id=name, kind="user") for name in NAMES])
    ledger.submit([record(n + 1, 10**9, "genesis", name) for n, name in enumerate(NAMES)])
    ledger.close()
    return storage


def storm(connect, num_kills, num_transfers, batch_size, kill, *, keeps_ids=True):
    """Eight clients under load while `kill` strikes, a random moment after it was last seen to serve; the clients, once
    all kills are done and each has its share."""
    clients = [Client(number, connect(), keeps_ids=keeps_ids) for number in range(NUM_CLIENTS)]
    over = threading.Event()

    def work(client):
        while len(client.ids) < num_transfers // NUM_CLIENTS or not over.is_set():
            client.send(batch_size)

    threads = [threading.Thread(target=work, args=(client,), daemon=True) for client in clients]
    for thread in threads:
        thread.start()
    chance = random.Random(5)
    for turn in range(num_kills):
        before = sum(len(client.ids) for client in clients)
        while sum(len(client.ids) for client in clients) == before:
            time.sleep(0.002)
        time.sleep(chance.random() * 0.1)
        kill(turn)
    over.set()
    for thread in threads:
        thread.join()
    return clients


def forked_storm(storage, key, num_kills, num_transfers, batch_size, *options, keeps_ids=True, also=None):
    """`also` strikes in every second turn in the process's place."""
    server = Server(storage, key, *options)

    def kill(turn):
        if also is not None and turn % 2 == 0:
            also()
        else:
            server.kill()

    try:
        return storm(server.connect, num_kills, num_transfers, batch_size, kill, keeps_ids=keeps_ids)
    finally:
        server.stop()


def differences(storage, key, clients):
    """What the log has of each account beyond the clients' books; also that every answered id is there, once."""
    ledger = Ledger(storage, None, key, NAME)
    ledger.audit()
    answered = [name for client in clients for name in client.ids]
    assert len(set(answered)) == len(answered)
    assert len(ledger._journal.store.places([id_key(name) for name in answered])) == len(answered)
    total = Counter(dict.fromkeys(NAMES, 10**9))
    for client in clients:
        total.update(client.books)
    surplus = ledger._journal.store.counts()["transfers"] - len(answered) - NUM_CLIENTS
    found = {name: ledger.balance(name).posted_nano - total[name] for name in NAMES}
    ledger.close()
    return surplus, found


def check(storage, key, clients):
    assert differences(storage, key, clients) == (0, dict.fromkeys(NAMES, 0))


def test_ten_kills_lose_and_double_nothing(funded, key):
    clients = forked_storm(funded, key, 10, 2000, 25)
    assert sum(client.retries for client in clients) > 0
    check(funded, key, clients)


@pytest.mark.chaos
@pytest.mark.slow
def test_a_hundred_kills_over_100000_transfers_lose_and_double_nothing(funded, key):
    clients = forked_storm(funded, key, 100, 100_000, 100)
    assert sum(len(client.ids) for client in clients) >= 100_000
    check(funded, key, clients)


@pytest.mark.parametrize("storage", ["sqlite"], indirect=True)
@pytest.mark.parametrize("keeps_ids", [True, False])
def test_only_ids_keep_a_retry_from_doubling(funded, key, keeps_ids):
    """The negative control: clients who make new ids for a retry pay twice."""
    clients = forked_storm(funded, key, 4, 200, 5, "late", keeps_ids=keeps_ids)
    surplus, found = differences(funded, key, clients)
    assert (surplus > 0) == any(found.values()) == (not keeps_ids)


@pytest.mark.parametrize("storage", ["postgres"], indirect=True)
def test_kills_of_the_database_lose_and_double_nothing(funded, key, postgres_server):
    clients = forked_storm(funded, key, 4, 1000, 25, also=postgres_server.restart_after_kill)
    check(funded, key, clients)


@pytest.mark.chaos
@pytest.mark.slow
@pytest.mark.parametrize("storage", ["postgres"], indirect=True)
def test_a_hundred_kills_of_database_and_process_lose_and_double_nothing(funded, key, postgres_server):
    clients = forked_storm(funded, key, 100, 100_000, 100, also=postgres_server.restart_after_kill)
    check(funded, key, clients)


def write(number):
    return pack([record(number, 1, NAMES[0], NAMES[1])])


def zombie_and_successor(storage, key, *options):
    """Results of ten writes by a process that was frozen, replaced by one that wrote, and thawed."""
    zombie = Server(storage, key, *options)
    connections = [zombie.connect() for _ in range(10)]
    assert connections[0].submit(write(3000)) == [CREATED]
    os.kill(zombie.children[-1], signal.SIGSTOP)
    while psutil.Process(zombie.children[-1]).status() != psutil.STATUS_STOPPED:
        time.sleep(0.001)
    for number, connection in enumerate(connections):
        connection.post(write(1000 + number))
    successor = Server(storage, key)
    assert successor.connect().submit(write(2000)) == [CREATED]
    os.kill(zombie.children[-1], signal.SIGCONT)
    results = [connection.fetch()[0] for connection in connections]
    for server in (zombie, successor):
        server.stop()
    return results


def test_a_frozen_process_that_was_replaced_writes_nothing(funded, key):
    assert zombie_and_successor(funded, key) == ["stale_epoch"] * 10
    ledger = Ledger(funded, None, key, NAME)
    assert [ledger.find(number_id(1000 + number)) for number in range(10)] == [None] * 10
    ledger.audit()
    ledger.close()


def test_without_the_fence_the_frozen_process_would_write(funded, key):
    """The negative control."""
    assert zombie_and_successor(funded, key, "unfenced") == [CREATED] * 10


@pytest.mark.parametrize("storage", ["postgres"], indirect=True)
def test_opening_waits_for_a_database_that_is_not_there_yet(funded, key, postgres_server):
    postgres_server.kill()
    with pytest.raises(Unavailable) as caught:
        Ledger(funded, None, key, NAME)
    starting = threading.Timer(0.3, postgres_server.start)
    starting.start()
    ledger = Ledger(funded, None, key, NAME, patience_s=60)
    starting.join()
    assert caught.value.code == "storage_failed"
    assert ledger.submit([record(1, 10**9, "genesis", NAMES[0])]) == [EXISTS]
    ledger.close()


@pytest.mark.parametrize("storage", ["postgres"], indirect=True)
def test_a_process_frozen_in_the_middle_of_a_batch_does_not_keep_its_successor_out(funded, key):
    """Its session holds locks; opening cuts it off."""
    frozen = Ledger(funded, None, key, NAME)
    with pytest.raises(Unavailable), frozen._writing():  # noqa: PT012
        frozen._journal.store.set_meta("half", "done")
        successor = Ledger(funded, None, key, NAME)
        assert RESULTS[successor.submit_packed(write(2000))[0]] == CREATED
        successor.close()
    with pytest.raises(Unavailable) as caught:
        frozen.submit_packed(write(1000))
    assert caught.value.code == "stale_epoch"
    frozen.close()
    last = Ledger(funded, None, key, NAME)
    assert last._journal.meta("half") == ""
    last.audit()
    last.close()


class ActorConnection:
    """As `Connection`, to the Ray actor; Ray itself doesn't retry."""

    def __init__(self, handle):
        self.handle = handle

    def submit(self, data):
        import ray

        try:
            return [RESULTS[code] for code in ray.get(self.handle.submit_packed.remote(data))]
        except Unavailable as error:
            return [error.code]
        except ray.exceptions.RayError:
            return None


def actor_storm(storage, key, num_kills, num_transfers, batch_size):
    import ray

    handle = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=0)(Ledger).remote(storage, None, key, NAME)

    def kill(turn):
        while True:
            try:
                process = ray.get(handle.__ray_call__.remote(lambda self: os.getpid()))
                break
            except ray.exceptions.RayError:
                time.sleep(0.05)
        os.kill(process, signal.SIGKILL)

    try:
        return storm(lambda: ActorConnection(handle), num_kills, num_transfers, batch_size, kill)
    finally:
        ray.kill(handle)


@pytest.mark.cluster
@pytest.mark.parametrize("storage", ["sqlite"], indirect=True)
def test_a_kill_of_the_actor_loses_and_doubles_nothing(cluster, funded, key):
    check(funded, key, actor_storm(funded, key, 1, 400, 25))


@pytest.mark.chaos
@pytest.mark.slow
@pytest.mark.cluster
def test_a_hundred_kills_of_the_actor_over_100000_transfers_lose_and_double_nothing(cluster, funded, key):
    clients = actor_storm(funded, key, 100, 100_000, 100)
    assert sum(len(client.ids) for client in clients) >= 100_000
    check(funded, key, clients)
