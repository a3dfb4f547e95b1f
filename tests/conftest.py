pytest_plugins = ["tests.servers_dynamodb", "tests.servers_postgres", "tests.cli"]
