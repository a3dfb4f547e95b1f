"""What Elasticsearch and OpenSearch have in common, which is nearly everything: versions, bulk, mappings, aliases.

The two connectors beside this package add what a product has alone: how one logs in, and how it is recognised.
"""
