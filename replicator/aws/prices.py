"""What DynamoDB charges, as far as ``replicator estimate`` needs it. List prices, without discounts and taxes.

Source: https://aws.amazon.com/dynamodb/pricing/on-demand/ (US East, N. Virginia; on-demand, Standard table class) and
https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/CostOptimization_StreamsUsage.html (the free requests).
The numbers were noted by hand, and no service that replicator calls tells them: the output says so, and ``--price``
replaces them. When a price changes, change it here, with ``AS_OF``; nothing else knows prices.
"""

from __future__ import annotations

from dataclasses import dataclass

AS_OF = "2025-07"
SOURCE = "https://aws.amazon.com/dynamodb/pricing/on-demand/"


@dataclass(frozen=True, slots=True)
class Prices:
    """US dollars per million units; of exports per GB. ``factor``: how much more another region may cost, roughly.

    ``given``: names of prices that are the user's own, so that no factor applies.
    """

    region: str = "us-east-1"
    reads: float = 0.125  # read request units: 4 KB, consistently
    writes: float = 0.625  # write request units: 1 KB
    stream_reads: float = 0.20  # GetRecords requests, empty ones included
    free_stream_reads: int = 2_500_000  # a month, per account and region
    exports: float = 0.10  # a GB of the table, for a full export to S3
    factor: float = 1.6
    given: frozenset[str] = frozenset()

    def of(self, name: str, region: str | None) -> tuple[float, float]:
        """The lowest and the highest factor to apply to a price in a region."""
        return (1.0, 1.0) if region == self.region or name in self.given else (1.0, self.factor)


PRICES = Prices()
