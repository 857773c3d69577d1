# The two commands: `make demo` reads the documents in examples/, `make test` runs the whole suite.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: demo install test check soak parity-llama parity-llama-server load clean

demo: install
	# Exit 5 says that some pages need a look: the bundled model is small.
	$(BIN)/ocr2 run examples/documents -o out/demo --no-resume --prompt ocr --max-new-tokens 700 || [ $$? -eq 5 ]
	@for text in $$(find out/demo -name '*.md' | sort); do echo; echo "--- $$text ---"; head -n 40 "$$text"; done
	@echo; echo "The originals are in examples/documents. What the report above the texts names, the small bundled"
	@echo "model read badly; README.md says how to get the real one."

install: $(BIN)/.installed
$(BIN)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV): torch, which on Linux brings CUDA along, some GB and minutes, then the rest."
	@echo "README.md says how to get torch without CUDA, which is much smaller."
	$(PIP) install -q --upgrade pip
	# Not -q: the one long download, with its progress.
	$(PIP) install -c constraints.txt torch
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
