"""Webhooks as a target: batches of change events by POST, signed as Standard Webhooks specifies."""

from connectors.webhook.target import Webhook

__all__ = ["Webhook"]
