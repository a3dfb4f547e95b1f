"""Keep DynamoDB tables somewhere else too: backfill and live changes at once, in order, without losing any."""

__version__ = "0.1.0"
