"""How things look outside: pictures as SVG, tables for a terminal and in Markdown, numbers in JSON. Imports no torch."""
