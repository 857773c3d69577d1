"""A page's markdown as plain lines and as HTML.

Knows nothing about documents or files.
"""

from __future__ import annotations

import pytest

from ocr2cli.output.html_text import text_html
from ocr2cli.output.plain import plain_lines


@pytest.mark.parametrize(
    ("markdown", "lines"),
    [
        ("# Head\n\n- item **bold** *it*\n> quote", ["Head", "item bold it", "quote"]),
        ("<table><tr><td>a</td><td>b</td></tr><tr><td>c<br>d</td></tr></table>",
         ["a b", "c", "d"]),
        ("| a | b |\n|---|:-:|\n| 1 | 2 |", ["a b", "1 2"]),
        ("![](x.png)\n\n[link](u) &lt;b> a\\_b 2 < 3", ["link <b> a_b 2 < 3"]),
        ("```py\nx = a*b*c\n```", ["x = a*b*c".replace("*b*", "b")]),
        ("AT&amp;T &#65;&#x42; &eacute; R&D &copy &notes", ["AT&T AB \u00e9 R&D &copy &notes"]),
        ("a &#" + "1" * 5000 + "; b", ["a &#" + "1" * 5000 + "; b"]),
        ("<script>x</script> 5 * 3 * 2 a_b_c", ["<script>x</script> 5 * 3 * 2 a_b_c"]),
        ("***a*** **b *c* d** __e__", ["a b c d e"]),
        ("<center>Figure 1: *x*</center>", ["Figure 1: x"]),
        ("\\[ E = mc^2 \\]\n\n\\[\n|x| \\\\[2pt]\n\\]",
         ["\\[ E = mc^2 \\]", "\\[", "|x| \\\\[2pt]", "\\]"]),
        ("*a* \\(x*y \\) - \\(\\{z*2\\}\\) b*c*d",
         ["a \\(x*y \\) - \\(\\{z*2\\}\\) bcd"]),
        ("<td>\\(</td><td>a &lt; \\(b&lt;c\\)</td>", ["\\( a < \\(b<c\\)"]),
        ("[l](\\(u\\)) \\(a\\) \\[1, \\_\\[2\\]", ["l \\(a\\) [1, _\\[2\\]"]),
    ],
)  # fmt: skip
def test_plain_lines_are_what_a_reader_sees(markdown: str, lines: list[str]) -> None:
    assert plain_lines(markdown) == lines


@pytest.mark.parametrize(
    ("markdown", "expected"),
    [
        ("# A\n\ntext", "<h3>A</h3>\n<p>text</p>"),
        ("a **b** *c* 2*3*4 <sub>2</sub>",
         "<p>a <strong>b</strong> <em>c</em> 2*3*4 <sub>2</sub></p>"),
        ("- a\n- b", "<ul><li>a</li><li>b</li></ul>"),
        ("- 5 - 3", "<ul><li>5 - 3</li></ul>"),
        ("\u2022 a\n\n- b\n\n\u2022 c\n\ntext",
         "<ul><li>a</li><li>b</li><li>c</li></ul>\n<p>text</p>"),
        ("- a\n\n\n1. b", "<ul><li>a</li></ul>\n<ol><li>b</li></ol>"),
        ("<table>\n<tr><td>1</td></tr>\n</table>\ntext",
         "<table>\n<tr><td>1</td></tr>\n</table>\n<p>text</p>"),
        ("1. a\n2. b\n\n3. c", "<ol><li>a</li><li>b</li><li>c</li></ol>"),
        ("7) a\n8) b\n9. c",
         '<ol start="7"><li>a</li><li>b</li></ol>\n<ol start="9"><li>c</li></ol>'),
        # What was read is shown, also where a number was left out.
        ("1. a\n3. b\n4. c", '<ol><li>a</li><li value="3">b</li><li>c</li></ol>'),
        ("1. a\n   - b\n     - c\n   - d\n2. e",
         "<ol><li>a\n<ul><li>b\n<ul><li>c</li></ul></li><li>d</li></ul></li><li>e</li></ol>"),
        ("- a\n\t1. b\n\t2. c", "<ul><li>a\n<ol><li>b</li><li>c</li></ol></li></ul>"),
        ("1. a\nb\n2. c\n\n   d\n\ne",
         "<ol><li>a\nb</li><li>c\n<p>d</p></li></ol>\n<p>e</p>"),
        ("1. a\n   ```\n   b\n   ```\n# c", "<ol><li>a\n<pre>b</pre></li></ol>\n<h3>c</h3>"),
        ("written in\n1984. No list", "<p>written in\n1984. No list</p>"),
        ("1984. A list\n\n1234567890. none",
         '<ol start="1984"><li>A list</li></ol>\n<p>1234567890. none</p>'),
        ("first\n1. a", "<p>first</p>\n<ol><li>a</li></ol>"),
        ("1.5 m\n2.5 m", "<p>1.5 m\n2.5 m</p>"),
        ("| a | b |\n|---|---|\n| 1 | 2 |",
         "<table><tr><td>a</td><td>b</td></tr><tr><td>1</td><td>2</td></tr></table>"),
        ("| | b |\n|---|---|\n| 1 \\| 2 | |",
         "<table><tr><td></td><td>b</td></tr><tr><td>1 | 2</td><td></td></tr></table>"),
        ('<table><tr><td colspan="2">x</td></tr></table>',
         '<table><tr><td colspan="2">x</td></tr></table>'),
        ("```\n# a < b\n```", "<pre># a &lt; b</pre>"),
        ("\\( a_1 < b \\) & c", "<p><code>\\( a_1 &lt; b \\)</code> &amp; c</p>"),
        ("<table><tr><td>AT&amp;T</td><td>&lt; 5 &#937;</td></tr></table>",
         "<table><tr><td>AT&amp;T</td><td>&lt; 5 \u03a9</td></tr></table>"),
        ("&lt;td&gt; &lt;b&gt;x&lt;/b&gt; &#60;td>",
         "<p>&lt;td&gt; &lt;b&gt;x&lt;/b&gt; &lt;td&gt;</p>"),
        ("<b>&lt;script&gt;</b> &amp;lt; &lt;script>",
         "<p><b>&lt;script&gt;</b> &amp;lt; &lt;script&gt;</p>"),
        ("R&D &copy; &copy &section; &#" + "1" * 5000 + ";",
         "<p>R&amp;D \u00a9 &amp;copy &amp;section; &amp;#" + "1" * 5000 + ";</p>"),
        ("```\n&lt;script> a&#33;[b] &copy;\n```", "<pre>&lt;script&gt; a![b] &amp;copy;</pre>"),
        ("\\( a &lt; b \\)", "<p><code>\\( a &lt; b \\)</code></p>"),
        # As the model writes captions; a browser ends a paragraph before this tag.
        ("<center>Figure 1: *a* < b</center>", "<center>Figure 1: <em>a</em> &lt; b</center>"),
        ("<center>a\nb\n\nc", "<p><center>a\nb</center></p>\n<p>c</p>"),
        ("text <center>a</center>", "<p>text <center>a</center></p>"),
        ("a < b <script> ![x](y)", "<p>a &lt; b &lt;script&gt; ![x](y)</p>"),
        ("", ""),
    ],
)  # fmt: skip
def test_markdown_becomes_html(markdown: str, expected: str) -> None:
    assert text_html(markdown) == expected
