"""Read a document from Python:   python examples/03_python_api.py

Expected: one line a page with its status and confidence, then the text of the first page.
"""

import ocr2cli

document = ocr2cli.read("examples/documents/letter.pdf", prompt="ocr", pages="1-2")
for page in document.pages:
    confidence = page.confidence or 0.0
    print(f"page {page.key.page + 1}: {page.status}, confidence {confidence:.2f}")
print(document.pages[0].markdown)
