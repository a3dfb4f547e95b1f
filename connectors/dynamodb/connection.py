"""The account and region that the tables are in: a client for single calls, and a writer for batches."""

from __future__ import annotations

from connectors.dynamodb.epochs import Epochs
from connectors.dynamodb.options import DynamoDBOptions
from connectors.dynamodb.sender import Pace, Sender
from connectors.dynamodb.writer import Writer
from replicator.aws.boto import Boto, connect
from replicator.target.in_doubt import InDoubtWindow


class Account:
    """Connects at first use."""

    def __init__(self, options: DynamoDBOptions) -> None:
        self._options = options
        self._client: Boto | None = None
        self._sender: Sender | None = None

    @property
    def client(self) -> Boto:
        if self._client is None:
            self._client = connect(self._options, "target")
        return self._client

    @property
    def epochs(self) -> Epochs:
        return Epochs(self.client, self._options.epochs_table)

    def writer(self, in_doubt: InDoubtWindow) -> Writer:
        """A writer with as many requests in flight as the options allow. Only one at a time."""
        options, client = self._options, self.client
        server = f"DynamoDB at {client.server}"
        self._sender = Sender(server, client.calls, Pace(options.in_flight, options.write_units))
        return Writer(self._sender, in_doubt, options)

    def close(self) -> None:
        sender, self._sender = self._sender, None
        client, self._client = self._client, None
        if sender is not None:
            sender.close()
        if client is not None:
            client.close()
