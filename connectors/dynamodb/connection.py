"""The account and region that the tables are in: one way for what is asked now and then, one for many writes."""

from __future__ import annotations

from connectors.dynamodb.epoch_table import Epochs
from connectors.dynamodb.options import DynamoDBOptions
from connectors.dynamodb.rate_limiter import Pace
from connectors.dynamodb.sender import Sender
from connectors.dynamodb.writer import Writing
from replicator.aws.boto import Boto, connect
from replicator.target.in_doubt import Doubt


class Account:
    """Connected when something is asked of it."""

    def __init__(self, options: DynamoDBOptions) -> None:
        self._options = options
        self._wire: Boto | None = None
        self._sender: Sender | None = None

    @property
    def wire(self) -> Boto:
        if self._wire is None:
            self._wire = connect(self._options, "target")
        return self._wire

    @property
    def epochs(self) -> Epochs:
        return Epochs(self.wire, self._options.epochs_table)

    def writing(self, doubt: Doubt) -> Writing:
        """Writes with as many requests at once as the options allow. One at a time."""
        options, wire = self._options, self.wire
        server = f"DynamoDB at {wire.server}"
        self._sender = Sender(server, wire.calls, Pace(options.in_flight, options.write_units))
        return Writing(self._sender, doubt, options)

    def close(self) -> None:
        sender, self._sender = self._sender, None
        wire, self._wire = self._wire, None
        if sender is not None:
            sender.close()
        if wire is not None:
            wire.close()
