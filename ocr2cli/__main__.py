"""`python -m ocr2cli` is `ocr2`."""

from ocr2cli.cli.main import main

if __name__ == "__main__":
    main()
