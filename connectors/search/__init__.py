"""What the Elasticsearch and OpenSearch targets share: versioned bulk writes, mappings, aliases.

``connectors.elasticsearch`` and ``connectors.opensearch`` add what is specific to one product: its options and login.
"""
