# The two commands: `make demo` reads the documents in examples/, `make test` runs the whole suite.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: demo install test check soak parity-llama parity-llama-server load clean

demo: install
	# Exit 5 says that some pages need a look: the bundled model is small.
	$(BIN)/ocr2 run examples/documents -o out/demo --no-resume --prompt ocr --max-new-tokens 700 || [ $$? -eq 5 ]
	@echo; echo "--- out/demo ---"; find out/demo -name '*.md' | sort
	@echo; head -n 40 "$$(find out/demo -name '*.md' | sort | head -n 1)"

install: $(BIN)/.installed
$(BIN)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) install -q --upgrade pip
	$(PIP) install -q -c constraints.txt torch
	$(PIP) install -q -c constraints.txt -e .
	touch $@

$(BIN)/.installed-test: $(BIN)/.installed
	$(PIP) install -q -c constraints.txt -e '.[test]'
	touch $@

test: $(BIN)/.installed-test
	$(BIN)/python -m pytest tests

check: $(BIN)/.installed-test
	$(BIN)/python tests/check.py

soak: $(BIN)/.installed-test
	$(BIN)/python tests/soak/soak.py

parity-llama: $(BIN)/.installed-test
	$(BIN)/python tests/parity_llama/run.py

parity-llama-server: $(BIN)/.installed-test
	$(BIN)/python tests/parity_llama/server.py

load: $(BIN)/.installed-test
	$(BIN)/python tests/load/load.py

clean:
	rm -rf $(VENV) out build dist *.egg-info
